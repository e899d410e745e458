"""``eecompile export``: from a recipe to a bundle."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

import eecompile
from eecompile.arrays import Inputs
from eecompile.compiler.companion_export import export_companions
from eecompile.compiler.differences import located
from eecompile.compiler.files import evaluate_files, external_files, graph_from_files
from eecompile.compiler.graph.cuts import marks
from eecompile.compiler.graph.merge import exit_outputs, merged_exits
from eecompile.compiler.graph.partition import check_nested, extract, per_exit_parts
from eecompile.compiler.graph.sharing import exit_weights, sharing
from eecompile.compiler.graph.spans import cut_parts, span_plans
from eecompile.compiler.hints import too_large_times
from eecompile.compiler.notices import told_once
from eecompile.compiler.progress import Report, silent
from eecompile.compiler.sessions import evaluate_apart, evaluate_joined, session_from_graph
from eecompile.compiler.trace import graph_from_network
from eecompile.compiler.verify import (
    Error,
    Evaluate,
    Outputs,
    calibration_inputs,
    check_independent,
    check_points,
    compare,
    compare_extremes,
    extreme_inputs,
    once,
    random_inputs,
    verification_points,
    worst_of,
)
from eecompile.compiler.weights import WeightStore, load_graph
from eecompile.decoding import MalformedError, from_npy
from eecompile.errors import (
    BundleError,
    NonFiniteError,
    RecipeError,
    TraceError,
    VerificationError,
)
from eecompile.networks.base import ADAPTERS, MultiExitNetwork
from eecompile.networks.call import left_out, without_autocast
from eecompile.networks.checkpoint import checkpoint_files
from eecompile.networks.companions import companion_files
from eecompile.networks.load import importable, load_network
from eecompile.networks.truncated import Truncated
from eecompile.programs.interface import Interface
from eecompile.recipe import ExportRecipe, load_recipe
from eecompile.store.bundle import (
    CALIBRATION,
    older_identity,
    open_bundle,
    records,
    sha256,
    write_manifest,
)
from eecompile.store.companions import DECODER, CompanionRecipe, encoder_name
from eecompile.store.folders import new_folder
from eecompile.store.manifest import BundleManifest, ExitGraph, SpanPlan, exit_graph_name
from eecompile.store.shipped import named_file
from eecompile.store.target import Tolerance

LOG = logging.getLogger("eecompile.compiler")
_JOINED = "joined.onnx"  # all exits in one graph, while they are verified


class _Source(NamedTuple):
    """What a recipe names: all exits as one graph, and what they must agree with.

    ``each`` evaluates every exit from the start, where ``reference`` may share blocks.
    ``network`` is None for ready-made files.
    """

    model: ir.Model
    reference: Evaluate
    each: Evaluate
    name: str
    network: MultiExitNetwork | None = None


def bundle_from_recipe(
    path: Path,
    output: Path,
    *,
    exits: Sequence[int] | None = None,
    checkpoint: Path | None = None,
    force: bool = False,
    report: Report = silent,
) -> BundleManifest:
    """Export the network that a recipe names.

    Args:
        path: the recipe, or the name of one that ships.
        output: the bundle's folder; an older bundle of the same network is replaced.
        exits: instead of the recipe's.
        checkpoint: instead of the recipe's.
        force: replace any bundle or engine set at ``output``.
        report: told of each phase and its steps.

    Raises:
        EecompileError: the recipe, the checkpoint, the trace, the verification or the
            output folder is at fault.
    """
    path = named_file("export", path)
    recipe = load_recipe(path, exits=exits, checkpoint=checkpoint)
    interface = interface_from_recipe(recipe)
    replaces = force or _holds(output, recipe.name)
    # A network's forward may import, too.
    with (
        new_folder(output, replaces=replaces) as folder,
        importable(path.parent),
        without_autocast(),
        told_once(),
    ):
        _write_calibration(folder, recipe, path.parent, interface)
        source = _source(recipe, path.parent, interface, report)
        report("writing graphs and weights")
        _write_graphs(folder, source.model, interface)
        cuts, spans = _spans(folder, recipe, interface)
        interface = msgspec.structs.replace(interface, cuts=cuts)
        for schedule in interface.schedules.values():
            schedule.check(interface.exits, interface.cuts)
        advice = too_large_times(source.reference, interface)
        try:
            errors = _verify(folder, source, interface, recipe.tolerance, report)
        except (VerificationError, NonFiniteError) as error:
            report("comparing the operators of torch and of the graph")
            told = located(error, source.network, interface, recipe.tolerance)
            raise type(told)(
                found=told.found, expected=told.expected, remedy=advice or told.remedy
            ) from error
        if advice:
            LOG.warning("the timesteps look too large: %s", advice)
        companions = export_companions(recipe, path.parent, folder, interface, report)
        shared = sharing(source.model.graph, exit_outputs(source.model, interface))
        timesteps, batches = check_points(interface.process.timesteps)
        report("checking digests")
        manifest = BundleManifest(
            interface=interface,
            exits=_exit_graphs(folder, interface, errors),
            files=records(folder),
            sharing=shared,
            spans=spans,
            companions=companions,
            versions=_versions(),
            sources=_digests(recipe, path.parent) | _companion_digests(recipe, path.parent),
            reference=source.name,
            checked_timesteps=timesteps,
            checked_batches=batches,
        )
        return write_manifest(folder, manifest)


def interface_from_recipe(recipe: ExportRecipe) -> Interface:
    """What a sampler must know of a recipe's network."""
    return Interface(
        name=recipe.name,
        exits=recipe.network.exits,
        state=recipe.state,
        conditions=recipe.conditions,
        process=recipe.process,
        schedules=recipe.exit_schedules(),
        sampling=recipe.sampling,
        costs=recipe.network.costs,
        arguments=recipe.network.arguments,
        encoders={name: each.encoder for name, each in recipe.encoders.items()},
        decoder=recipe.decoder.decoder if recipe.decoder else None,
    )


def _source(recipe: ExportRecipe, folder: Path, interface: Interface, report: Report) -> _Source:
    if recipe.network.files:
        report("joining the ONNX files")
        model = graph_from_files(recipe.network, folder, interface)
        evaluate = evaluate_files(recipe.network, folder, interface)
        return _Source(model, evaluate, evaluate, "the ONNX files")
    report("loading the network")
    network = load_network(recipe.network, folder)
    _warn_of_left_out(network, interface)
    report("tracing all exits at once")
    model = _traced(network, interface)
    check_nested(model.graph, exit_outputs(model, interface))
    each = _evaluate_network(network, interface)
    if not isinstance(network, Truncated):
        return _Source(model, each, each, "torch", network)

    def shared(point: Inputs) -> Outputs:
        with network.each_block_once():
            return each(point)

    return _Source(model, shared, each, "torch", network)


def _warn_of_left_out(network: MultiExitNetwork, interface: Interface) -> None:
    """Name what a module's forward could take, such as a rotary table, and is not given."""
    if not isinstance(network, Truncated):
        return
    inputs = {name: torch.empty(0) for name in ("x", "t", *interface.conditions)}
    names = left_out(network.network, network.call(**inputs))
    if names:
        warnings.warn(
            f"{type(network.network).__name__} is exported without its optional "
            f"{', '.join(names)}: where it was trained with one, state it in [conditions] or "
            "[network.constants]; NAME = { null = true } there says that it was not",
            stacklevel=2,
        )


def _traced(network: MultiExitNetwork, interface: Interface) -> ir.Model:
    try:
        return graph_from_network(network, interface)
    except TraceError as error:
        kind = type(network.network if isinstance(network, Truncated) else network).__name__
        if kind not in ADAPTERS:
            raise
        raise TraceError(
            found=error.found,
            expected=error.expected,
            remedy=f"take network.factory = {ADAPTERS[kind]!r}, which loads the same weights",
        ) from error


def _evaluate_network(network: MultiExitNetwork, interface: Interface) -> Evaluate:
    parts = len(interface.outputs)

    def evaluate(point: Inputs) -> Outputs:
        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in point.items()}
        with torch.no_grad():
            predictions = network(**tensors)
        return {
            depth: [part.numpy() for part in whole.chunk(parts, dim=1)]
            if parts > 1
            else [whole.numpy()]
            for depth, whole in zip(interface.exits, predictions, strict=True)
        }

    return evaluate


def _holds(output: Path, name: str) -> bool:
    """Whether ``output`` is a bundle of the network ``name``, perhaps of an older format."""
    if older_identity(output) == (name,):
        return True
    with suppress(BundleError):
        return open_bundle(output).interface.name == name
    return False


def _write_graphs(folder: Path, model: ir.Model, interface: Interface) -> None:
    inputs = [value.name or "" for value in model.graph.inputs]
    store, graphs = WeightStore(), {}
    for part in per_exit_parts(model.graph, exit_outputs(model, interface)):
        # Every exit keeps all inputs, needed or not: one call signature for all of them.
        graph = extract(model, inputs, part.outputs)
        store.add(graph)
        graphs[exit_graph_name(part.exits[0])] = graph
    store.save(folder, graphs)


def _spans(
    folder: Path, recipe: ExportRecipe, interface: Interface
) -> tuple[tuple[int, ...], tuple[SpanPlan, ...]]:
    """The recipe's cuts, or default ones, and the spans between any two of them.

    None where the recipe names no cuts and spans cannot be.

    Raises:
        TraceError: spans cannot be where the recipe names cuts.
    """
    wanted = recipe.network.cuts_or_default
    try:
        return wanted, _planned_spans(folder, interface, wanted)
    except TraceError:
        if recipe.network.cuts is not None:
            raise
        return (), ()


def _planned_spans(folder: Path, interface: Interface, cuts: Sequence[int]) -> tuple[SpanPlan, ...]:
    """The spans between any two of the cuts; a TraceError unless there can be one."""
    if not cuts:
        return ()
    model = merged_exits(folder, interface.exits)
    if not any(map(marks, model.graph)):
        raise TraceError(
            found=f"network.cuts = {list(cuts)}, and a network whose blocks are not known",
            expected=f"an attribute blocks that lists its {interface.exits[-1]} modules in the "
            "order in which they run",
            remedy="add it to the network, name them in network.blocks, or remove network.cuts",
        )
    parts = cut_parts(model, interface, cuts)
    return span_plans(model.graph, parts, cuts)


def _write_calibration(
    folder: Path, recipe: ExportRecipe, base: Path, interface: Interface
) -> None:
    """The inputs that the recipe's data leads to, for builds in lower precisions."""
    if recipe.calibration is None:
        return
    place = base / recipe.calibration
    try:
        data = from_npy(place)
        found = f"{data.dtype} {list(data.shape)}"
    except (OSError, MalformedError) as error:
        data, found = np.empty(0), f"no array ({type(error).__name__})"
    fits = data.shape[1:] == interface.state.shape and len(data) and data.dtype.kind == "f"
    if not fits or not np.isfinite(data).all():
        raise RecipeError(
            found=f"{found} at {place}, for calibration",
            expected=f"finite samples of the data, a float32 .npy [N, *{interface.state.shape}]",
            remedy="fix the recipe's calibration, or remove it to calibrate with noise",
        )
    made = calibration_inputs(interface, data.astype(np.float32))
    np.savez(folder / CALIBRATION, allow_pickle=False, **made)


def _verify(
    folder: Path, source: _Source, interface: Interface, tolerance: Tolerance, report: Report
) -> dict[int, Error]:
    """Evaluate what was written: joined again at all points, and each graph alone at one.

    The joined graph is what ``build`` starts from; evaluating the trunk once for all
    exits takes a fraction of the time of evaluating every graph everywhere.
    """
    points = verification_points(interface)
    middle = [random_inputs(interface, 1, interface.process.timesteps // 2, seed=1)]
    # One after the other: each candidate holds the weights once more while it lives.
    check = partial(compare, tolerance=tolerance, report=report)
    what = f"ONNX Runtime against {source.name}"
    report("verifying: samples apart")
    reference = once(source.reference)
    check_independent(points, reference, tolerance)
    together, apart = _joined(folder, interface), evaluate_apart(folder, interface)
    errors = check(points, reference, candidate=together, what=f"{what}, all exits at once")
    extremes = extreme_inputs(interface)
    for error in compare_extremes(extremes, reference, together, tolerance, what):
        raise error
    del together
    single = check(middle, source.each, candidate=apart, what=f"{what}, each exit alone")
    return {depth: worst_of([errors[depth], single[depth]]) for depth in interface.exits}


def _joined(folder: Path, interface: Interface) -> Evaluate:
    """All exits of the bundle in one session, from the graphs as they were written."""
    model = merged_exits(folder, interface.exits)
    ir.save(model, folder / _JOINED)
    session = session_from_graph(folder / _JOINED)
    (folder / _JOINED).unlink()
    return evaluate_joined(session, interface)


def _exit_graphs(
    folder: Path, interface: Interface, errors: dict[int, Error]
) -> tuple[ExitGraph, ...]:
    graphs = {depth: load_graph(folder, exit_graph_name(depth)) for depth in interface.exits}
    weights = {depth: exit_weights(model) for depth, model in graphs.items()}
    found = []
    for depth, model in graphs.items():
        others = {key for other in graphs if other != depth for key in weights[other]}
        found.append(
            ExitGraph(
                depth=depth,
                graph=exit_graph_name(depth),
                nodes=len(model.graph),
                parameters=sum(weight.size for weight in weights[depth].values()),
                bytes=sum(weight.nbytes for weight in weights[depth].values()),
                unique_bytes=sum(w.nbytes for k, w in weights[depth].items() if k not in others),
                worst_error=errors[depth].worst,
                mean_error=errors[depth].mean,
                relative_error=errors[depth].relative,
            )
        )
    return tuple(found)


def _digests(recipe: ExportRecipe, folder: Path) -> dict[str, str]:
    network = recipe.network
    if not network.files:
        files = checkpoint_files(folder / (network.checkpoint or ""))
        found = {path.name: sha256(path) for path in files}
        for place in network.more_checkpoints:
            for path in checkpoint_files(folder / place):
                found[f"{path.parent.name}/{path.name}"] = sha256(path)
        return found
    paths = {folder / name for name in network.files}
    paths |= {data for path in paths for data in external_files(path)}
    return {os.path.relpath(path, folder): sha256(path) for path in sorted(paths)}


def _companion_digests(recipe: ExportRecipe, folder: Path) -> dict[str, str]:
    named: dict[str, CompanionRecipe] = {encoder_name(n): e for n, e in recipe.encoders.items()}
    if recipe.decoder is not None:
        named[DECODER] = recipe.decoder
    return {
        f"{name}/{path.name}": sha256(path)
        for name, each in named.items()
        for path in companion_files(each, folder)
    }


def _versions() -> dict[str, str]:
    packages = ("onnx", "onnx-ir", "onnxscript", "safetensors")
    return {
        "eecompile": eecompile.__version__,
        "torch": str(torch.__version__),
        "onnxruntime": onnxruntime.__version__,
        **{name: version(name) for name in packages},
    }
