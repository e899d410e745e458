"""S-PNDM, the second-order pseudo linear multistep method.

Liu et al., arXiv 2202.09778, equation 11 and appendix; its first step is the
pseudo improved Euler method's.
"""

from __future__ import annotations

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import require, title
from eecompile.programs.solvers.pndm import FAMILIES, improved_euler, record
from eecompile.programs.tape import ChoiceAt, Tape


def s_pndm(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; one evaluation per step, two in the first; deterministic.

    Arguments are those of :func:`.pndm.pndm`.
    """
    require(process, "s-pndm", FAMILIES)
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    record(tape, visited, 2, 1, improved_euler)
    return tape.finish(title("s-pndm", grid))
