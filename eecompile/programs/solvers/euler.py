"""Euler's method on the probability flow (Karras et al., arXiv 2206.00364, algorithm 1).

The paper's, without its correction: a straight line in ``state / alpha`` over
``sigma / alpha``. Exactly DDIM without noise, whichever the family.
"""

from __future__ import annotations

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import first_step, intervals, title
from eecompile.programs.tape import ChoiceAt, Tape


def euler(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """First order; one evaluation per step; deterministic."""
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    for now, after in intervals(visited):
        tape.advance(first_step(tape.evaluate(tape.state, now), after))
    return tape.finish(title("euler", grid))
