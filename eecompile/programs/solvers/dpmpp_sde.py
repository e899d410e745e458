"""SDE-DPM-Solver++, multistep (Lu et al., arXiv 2211.01095, section 5 and appendix B).

The same interpolation of the predicted data as in :mod:`.dpmpp`, in the reverse diffusion
SDE: half of the noise comes anew in each step. The paper has two predictions per step; three
are k-diffusion's (``sample_dpmpp_3m_sde``).
"""

from __future__ import annotations

import math

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import Past, multistep, title
from eecompile.programs.solvers.dpmpp import correction
from eecompile.programs.tape import ChoiceAt, Prediction, Tape, Value


def dpmpp_2m_sde(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Stochastic; one evaluation per step; two predictions per step.

    Args:
        steps: number of steps, 1 to T; the first and the last read one prediction.
    """
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    _record(tape, visited, 2, midpoint=True)
    return tape.finish(title("dpmpp-2m-sde", grid))


def dpmpp_3m_sde(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Stochastic; one evaluation per step; three predictions per step.

    k-diffusion's at ``eta`` 1, step by step: the first and last read one prediction, the
    second two, whose slope it integrates, all others three, of whose second derivative it
    takes half (see :func:`.dpmpp.dpmpp_3m`). Diffusers differs in all of these but the first
    and last.
    """
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    _record(tape, visited, 3, midpoint=False)
    return tape.finish(title("dpmpp-3m-sde", grid))


def _record(tape: Tape, visited: list[Point], order: int, *, midpoint: bool) -> None:
    def step(now: Point, after: Point, prediction: Prediction, past: Past) -> Value:
        data = prediction.data
        # exp(-h), finite where h is not
        shrink = after.sigma * now.alpha / (after.alpha * now.sigma)
        fresh = 1 - shrink**2
        state = (after.sigma / now.sigma * shrink) * tape.state + (after.alpha * fresh) * data
        if past:
            state += correction(now, after, data, past, rate=2, midpoint=midpoint)
        if after.sigma:
            state += (after.sigma * math.sqrt(fresh)) * tape.noise()
        return state

    multistep(tape, visited, order, "data", lambda prediction: prediction.data, step, few=0)
