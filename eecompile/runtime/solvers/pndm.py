"""PNDM with a linear multistep start (Liu et al., arXiv 2202.09778, equations 11 to 13).

The variant without Runge-Kutta steps, called PLMS, which latent diffusion made common.
"""

from __future__ import annotations

from eecompile.runtime.grids import Grid, points
from eecompile.runtime.process import Family, Point, Process
from eecompile.runtime.program import Program
from eecompile.runtime.solvers._common import (
    DepthAt,
    intervals,
    noise_step,
    require,
    title,
)
from eecompile.runtime.tape import Tape, Value

__all__ = ["FAMILIES", "averaged", "pndm", "record"]

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
    depth_at: DepthAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; one evaluation a step, two in the first; deterministic.

    Four predictions a step. As diffusers' PNDMScheduler with ``skip_prk_steps=True``.

    Args:
        process: of family diffusion or edm.
        steps: number of steps, 1 to T.
        depth_at: the depth for a time.
        grid: the moments to visit; the method takes them for evenly spaced in time.
        clip: bounds of the predicted data, or None.

    Raises:
        UsageError: ``steps`` or ``grid`` is out of range, or the family is another.
    """
    require(process, "pndm", FAMILIES)
    visited = points(process, steps, grid)
    tape = Tape(process, depth_at, visited[0], clip)
    record(tape, visited, 4)
    return tape.finish(title("pndm", grid))


def record(tape: Tape, visited: list[Point], order: int) -> None:
    """Record steps of the linear multistep method, the first by improved Euler."""
    past: list[Value] = []
    for index, (now, after) in enumerate(intervals(visited)):
        noise = tape.keep(tape.evaluate(tape.state, now).noise, "slope")
        past = [noise, *past][:order]
        if index == 0 and after.sigma:
            guess = noise_step(tape.state, now, after, noise)
            mean = (noise + tape.evaluate(guess, after).noise) / 2
        else:
            mean = averaged(past)
        tape.advance(noise_step(tape.state, now, after, mean))


def averaged(past: list[Value]) -> Value:
    """The mean noise over the next step, extrapolated from former ones, newest first."""
    total = Value({})
    for value, weight in zip(past, _WEIGHTS[len(past) - 1], strict=True):
        total += weight * value
    return total
