"""Heun's method on a rectified flow (Liu et al., arXiv 2209.03003, section 2.1).

The mean of the velocities, noise minus data, at both ends of a step.
"""

from __future__ import annotations

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import intervals, require, title
from eecompile.programs.tape import ChoiceAt, Tape


def flow_heun(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; two evaluations a step, one in the last; deterministic; for family flow."""
    require(process, "flow-heun", ("flow",))
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    for now, after in intervals(visited):
        predicted = tape.evaluate(tape.state, now)
        velocity, span = predicted.noise - predicted.data, after.sigma - now.sigma
        if after.sigma:
            velocity = tape.keep(velocity, "slope")
            predicted = tape.evaluate(tape.state + span * velocity, after)
            velocity = (velocity + predicted.noise - predicted.data) / 2
        tape.advance(tape.state + span * velocity)
    return tape.finish(title("flow-heun", grid))
