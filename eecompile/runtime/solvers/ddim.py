"""DDIM (Song et al., arXiv 2010.02502, equations 12 and 16)."""

from __future__ import annotations

import math

from eecompile.errors import UsageError
from eecompile.runtime.process import Process
from eecompile.runtime.program import Program, Step, Term, Update
from eecompile.runtime.solvers._common import (
    DepthAt,
    Spacing,
    data_update,
    timesteps_for,
)

__all__ = ["ddim"]


def ddim(
    process: Process,
    steps: int,
    depth_at: DepthAt,
    *,
    eta: float = 0.0,
    spacing: Spacing = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """First order; one evaluation a step; deterministic at ``eta`` 0.

    Args:
        process: the forward process that the network was trained for.
        steps: number of steps, 1 to T.
        depth_at: the depth for a timestep.
        eta: share of DDPM's noise, 0 to 1.
        spacing: how the steps are spread over time.
        clip: bounds of the predicted data, or None. The predicted noise follows the
            clipped data (diffusers: ``use_clipped_model_output=True``).

    Raises:
        UsageError: ``eta``, ``steps`` or ``spacing`` is out of range.
    """
    if not 0 <= eta <= 1:
        raise UsageError(
            found=f"eta {eta}", expected="0 to 1", remedy="0 is deterministic, 1 is as DDPM"
        )
    table = process.alpha_bar()
    visited = timesteps_for(process, steps, spacing)
    program = []
    for timestep, following in zip(visited, [*visited[1:], None], strict=True):
        now = float(table[timestep])
        after = 1.0 if following is None else float(table[following])
        sigma = eta * math.sqrt((1 - after) / (1 - now) * (1 - now / after))
        direction = math.sqrt(max(1 - after - sigma**2, 0.0))
        # The noise that leads from the predicted data to the state; from the clipped data,
        # so that the two stay consistent (else clipping under guidance bends the path).
        ratio = direction / math.sqrt(1 - now)
        terms: tuple[Term, ...] = (
            Term("data", math.sqrt(after) - ratio * math.sqrt(now)),
            Term("state", ratio),
        )
        if sigma > 0:
            terms += (Term("noise", sigma),)
        updates = (data_update(process, now, clip), Update("state", terms))
        program.append(Step(depth_at(timestep), timestep, (Term("state", 1.0),), updates))
    return Program(solver=f"ddim(eta={eta:g}, {spacing})", initial=1.0, steps=tuple(program))
