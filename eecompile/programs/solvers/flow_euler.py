"""Euler's method on a rectified flow (Liu et al., arXiv 2209.03003, section 2.1).

A straight line along the velocity, noise minus data: on a flow, where alpha and sigma are
linear in time, the line along which one prediction holds.
"""

from __future__ import annotations

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import first_step, intervals, require, title
from eecompile.programs.tape import ChoiceAt, Tape


def flow_euler(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """First order; one evaluation a step; deterministic.

    Args:
        process: of family flow.
    """
    require(process, "flow-euler", ("flow",))
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    for now, after in intervals(visited):
        tape.advance(first_step(tape.evaluate(tape.state, now), after))
    return tape.finish(title("flow-euler", grid))
