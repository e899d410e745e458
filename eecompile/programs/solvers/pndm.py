"""PNDM with a linear multistep start (Liu et al., arXiv 2202.09778, equations 11 to 13).

The variant without Runge-Kutta steps, called PLMS, which latent diffusion made common.
"""

from __future__ import annotations

from collections.abc import Callable

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Family, Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import (
    data_step,
    first_step,
    intervals,
    noise_step,
    require,
    title,
)
from eecompile.programs.tape import ChoiceAt, Prediction, Tape, Value

FAMILIES: tuple[Family, ...] = ("diffusion", "edm")
# Adams and Bashforth's weights, newest first.
_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; one evaluation per step, two in the first; deterministic.

    Four predictions per step. As diffusers' PNDMScheduler with ``skip_prk_steps=True``.

    Args:
        process: of family diffusion or edm.
        grid: the moments to visit; the method takes them for evenly spaced in time.
    """
    require(process, "pndm", FAMILIES)
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    record(tape, visited, 4, 1, improved_euler)
    return tape.finish(title("pndm", grid))


Start = Callable[[Tape, Point, Point, Value], Value]
"""The mean prediction over a step, by a method of one step; given the first prediction."""


def record(tape: Tape, visited: list[Point], order: int, starts: int, start: Start) -> None:
    """Record steps of the linear multistep method, the first ``starts`` by another method."""
    past: list[Value] = []
    for index, (now, after) in enumerate(intervals(visited)):
        slope = tape.keep(predicted(tape, tape.state, now), "slope")
        past = [slope, *past][:order]
        alone = index < starts and after.sigma > 0
        mean = start(tape, now, after, slope) if alone else _averaged(past)
        tape.advance(transfer(tape, tape.state, now, after, mean))


def improved_euler(tape: Tape, now: Point, after: Point, first: Value) -> Value:
    """The mean of the predictions at both ends of the step."""
    guess = transfer(tape, tape.state, now, after, first)
    return (first + predicted(tape, guess, after)) / 2


def predicted(tape: Tape, state: Value, now: Point) -> Value:
    """What the network predicts of ``state``, in its own terms, of which means are taken.

    Means of the noise that a velocity stands for would be multiplied by sigma / alpha,
    which is huge where there is hardly any data.
    """
    data, noise = tape.evaluate(state, now)
    if tape.process.prediction == "sample":
        return data
    if _is_velocity(tape.process):
        return now.alpha * noise - now.sigma * data
    return noise


def transfer(tape: Tape, state: Value, now: Point, after: Point, mean: Value) -> Value:
    """The state at ``after``, if the network predicted ``mean`` at ``now``."""
    if tape.process.prediction == "sample":
        return data_step(state, now, after, mean)
    if _is_velocity(tape.process):
        data, noise = now.alpha * state - now.sigma * mean, now.sigma * state + now.alpha * mean
        return first_step(Prediction(data, noise), after)
    return noise_step(state, now, after, mean)


def _is_velocity(process: Process) -> bool:
    """Whether the network predicts v, of which alpha and sigma are sine and cosine."""
    return process.prediction == "v_prediction" and process.family == "diffusion"


def _averaged(past: list[Value]) -> Value:
    """The mean prediction over the next step, extrapolated from former ones, newest first."""
    total = Value({})
    for value, weight in zip(past, _WEIGHTS[len(past) - 1], strict=True):
        total += weight * value
    return total
