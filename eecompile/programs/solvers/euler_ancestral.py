"""Euler's method with ancestral noise (k-diffusion; in Karras' variables).

A step of Euler's to less noise than the next moment has, and fresh noise for the rest: the
variance of arXiv 2010.02502, equation 16, of which ``eta`` is the share.
"""

from __future__ import annotations

import math

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import check_number, intervals, title
from eecompile.programs.tape import ChoiceAt, Tape


def euler_ancestral(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    eta: float = 1.0,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Stochastic; one evaluation per step; at ``eta`` 1 as DDPM with ``fixed_small``.

    Args:
        eta: share of DDPM's noise, 0 to 1.
    """
    check_number("eta", eta, 0, 1)
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    for now, after in intervals(visited):
        predicted = tape.evaluate(tape.state, now)
        up = eta * after.ratio * math.sqrt(1 - (after.ratio / now.ratio) ** 2)
        down = math.sqrt(max(after.ratio**2 - up**2, 0.0))
        state = after.alpha * (predicted.data + down * predicted.noise)
        tape.advance(state + (after.alpha * up) * tape.noise() if up else state)
    return tape.finish(title("euler-ancestral", grid, {"eta": f"{eta:g}"}))
