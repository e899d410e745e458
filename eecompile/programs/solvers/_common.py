"""What the solvers share: the intervals of a trajectory, and steps across one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from eecompile.errors import UsageError
from eecompile.programs.process import DATA, Family, Point, Process
from eecompile.programs.tape import Prediction, Tape, Value

_FEW = 15  # steps below which the last ones take lower orders, as in diffusers


def intervals(points: Sequence[Point]) -> Iterator[tuple[Point, Point]]:
    """Each moment with the one after it; after the last comes the data."""
    return zip(points, [*points[1:], DATA], strict=True)


def first_step(prediction: Prediction, after: Point) -> Value:
    """The state at ``after`` if the prediction held all the way: DDIM's step.

    Finite wherever it starts and ends (arXiv 2010.02502, equation 12 with sigma 0).
    """
    return after.alpha * prediction.data + after.sigma * prediction.noise


def noise_step(state: Value, now: Point, after: Point, noise: Value) -> Value:
    """The same for any mean noise on the way; ``now`` has some data in it.

    arXiv 2202.09778, equation 11: the pseudo methods' transfer.
    """
    scale = after.alpha / now.alpha
    return scale * state + (after.sigma - now.sigma * scale) * noise


def data_step(state: Value, now: Point, after: Point, data: Value) -> Value:
    """The same for any mean data on the way."""
    scale = after.sigma / now.sigma
    return scale * state + (after.alpha - now.alpha * scale) * data


def log_ratios(now: Point, after: Point, past: Sequence[Point]) -> tuple[float, list[float]]:
    """The step in half log-SNR, h, and where former moments lie in it.

    Returns:
        h, infinite where the step starts from noise or ends at the data; and for each
        of ``past``, ``(lambda - lambda(now)) / h``: negative for former moments.
    """
    step = after.half_log_snr - now.half_log_snr
    return step, [(point.half_log_snr - now.half_log_snr) / step for point in past]


Past = list[tuple[Point, Value]]
"""Former predictions, newest first, and where they were made."""


def multistep(
    tape: Tape,
    visited: Sequence[Point],
    order: int,
    name: str,
    pick: Callable[[Prediction], Value],
    step: Callable[[Point, Point, Prediction, Past], Value],
    *,
    few: int = _FEW,
) -> None:
    """Record the steps of a method that extrapolates what was predicted before.

    Args:
        tape: at the first of ``visited``.
        visited: the moments to visit.
        order: number of predictions that a step reads.
        name: of the buffers that keep former ones.
        pick: what of a prediction is kept.
        step: the state at the second moment, from that on the tape, which is at the first, the
            prediction there and the former ones that this step may read.
        few: steps below which the last but one is of order 2 at most.
    """
    past: Past = []
    for index, (now, after) in enumerate(intervals(visited)):
        prediction = tape.evaluate(tape.state, now)
        used = past[: _order_at(index, len(visited), order, few) - 1]
        state = step(now, after, prediction, used)
        # Nothing can be extrapolated from moments without data.
        if order > 1 and now.alpha:
            past = [(now, tape.keep(pick(prediction), name)), *past][: order - 1]
        tape.advance(state)


def _order_at(index: int, steps: int, order: int, few: int) -> int:
    """The highest order at step ``index``.

    It starts at 1; the last step is of order 1, since it ends at the data, and with fewer
    than ``few`` steps the one before of order 2 at most, as in diffusers.
    """
    if index == steps - 1:
        return 1
    if index == steps - 2 and steps < few:
        order = min(order, 2)
    return min(order, index + 1)


def require(process: Process, solver: str, families: tuple[Family, ...]) -> None:
    """Raise UsageError unless ``process`` is of one of ``families``."""
    if process.family not in families:
        raise UsageError(
            found=f"solver {solver!r} for a process of family {process.family}",
            expected=f"a process of family {' or '.join(families)}",
            remedy="choose a solver that takes this family; docs/solvers.md lists them",
        )


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Raise UsageError unless ``value`` is finite and within ``low`` to ``high``."""
    if not (math.isfinite(value) and low <= value <= high):
        bounds = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
        raise UsageError(
            found=f"{name} {value:g}", expected=bounds, remedy=f"choose another {name}"
        )


def check_order(order: int, known: Sequence[int]) -> None:
    """Raise UsageError unless ``order`` is one of ``known``."""
    if order not in known:
        raise UsageError(
            found=f"order {order}", expected=f"one of {list(known)}", remedy="choose another order"
        )


def title(
    name: str, grid: str | Sequence[float], options: Mapping[str, object] | None = None
) -> str:
    """A program's name: the solver's, its options and its grid, for people."""
    given = [f"{option}={value}" for option, value in (options or {}).items()]
    return f"{name}({', '.join([*given, grid if isinstance(grid, str) else 'given times'])})"
