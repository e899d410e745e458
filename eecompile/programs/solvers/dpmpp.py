"""DPM-Solver++, multistep (Lu et al., arXiv 2211.01095, algorithm 2 and appendix B).

Interpolates the predicted data over half the logarithm of the signal-to-noise ratio.
"""

from __future__ import annotations

import math

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import Past, data_step, log_ratios, multistep, title
from eecompile.programs.tape import ChoiceAt, Prediction, Tape, Value


def dpmpp_2m(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; one evaluation per step; deterministic. As diffusers' ``midpoint``.

    Args:
        steps: number of steps, 1 to T; the first and the last are of first order.
    """
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    _record(tape, visited, 2)
    return tape.finish(title("dpmpp-2m", grid))


def dpmpp_3m(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    halved: bool = True,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """One evaluation per step; deterministic; three predictions per step.

    The first and last steps are of lower order, the last but one too where there are fewer
    than 15.

    Args:
        halved: take half the second derivative, as the authors' code and diffusers do,
            which is of second order; False is of third.
    """
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    _record(tape, visited, 3, 0.5 if halved else 1.0)
    return tape.finish(title("dpmpp-3m", grid, {"halved": halved}))


def _differences(data: Value, past: Past, places: list[float]) -> tuple[Value, Value | None]:
    """The first and second derivative of the data over the step, where it starts.

    By Newton's interpolation; the second is None from one former prediction alone.
    """
    slope = (past[0][1] - data) / places[0]
    if len(past) == 1:
        return slope, None
    former = (past[1][1] - past[0][1]) / (places[1] - places[0])
    bend = (former - slope) / places[1]
    return slope - places[0] * bend, 2 * bend


def _record(tape: Tape, visited: list[Point], order: int, share: float = 1.0) -> None:
    def step(now: Point, after: Point, prediction: Prediction, past: Past) -> Value:
        data = prediction.data
        state = data_step(tape.state, now, after, data)
        return state + correction(now, after, data, past, share=share) if past else state

    multistep(tape, visited, order, "data", lambda prediction: prediction.data, step)


def correction(
    now: Point,
    after: Point,
    data: Value,
    past: Past,
    *,
    rate: int = 1,
    share: float = 0.5,
    midpoint: bool = True,
) -> Value:
    """What the predicted data's change over the step adds.

    Args:
        now: where the step starts.
        after: where it ends.
        data: predicted now.
        past: one or two former predictions, newest first.
        rate: at which the state forgets over h: 1, or 2 in the reverse SDE.
        share: of the second derivative.
        midpoint: with one former prediction, take the slope's effect as half that of the
            whole step, rather than integrate it.
    """
    h, places = log_ratios(now, after, [point for point, _ in past])
    slope, bend = _differences(data, past, places)
    span = rate * h
    fresh = -math.expm1(-span)
    first, second = 1 - fresh / span, 0.5 - (span - fresh) / span**2
    if bend is None:
        return after.alpha * (fresh / 2 if midpoint else first) * slope
    return after.alpha * (first * slope + (share * second) * bend)
