"""DDPM's ancestral sampling (Ho et al., arXiv 2006.11239, equations 6 and 7).

With a learned variance as in Nichol and Dhariwal, arXiv 2102.09672, equation 15.
"""

from __future__ import annotations

import math

from eecompile.runtime.process import Process
from eecompile.runtime.program import Program, Step, Term, Update
from eecompile.runtime.solvers._common import DepthAt, Spacing, data_update, timesteps_for

__all__ = ["ddpm"]


def ddpm(
    process: Process,
    steps: int,
    depth_at: DepthAt,
    *,
    spacing: Spacing = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Stochastic; one evaluation a step; on fewer than T steps, the respaced process.

    Args:
        process: the forward process that the network was trained for; its
            ``variance`` chooses the reverse steps' variance.
        steps: number of steps, 1 to T.
        depth_at: the depth for a timestep.
        spacing: how the steps are spread over time.
        clip: bounds of the predicted data, or None.
    """
    table = process.alpha_bar()
    visited = timesteps_for(process, steps, spacing)
    program = []
    for timestep, following in zip(visited, [*visited[1:], None], strict=True):
        now = float(table[timestep])
        after = 1.0 if following is None else float(table[following])
        beta = 1 - now / after
        terms: tuple[Term, ...] = (
            Term("data", math.sqrt(after) * beta / (1 - now)),
            Term("state", math.sqrt(1 - beta) * (1 - after) / (1 - now)),
        )
        bounds = None
        if following is not None:
            lower = (1 - after) / (1 - now) * beta
            if process.variance == "learned_range":
                bounds = math.log(lower), math.log(beta)
            scale = {"fixed_small": math.sqrt(lower), "fixed_large": math.sqrt(beta)}
            terms += (Term("noise", scale.get(process.variance, 1.0)),)
        updates = (data_update(process, now, clip), Update("state", terms))
        step = Step(depth_at(timestep), timestep, (Term("state", 1.0),), updates, bounds)
        program.append(step)
    return Program(solver=f"ddpm({process.variance}, {spacing})", initial=1.0, steps=tuple(program))
