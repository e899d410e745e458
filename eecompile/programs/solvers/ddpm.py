"""DDPM's ancestral sampling (Ho et al., arXiv 2006.11239, equations 6 and 7).

With a learned variance as in Nichol and Dhariwal, arXiv 2102.09672, equation 15. For
processes other than diffusion, the reverse step of arXiv 2107.00630, appendix A.2.
"""

from __future__ import annotations

import math

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import intervals, title
from eecompile.programs.solvers.ddim import posterior
from eecompile.programs.tape import ChoiceAt, Tape


def ddpm(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Stochastic; one evaluation per step; on fewer than T steps, the respaced process.

    Args:
        process: of any family; its ``variance`` chooses the reverse steps' variance.
    """
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    variance = process.variance if process.family == "diffusion" else "fixed_small"
    for now, after in intervals(visited):
        data = tape.evaluate(tape.state, now).data
        lower, upper = posterior(now, after)
        kept = (now.alpha / after.alpha) * (after.sigma / now.sigma) ** 2
        state = (after.alpha * upper / now.sigma**2) * data + kept * tape.state
        if after.sigma:
            learned = variance == "learned_range"
            noise = tape.noise((math.log(lower), math.log(upper)) if learned else None)
            scale = {"fixed_small": math.sqrt(lower), "fixed_large": math.sqrt(upper)}
            state += scale.get(variance, 1.0) * noise
        tape.advance(state)
    return tape.finish(title("ddpm", grid, {"variance": variance}))
