"""F-PNDM, the pseudo linear multistep method of four predictions.

Liu et al., arXiv 2202.09778, equations 11 to 13 and algorithm 2; its first three steps
are the pseudo Runge-Kutta method's.
"""

from __future__ import annotations

from eecompile.runtime.grids import Grid, points
from eecompile.runtime.process import Point, Process
from eecompile.runtime.program import Program
from eecompile.runtime.solvers._common import DepthAt, intervals, noise_step, require, title
from eecompile.runtime.solvers.pndm import FAMILIES, averaged
from eecompile.runtime.tape import Tape, Value

__all__ = ["f_pndm"]


def f_pndm(
    process: Process,
    steps: int,
    depth_at: DepthAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; one evaluation a step, four in the first three; deterministic.

    As diffusers' PNDMScheduler with ``skip_prk_steps=False``. With three steps or fewer
    the last, which ends at the data, is a multistep one of lower order.

    Args:
        process: of family diffusion or edm.
        steps: number of steps, 1 to T.
        depth_at: the depth for a time.
        grid: the moments to visit; the method takes them for evenly spaced in time.
        clip: bounds of the predicted data, or None.

    Raises:
        UsageError: ``steps`` or ``grid`` is out of range, or the family is another.
    """
    require(process, "f-pndm", FAMILIES)
    visited = points(process, steps, grid)
    tape = Tape(process, depth_at, visited[0], clip)
    past: list[Value] = []
    for index, (now, after) in enumerate(intervals(visited)):
        noise = tape.keep(tape.evaluate(tape.state, now).noise, "slope")
        past = [noise, *past][:4]
        runge_kutta = index < 3 and after.sigma > 0
        mean = _runge_kutta(tape, now, after, noise) if runge_kutta else averaged(past)
        tape.advance(noise_step(tape.state, now, after, mean))
    return tape.finish(title("f-pndm", grid))


def _runge_kutta(tape: Tape, now: Point, after: Point, first: Value) -> Value:
    """The mean noise over the step, by the classical method's four evaluations."""
    middle = tape.process.at((now.time + after.time) / 2)
    start = tape.state
    second = tape.keep(tape.evaluate(noise_step(start, now, middle, first), middle).noise, "second")
    third = tape.keep(tape.evaluate(noise_step(start, now, middle, second), middle).noise, "third")
    fourth = tape.evaluate(noise_step(start, now, after, third), after).noise
    return (first + 2 * second + 2 * third + fourth) / 6
