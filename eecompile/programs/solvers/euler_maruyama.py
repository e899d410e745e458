"""Euler and Maruyama's method on the reverse diffusion SDE.

Song et al., arXiv 2011.13456, equation 6 with the variance-preserving SDE of equation 11:
the sampler of U-ViT (arXiv 2209.12152) and so of the ASE paper. One unit of time is one
timestep. For betas that are ``continuous``, the rate beta(t) is the SDE's own, and the data
lies at t = 0: theirs exactly. For a table of betas, the rate is the slope of
``-ln(alpha_bar)`` over the timesteps, by central differences (one-sided at the table's ends),
linear in between, and the data lies one timestep before t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from eecompile.errors import UsageError
from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import intervals, require, title
from eecompile.programs.tape import ChoiceAt, Tape


def euler_maruyama(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "linspace",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Stochastic; one evaluation per step; wants hundreds of steps.

    Args:
        process: of family diffusion.
        steps: number of steps, 1 to T. The last one, which ends at the data, adds no noise.
    """
    require(process, "euler-maruyama", ("diffusion",))
    if not process.last.alpha:
        raise UsageError(
            found="solver 'euler-maruyama' for a process with zero_terminal_snr",
            expected="a process whose rate is finite at its last timestep",
            remedy="choose another solver, such as ddpm",
        )
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    rate, end = (process.rate, 0.0) if process.betas == "continuous" else (_tabled(process), -1.0)
    for now, after in intervals(visited):
        noise = tape.evaluate(tape.state, now).noise
        beta = rate(now.time)
        span = now.time - (after.time if after.sigma else end)
        state = (1 + beta * span / 2) * tape.state - (beta * span / now.sigma) * noise
        tape.advance(state + math.sqrt(beta * span) * tape.noise() if after.sigma else state)
    return tape.finish(title("euler-maruyama", grid))


def _tabled(process: Process) -> Callable[[float], float]:
    """The rate of a process that has a table of betas."""
    table = -np.log(process.alpha_bar())
    rates = np.gradient(table) if len(table) > 1 else table
    return lambda time: float(np.interp(time, np.arange(len(rates)), rates))
