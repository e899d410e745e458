"""F-PNDM, the pseudo linear multistep method of four predictions.

Liu et al., arXiv 2202.09778, equations 11 to 13 and algorithm 2; its first three steps
are the pseudo Runge-Kutta method's.
"""

from __future__ import annotations

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import require, title
from eecompile.programs.solvers.pndm import FAMILIES, predicted, record, transfer
from eecompile.programs.tape import ChoiceAt, Tape, Value


def f_pndm(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; one evaluation per step, four in the first three; deterministic.

    As diffusers' PNDMScheduler with ``skip_prk_steps=False``. With three steps or fewer
    the last, which ends at the data, is a multistep one of lower order. Arguments are those
    of :func:`.pndm.pndm`.
    """
    require(process, "f-pndm", FAMILIES)
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    record(tape, visited, 4, 3, _runge_kutta)
    return tape.finish(title("f-pndm", grid))


def _runge_kutta(tape: Tape, now: Point, after: Point, first: Value) -> Value:
    """The mean prediction over the step, by the classical method's four evaluations."""
    middle, start = tape.process.at((now.time + after.time) / 2), tape.state

    def at(point: Point, slope: Value) -> Value:
        return predicted(tape, transfer(tape, start, now, point, slope), point)

    second = tape.keep(at(middle, first), "second")
    third = tape.keep(at(middle, second), "third")
    fourth = at(after, third)
    return (first + 2 * second + 2 * third + fourth) / 6
