"""Heun's method on the probability flow (Karras et al., arXiv 2206.00364).

Algorithm 1, or with churn algorithm 2, in ``state / alpha`` over ``sigma / alpha``.
"""

from __future__ import annotations

import math

from eecompile.errors import UsageError
from eecompile.programs.grids import Grid, points
from eecompile.programs.process import DATA, Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import check_number, first_step, noise_step, require, title
from eecompile.programs.tape import ChoiceAt, Tape, Value


def heun(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_scale: float = 1.0,
    grid: Grid = "karras",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; two evaluations a step, one in the last; deterministic without churn.

    Args:
        process: of family diffusion or edm.
        churn: noise added on the way, over all steps (S_churn in the paper). None is
            added before the first step, which starts from noise.
        churn_range: ``sigma / alpha`` within which it is (S_tmin, S_tmax).
        churn_scale: deviation of that noise, about 1 (S_noise).
    """
    require(process, "heun", ("diffusion", "edm"))
    check_number("churn", churn, 0, math.inf)
    check_number("churn_scale", churn_scale, 0, math.inf)
    low, high = churn_range
    if not low <= high:
        raise UsageError(
            found=f"churn_range {[low, high]}", expected="two ascending bounds", remedy="swap them"
        )
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    now = visited[0]
    for after in [*visited[1:], DATA]:
        state = _step(tape, now, after)
        now = after
        if churn and after.sigma and low <= after.ratio <= high:
            more = min(churn / steps, math.sqrt(2) - 1)
            now = process.at_ratio(after.ratio * (1 + more))
            added = churn_scale * math.sqrt(max(now.ratio**2 - after.ratio**2, 0.0))
            state = now.alpha * (state / after.alpha + added * tape.noise())
        tape.advance(state)
    options = {"churn": f"{churn:g}"} if churn else {}
    return tape.finish(title("heun", grid, options))


def _step(tape: Tape, now: Point, after: Point) -> Value:
    prediction = tape.evaluate(tape.state, now)
    if not after.sigma or not now.alpha:  # the slope is of sigma / alpha
        return first_step(prediction, after)
    slope = tape.keep(prediction.noise, "slope")
    guess = noise_step(tape.state, now, after, slope)
    mean = (slope + tape.evaluate(guess, after).noise) / 2
    return noise_step(tape.state, now, after, mean)
