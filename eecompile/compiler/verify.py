"""Compare predictions with a reference, and refuse what is too far away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from eecompile.compiler.progress import Report, silent
from eecompile.errors import EecompileError, VerificationError
from eecompile.recipe import Tolerance
from eecompile.runtime.interface import Interface

__all__ = [
    "Error",
    "Evaluate",
    "Inputs",
    "Outputs",
    "check_points",
    "compare",
    "random_inputs",
    "verification_points",
    "worst_of",
]

Array = NDArray[np.float32]
Inputs = Mapping[str, NDArray[np.generic]]
Outputs = Mapping[int, Sequence[Array]]  # by depth: the prediction, and a learned variance
Evaluate = Callable[[Inputs], Outputs]


class Error(msgspec.Struct, frozen=True):
    """How far an exit is from its reference, over all points that were compared.

    Attributes:
        worst: largest |difference|.
        mean: mean |difference|.
        relative: largest |difference| over largest |reference| of one evaluation.
    """

    worst: float
    mean: float
    relative: float


def check_points(timesteps: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Timesteps (small, middle, large) and batch sizes at which predictions are compared."""
    return tuple(sorted({0, timesteps // 2, timesteps - 1})), (1, 3)


def random_inputs(
    interface: Interface,
    batch: int,
    timestep: float,
    seed: int,
    shape: Sequence[int] | None = None,
) -> dict[str, NDArray[np.generic]]:
    """Inputs for tracing and verification, by name: ``x``, ``t``, and the conditions.

    Args:
        interface: what the network takes.
        batch: B.
        timestep: t of every row.
        seed: of the random state and conditions.
        shape: of a sample; None takes the default.

    Returns:
        x float32 [B, *shape], standard normal; t float32 [B]; conditions [B, *shape],
        uniform over their range, standard normal without one.
    """
    draws = np.random.default_rng(seed)
    inputs: dict[str, NDArray[np.generic]] = {
        "x": draws.standard_normal((batch, *(shape or interface.state.shape)), np.float32),
        "t": np.full(batch, timestep, np.float32),
    }
    for name, spec in interface.conditions.items():
        size = (batch, *spec.shape)
        if spec.dtype == "int64":
            low, high = spec.range or (0, 1)
            inputs[name] = draws.integers(int(low), int(high) + 1, size)
        elif spec.range is None:
            inputs[name] = draws.standard_normal(size, np.float32)
        else:
            inputs[name] = draws.uniform(*spec.range, size).astype(np.float32)
    return inputs


def verification_points(interface: Interface) -> list[Inputs]:
    """Inputs at small, middle and large timesteps, and two batch sizes.

    Where samples may have other shapes: also with each free axis at either bound.
    """
    timesteps, batches = check_points(interface.process.timesteps)
    points: list[Inputs] = [
        random_inputs(interface, batch, timestep, seed=timestep)
        for timestep in timesteps
        for batch in batches
    ]
    free = interface.state.resizable
    for index, axis in enumerate(free.axes if free else ()):
        assert free is not None
        for length in (free.min, free.max):
            shape = [*interface.state.shape[:axis], length, *interface.state.shape[axis + 1 :]]
            points.append(random_inputs(interface, 1, timesteps[1], index, shape))
    return points


def compare(
    points: Sequence[Inputs],
    reference: Evaluate,
    candidate: Evaluate,
    tolerance: Tolerance,
    what: str,
    report: Report = silent,
) -> dict[int, Error]:
    """Evaluate both at every point; the errors by depth.

    Args:
        points: ``x``, ``t`` and conditions of each point.
        reference: outputs that are right, of each depth.
        candidate: outputs to check; may leave out depths.
        tolerance: an output may differ by ``absolute + relative * max |reference|``.
        what: names the candidate and the reference in the error.
        report: told of each point.

    Raises:
        VerificationError: an output differs by more, or is not finite.
    """
    errors: dict[int, list[Error]] = {}
    for index, point in enumerate(points):
        report(f"verifying: {what}", index, len(points))
        right, found = reference(point), _evaluate(point, candidate, what)
        for depth, outputs in found.items():
            for expected in right[depth]:
                if expected.shape != point["x"].shape:
                    raise VerificationError(
                        found=f"an output of shape {list(expected.shape)} at exit {depth}",
                        expected=f"the state's shape, {list(point['x'].shape)}",
                        remedy="mend state.shape and process.variance, or the network",
                    )
            for output, expected in zip(outputs, right[depth], strict=True):
                error = _check(depth, point, expected, output, tolerance, what)
                errors.setdefault(depth, []).append(error)
    return {depth: worst_of(each) for depth, each in errors.items()}


def worst_of(errors: Sequence[Error]) -> Error:
    """The largest of several errors, and the mean of their means."""
    return Error(
        max(error.worst for error in errors),
        float(np.mean([error.mean for error in errors])),
        max(error.relative for error in errors),
    )


def _evaluate(point: Inputs, candidate: Evaluate, what: str) -> Outputs:
    try:
        return candidate(point)
    except EecompileError:
        raise
    except Exception as error:  # a runtime's errors share no base class
        raise VerificationError(
            found=f"{what} failing at input shape {list(point['x'].shape)}: {error}",
            expected="graphs that run at every batch size",
            remedy="check the shapes in the network's forward",
        ) from error


def _check(
    depth: int, point: Inputs, expected: Array, found: Array, tolerance: Tolerance, what: str
) -> Error:
    place = f"exit {depth} at timestep {point['t'].flat[0]:g}, batch {len(point['x'])}"
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise VerificationError(
            found=f"a prediction of shape {list(found.shape)} that is not finite, or wrongly "
            f"shaped, from {place} ({what})",
            expected=f"finite values of shape {list(expected.shape)}",
            remedy="check the network's weights and its forward",
        )
    difference = np.abs(found - expected)
    worst, size = float(difference.max()), float(np.abs(expected).max())
    bound = tolerance.absolute + tolerance.relative * size
    if not worst <= bound:
        raise VerificationError(
            found=f"a difference of {worst:.3g} at {place} ({what})",
            expected=f"at most {bound:.3g}",
            remedy="look for state or randomness in the forward, or widen the tolerance",
        )
    return Error(worst, float(difference.mean()), worst / size if size else 0.0)
