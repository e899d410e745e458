"""Quantised graphs: calibrated over timesteps, searched, placed once for all exits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from eecompile.arrays import Inputs
from eecompile.backends import backend_from_target
from eecompile.compiler.calibration import calibration_set, points, value_ranges
from eecompile.compiler.graph.numbering import NumberValues
from eecompile.compiler.graph.quantise import (
    Operator,
    named,
    operators,
    quantise,
    scheme_for,
    values_read,
)
from eecompile.compiler.progress import Report
from eecompile.compiler.sensitivity import Sensitivity, SwitchedGraph, searched, share_of
from eecompile.compiler.verify import Evaluate
from eecompile.errors import BackendError
from eecompile.measure.machine import eight_bit_products
from eecompile.store.manifest import BundleManifest, OperatorError, Quantisation
from eecompile.store.target import Target

NO_VNNI = "U8S7"
"""The scheme of processors that do not add products of 8 bits in 32."""
_SEARCHED, _VERIFIED = 5, 8  # timesteps
_LARGEST = 4  # samples of a timestep
_COMPARED = 2  # samples to search with where no ranges are taken: one is guided


class QuantisedGraph(NamedTuple):
    """A quantised graph.

    Attributes:
        model: of all exits; its inputs and outputs are what they were.
        record: for the manifest.
        points: at which it is to be verified: evaluations of samples that nothing was
            calibrated with.
    """

    model: ir.Model
    record: Quantisation
    points: list[Inputs]


def quantised(
    model: ir.Model,
    bundle: Path,
    manifest: BundleManifest,
    target: Target,
    reference: Evaluate,
    work: Path,
    report: Report,
) -> QuantisedGraph:
    """The graph of all exits, quantised as the target's ``[quantise]`` says.

    Args:
        model: in the target's precision, as it lies in the graph.
        bundle: folder.
        manifest: of the bundle.
        target: with ``quantise``.
        reference: what is right: the bundle's exits.
        work: for intermediate files.
        report: told of its progress.

    Raises:
        BackendError: nothing can be quantised, or a pattern matches nothing.
        VerificationError: the tolerance cannot be held.
    """
    wanted = target.quantise
    assert wanted is not None
    on_gpu = backend_from_target(target.backend, target.options).gpu
    instructions = "" if on_gpu else eight_bit_products()
    scheme = scheme_for(wanted.kind, wanted.block, cpu=not on_gpu, vnni=bool(instructions))
    plain = work / "unquantised.onnx"
    ir.save(model, plain, external_data="unquantised.data")
    model = ir.load(plain)
    found, refused = operators(model.graph, scheme)
    if not found:
        raise BackendError(
            found=f"no product with weights that can be quantised ({', '.join(refused) or 'none'})",
            expected="matrices"
            + (f" whose rows are a multiple of {scheme.block}" if scheme.block else ""),
            remedy="leave [quantise] out of the target"
            + (", or choose a smaller block" if scheme.block else ""),
        )
    keep = named(found, wanted.keep)
    observed = scheme.values is not None
    samples = wanted.samples if observed else min(wanted.samples, _COMPARED)
    data = calibration_set(bundle, manifest, samples, report, ranges=observed)
    ranges = {}
    if observed:
        ranges = value_ranges(model, list(values_read(found)), data.rows, work, report)
    seen = points(data.rows, _SEARCHED, _LARGEST)
    switched = SwitchedGraph(
        plain,
        scheme,
        ranges,
        manifest.interface,
        seen,
        reference,
        target.tolerance,
        work,
    )
    result = searched(
        switched,
        found,
        keep,
        target.tolerance,
        search=wanted.search,
        measure=wanted.sensitivity,
        report=report,
    )
    del switched
    made = ir.load(plain)
    quantise(made, scheme, ranges, result.kept)
    NumberValues()(made)
    record = Quantisation(
        kind=wanted.kind,
        scheme=scheme.name,
        instructions=instructions if wanted.kind == "int8" else "",
        samples=samples,
        rows=len(data.rows["t"].which),
        steps=data.times,
        calibration=data.digest,
        operators=_operators(found, result),
        refused=tuple(refused),
        share=share_of(found, result.kept),
        timesteps=tuple(float(p["t"][0]) for p in seen) if result.errors is not None else (),
    )
    return QuantisedGraph(made, record, points(data.held_out, _VERIFIED, _LARGEST))


def _operators(found: Sequence[Operator], result: Sensitivity) -> tuple[OperatorError, ...]:
    total = sum(each.cost for each in found)
    return tuple(
        OperatorError(
            name=each.name,
            kind=each.node.op_type,
            cost=each.cost / total,
            kept=each.name in result.kept,
            errors=() if result.errors is None else tuple(map(float, result.errors[index])),
        )
        for index, each in enumerate(found)
    )
