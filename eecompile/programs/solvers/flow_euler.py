"""Euler's method on a rectified flow (Liu et al., arXiv 2209.03003, section 2.1).

A straight line along the velocity, noise minus data: on a flow, where alpha and sigma are
linear in time, the line along which one prediction holds.
"""

from __future__ import annotations

import msgspec

from eecompile.programs.grids import Grid
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import require, title
from eecompile.programs.solvers.euler import euler
from eecompile.programs.tape import ChoiceAt


def flow_euler(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """First order; one evaluation per step; deterministic; for processes of family flow."""
    require(process, "flow-euler", ("flow",))
    program = euler(process, steps, choice_at, grid=grid, clip=clip)
    return msgspec.structs.replace(program, solver=title("flow-euler", grid))
