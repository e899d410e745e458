"""Companions of a network built for a target: an engine each, verified against the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
from msgspec.structs import replace

from eecompile.arrays import AnyArray, Array, Inputs
from eecompile.backends import BACKENDS, backend_from_target
from eecompile.compiler.progress import Report
from eecompile.compiler.segments import build_module_for
from eecompile.compiler.sessions import run_session, session_from_graph
from eecompile.compiler.verify import traced_shape
from eecompile.compiler.weights import load_graph
from eecompile.errors import BackendError, NonFiniteError, VerificationError
from eecompile.programs.companions import MASK
from eecompile.programs.interface import Interface, State
from eecompile.runtime.companions import open_companion
from eecompile.runtime.prompts import opened_tokenizer
from eecompile.store.companions import (
    DECODER,
    IDS,
    LATENTS,
    Companion,
    encoder_name,
    tokenizer_files,
    tokenizer_name,
)
from eecompile.store.manifest import BundleManifest
from eecompile.store.target import Target, Tolerance

Run = Callable[[Inputs], Sequence[Array]]
TEXTS = ("", "a photograph of a cat in the snow", "x" * 3000)
"""Prompts that encoders are verified with: the empty one, a short one, and one that is too long."""


@runtime_checkable
class CompanionBuilder(Protocol):
    """What the module that builds for a backend with companions provides, too."""

    def build_companion(
        self, model: ir.Model, folder: Path, name: str, target: Target, work: Path
    ) -> tuple[str, str]:
        """Write the engine of a companion to ``folder``; returns its files' names, weights last.

        ``name`` is the stem of its files' names; ``work`` is for intermediate files.
        """
        ...


class CompanionError(NamedTuple):
    """How far a companion is from its reference: at worst, and relative to the largest value."""

    worst: float
    relative: float


def build_companions(
    bundle: Path, source: BundleManifest, target: Target, folder: Path, work: Path, report: Report
) -> tuple[Companion, ...]:
    """Write the engine of each companion, verified against the bundle, and its tokenizer.

    Raises:
        BackendError: the target's backend has no companions, or refuses one.
        VerificationError: an engine is too far from the bundle's graph.
    """
    if not source.companions:
        return ()
    own = target.for_companions
    module = build_module_for(own)
    if not isinstance(module, CompanionBuilder) or module.precision_in_graph(own):
        able = [name for name, each in BACKENDS.items() if each.companions]
        backend = backend_from_target(own.backend, own.options).name
        raise BackendError(
            found=f"encoders or a decoder for {backend} in {own.precision}",
            expected=f"one of {', '.join(able)}, in fp32, or in bf16 for openvino",
            remedy="set backend = 'onnxruntime' in the target's [companions]: they run once a "
            "sampling",
        )
    for name in tokenizer_files(source.interface):
        shutil.copyfile(bundle / name, folder / name)
    made = []
    for each in source.companions:
        report(f"building {each.name}")
        model = load_graph(bundle, each.file, each.weights)
        file, weights = module.build_companion(model, folder, each.name, own, work)
        unknown = float("inf")
        built = replace(
            each, file=file, weights=weights, worst_error=unknown, relative_error=unknown
        )
        if module.runs(own):
            report(f"verifying {each.name}")
            built = _verified(built, bundle / each.file, source.interface, target, folder)
        made.append(built)
    return tuple(made)


def _verified(
    built: Companion, graph: Path, interface: Interface, target: Target, folder: Path
) -> Companion:
    """An engine with its errors, to the bundle's graph."""
    session = session_from_graph(graph)
    if built.name == DECODER:
        points = decoder_points(interface.decoded_state)
    else:
        names = {encoder_name(name): name for name in interface.encoders}
        tokenizer = opened_tokenizer(folder / tokenizer_name(names[built.name]))
        points = encoder_points(tokenizer, built.inputs)
    with open_companion(folder, built, target, target.threads) as engine:
        error = compared(
            points,
            lambda point: run_session(session, point, built.outputs),
            engine.run,
            target.tolerance,
            f"{built.name} for {target.name} against the bundle",
        )
    return replace(built, worst_error=error.worst, relative_error=error.relative)


def encoder_points(tokenizer: Any, names: Sequence[str]) -> list[Inputs]:
    """Inputs of an encoder: texts and tokens at random, in one batch and alone."""
    found = [tokenizer.encode(text) for text in TEXTS]
    length, size = len(found[0].ids), tokenizer.get_vocab_size()
    drawn = np.random.default_rng(0).integers(0, size, (1, length))
    whole: dict[str, AnyArray] = {
        IDS: np.concatenate([[each.ids for each in found], drawn]).astype(np.int64),
        MASK: np.array([*(each.attention_mask for each in found), [1] * length], np.int64),
    }
    inputs = {name: whole[name] for name in names}
    return [inputs, {name: value[1:2] for name, value in inputs.items()}]


def decoder_points(state: State) -> list[Inputs]:
    """Inputs of a decoder: a batch, one alone, and each free axis at its bounds."""
    draws = np.random.default_rng(0)
    shapes = [(2, *traced_shape(state)), (1, *state.shape)]
    free = state.resizable
    for axis in free.axes if free else ():
        assert free is not None
        before, after = state.shape[:axis], state.shape[axis + 1 :]
        shapes += [(1, *before, length, *after) for length in (free.min, free.max)]
    return [{LATENTS: draws.standard_normal(shape, np.float32)} for shape in shapes]


def compared(
    points: Sequence[Inputs], reference: Run, candidate: Run, tolerance: Tolerance, what: str
) -> CompanionError:
    """How far a candidate is from its reference at every point.

    Raises:
        VerificationError: by more than ``absolute + relative * max |reference|`` of an output.
        NonFiniteError: an output is not finite.
    """
    worst = relative = 0.0
    for point in points:
        for found, right in zip(candidate(point), reference(point), strict=True):
            if not (np.isfinite(right).all() and np.isfinite(found).all()):
                side = what if np.isfinite(right).all() else f"the reference ({what})"
                raise NonFiniteError(
                    found=f"NaN or infinity from {side}",
                    expected="finite values",
                    remedy="check its checkpoint, and the precision of [companions] in the target",
                )
            if found.shape != right.shape:
                raise VerificationError(
                    found=f"an output of shape {list(found.shape)} ({what})",
                    expected=f"shape {list(right.shape)}",
                    remedy="derive sizes in the module's forward from its inputs",
                )
            most, size = float(np.abs(found - right).max()), float(np.abs(right).max())
            if most > tolerance.absolute + tolerance.relative * size:
                raise VerificationError(
                    found=f"a difference of {most:.3g} at values up to {size:.3g} ({what})",
                    expected=f"at most {tolerance.absolute:g} + {tolerance.relative:g} of the "
                    "largest value",
                    remedy="take fp32 in the target's [companions], or widen [tolerance]",
                )
            worst, relative = max(worst, most), max(relative, most / size if size else 0.0)
    return CompanionError(worst, relative)
