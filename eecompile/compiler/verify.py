"""Compare predictions with a reference, and refuse what is too far away."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from eecompile.errors import VerificationError
from eecompile.recipe import Tolerance
from eecompile.runtime.interface import Interface

__all__ = ["Error", "Inputs", "check_points", "compare", "random_inputs", "verification_points"]

Array = NDArray[np.float32]
Inputs = Mapping[str, NDArray[np.generic]]
Evaluate = Callable[[int, Inputs], Array]


class Error(msgspec.Struct, frozen=True):
    """Largest and mean |difference| of an exit over all points that were compared."""

    worst: float
    mean: float


def check_points(timesteps: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Timesteps (small, middle, large) and batch sizes at which predictions are compared."""
    return tuple(sorted({0, timesteps // 2, timesteps - 1})), (1, 3)


def random_inputs(
    interface: Interface, batch: int, timestep: float, seed: int
) -> dict[str, NDArray[np.generic]]:
    """Inputs for tracing and verification, by name: ``x``, ``t``, and the conditions.

    Args:
        interface: what the network takes.
        batch: B.
        timestep: t of every row.
        seed: of the random state and conditions.

    Returns:
        x float32 [B, *shape], standard normal; t float32 [B]; conditions [B, *shape],
        uniform over their range, standard normal without one.
    """
    draws = np.random.default_rng(seed)
    inputs: dict[str, NDArray[np.generic]] = {
        "x": draws.standard_normal((batch, *interface.state.shape), np.float32),
        "t": np.full(batch, timestep, np.float32),
    }
    for name, spec in interface.conditions.items():
        shape = (batch, *spec.shape)
        if spec.dtype == "int64":
            low, high = spec.range or (0, 1)
            inputs[name] = draws.integers(int(low), int(high) + 1, shape)
        elif spec.range is None:
            inputs[name] = draws.standard_normal(shape, np.float32)
        else:
            inputs[name] = draws.uniform(*spec.range, shape).astype(np.float32)
    return inputs


def verification_points(interface: Interface) -> list[Inputs]:
    """Inputs at small, middle and large timesteps, and two batch sizes."""
    timesteps, batches = check_points(interface.process.timesteps)
    return [
        random_inputs(interface, batch, timestep, seed=timestep)
        for timestep in timesteps
        for batch in batches
    ]


def compare(
    depths: tuple[int, ...],
    inputs: list[Inputs],
    reference: Evaluate,
    candidate: Evaluate,
    tolerance: Tolerance,
    what: str,
) -> dict[int, Error]:
    """Evaluate both at every depth and input; the errors by depth.

    Args:
        depths: exits to compare.
        inputs: ``x``, ``t`` and conditions of each point.
        reference: prediction that is right, from depth and inputs.
        candidate: prediction to check.
        tolerance: a candidate may differ by ``absolute + relative * max |reference|``.
        what: names the candidate and the reference in the error.

    Raises:
        VerificationError: a prediction differs by more, or is not finite.
    """
    errors = {}
    for depth in depths:
        worst, means = 0.0, []
        for point in inputs:
            expected, found = reference(depth, point), _evaluate(depth, point, candidate, what)
            worst = max(worst, _check(depth, point, expected, found, tolerance, what))
            means.append(float(np.abs(found - expected).mean()))
        errors[depth] = Error(worst, float(np.mean(means)))
    return errors


def _evaluate(depth: int, point: Inputs, candidate: Evaluate, what: str) -> Array:
    try:
        return candidate(depth, point)
    except Exception as error:  # a runtime's errors share no base class
        raise VerificationError(
            found=f"exit {depth} failing at batch {len(point['x'])} ({what}): {error}",
            expected="a graph that runs at every batch size",
            remedy="check the shapes in the network's forward",
        ) from error


def _check(
    depth: int, point: Inputs, expected: Array, found: Array, tolerance: Tolerance, what: str
) -> float:
    place = f"exit {depth} at timestep {point['t'].flat[0]:g}, batch {len(point['x'])}"
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise VerificationError(
            found=f"a prediction of shape {list(found.shape)} that is not finite, or wrongly "
            f"shaped, from {place} ({what})",
            expected=f"finite values of shape {list(expected.shape)}",
            remedy="check the network's weights and its forward",
        )
    difference = float(np.abs(found - expected).max())
    bound = tolerance.absolute + tolerance.relative * float(np.abs(expected).max())
    if difference > bound:
        raise VerificationError(
            found=f"a difference of {difference:.3g} at {place} ({what})",
            expected=f"at most {bound:.3g}",
            remedy="look for state or randomness in the forward, or widen the tolerance",
        )
    return difference
