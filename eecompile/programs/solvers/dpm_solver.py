"""DPM-Solver, singlestep (Lu et al., arXiv 2206.00927, algorithms 1 and 2).

Runge-Kutta's way in half the logarithm of the signal-to-noise ratio, lambda. The moments
within a step are those of the grid, as in diffusers, so that every number of evaluations
is possible; the grid ``logsnr`` puts them where the paper does. The data form is that of
DPM-Solver++ (arXiv 2211.01095, appendix B).
"""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Literal, get_args

from eecompile.errors import UsageError
from eecompile.programs.grids import Grid, points
from eecompile.programs.process import DATA, Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import data_step, first_step, log_ratios, noise_step, title
from eecompile.programs.tape import ChoiceAt, Prediction, Tape, Value

Form = Literal["noise", "data"]


def dpm_solver_2(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    form: Form = "noise",
    grid: Grid = "logsnr",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; deterministic; two evaluations make one step of the method.

    Args:
        steps: number of evaluations, 1 to T; the last is a step of first order, and so
            is the one before where the number is even.
        form: interpolate the predicted ``noise`` (DPM-Solver) or ``data``
            (DPM-Solver++).
    """
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    rest = 2 - steps % 2  # evaluations that the blocks leave for steps of first order
    _record(tape, visited, [2] * ((steps - rest) // 2) + [1] * rest, form)
    return tape.finish(title("dpm-solver-2", grid, {"form": form}))


def dpm_solver_3(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    form: Form = "noise",
    grid: Grid = "logsnr",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Third order; deterministic; three evaluations make one step of the method.

    Arguments and errors are those of :func:`dpm_solver_2`; what the last step and the
    steps of three leave over is of second or first order.
    """
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    whole, rest = divmod(steps - 1, 3)
    _record(tape, visited, [3] * whole + ([rest] if rest else []) + [1], form)
    return tape.finish(title("dpm-solver-3", grid, {"form": form}))


def _record(tape: Tape, visited: list[Point], sizes: list[int], form: Form) -> None:
    """Record steps of the given ``sizes``, in evaluations, over all of ``visited``."""
    if form not in get_args(Form):
        raise UsageError(
            found=f"form {form!r}",
            expected=f"one of {list(get_args(Form))}",
            remedy="choose one of these",
        )
    if not visited[0].alpha:  # nothing can be extrapolated from pure noise
        sizes = [1, *([sizes[0] - 1] if sizes[0] > 1 else []), *sizes[1:]]
    ends = iter([*visited[1:], DATA])
    start = visited[0]
    for size in sizes:
        block = list(islice(ends, size))
        _block(tape, start, block, form)
        start = block[-1]


def _block(tape: Tape, start: Point, ends: list[Point], form: Form) -> None:
    """A step from ``start`` to the last of ``ends``, evaluated at the others too."""
    prediction = tape.evaluate(tape.state, start)
    if len(ends) == 1:
        tape.advance(first_step(prediction, ends[0]))
        return
    cross = noise_step if form == "noise" else data_step
    first = tape.keep(_pick(prediction, form), "first")
    state = cross(tape.state, start, ends[0], first)
    for order, (now, after) in enumerate(pairwise(ends), 2):
        state = tape.keep(state, "inner")
        value = _pick(tape.evaluate(state, now), form)
        h, (place,) = log_ratios(start, after, [now])
        weight = _weight(start, after, h, form, order)
        state = cross(tape.state, start, after, first) + (weight / place) * (value - first)
    tape.advance(state)


def _pick(prediction: Prediction, form: Form) -> Value:
    return prediction.noise if form == "noise" else prediction.data


def _weight(start: Point, after: Point, h: float, form: Form, order: int) -> float:
    """Of the change of what is predicted: equation 3.3's integral, or half the step."""
    if form == "noise":
        whole = after.sigma - start.sigma * after.alpha / start.alpha
        return whole / 2 if order == 2 else whole / h + after.sigma
    whole = after.alpha - start.alpha * after.sigma / start.sigma
    return whole / 2 if order == 2 else after.alpha - whole / h
