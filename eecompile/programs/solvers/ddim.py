"""DDIM (Song et al., arXiv 2010.02502, equations 12 and 16)."""

from __future__ import annotations

import math

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import check_number, intervals, title
from eecompile.programs.tape import ChoiceAt, Tape


def posterior(now: Point, after: Point) -> tuple[float, float]:
    """Variances of a reverse step: its lower and its upper bound.

    arXiv 2006.11239, equation 7 and section 3.2, for any alpha and sigma as in arXiv
    2107.00630, appendix A.2. The upper one is what the forward process adds from
    ``after`` to ``now``.
    """
    scale = now.alpha / after.alpha
    upper = now.sigma**2 - (scale * after.sigma) ** 2
    return upper * (after.sigma / now.sigma) ** 2, upper


def ddim(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    eta: float = 0.0,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """First order; one evaluation per step; deterministic at ``eta`` 0.

    Args:
        eta: share of DDPM's noise, 0 to 1.
        clip: bounds of the predicted data, or None. The predicted noise follows the
            clipped data (diffusers: ``use_clipped_model_output=True``).
    """
    check_number("eta", eta, 0, 1)
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    for now, after in intervals(visited):
        predicted = tape.evaluate(tape.state, now)
        spread = eta * math.sqrt(posterior(now, after)[0])
        direction = math.sqrt(max(after.sigma**2 - spread**2, 0.0))
        state = after.alpha * predicted.data + direction * predicted.noise
        tape.advance(state + spread * tape.noise() if spread else state)
    return tape.finish(title("ddim", grid, {"eta": f"{eta:g}"}))
