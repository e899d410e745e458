"""LCM's multistep consistency sampling (Luo et al., arXiv 2310.04378, section 4).

The consistency function is that of diffusers' LCMScheduler: section 4.1 with the scalings
of arXiv 2303.01469, appendix C, for sigma_data 0.5 and ten times the timestep.
"""

from __future__ import annotations

import math

from eecompile.errors import UsageError
from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import intervals, require, title
from eecompile.programs.tape import ChoiceAt, Tape

_SIGMA_DATA = 0.5
_TIME_SCALE = 10.0


def lcm(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    distilled: int = 50,
    grid: Grid | None = None,
    clip: tuple[float, float] | None = None,
) -> Program:
    """Stochastic beyond one step; one evaluation per step; for distilled networks.

    Args:
        process: of family diffusion.
        steps: number of steps; 1 to ``distilled``, or to T with a grid.
        distilled: number of times at which the network was distilled, 1 to T.
        grid: the moments to visit; None takes some of those times, evenly, from the last.
    """
    require(process, "lcm", ("diffusion",))
    times = _times(process.timesteps, steps, distilled) if grid is None else grid
    visited = points(process, steps, times)
    tape = Tape(process, choice_at, visited[0], clip)
    for now, after in intervals(visited):
        scaled = _TIME_SCALE * now.time
        root = math.hypot(scaled, _SIGMA_DATA)
        data = tape.evaluate(tape.state, now).data
        found = (scaled / root) * data + (_SIGMA_DATA / root) ** 2 * tape.state
        again = after.alpha * found
        tape.advance(again + after.sigma * tape.noise() if after.sigma else again)
    return tape.finish(title("lcm", "distilled" if grid is None else grid))


def _times(timesteps: int, steps: int, distilled: int) -> list[float]:
    if not 1 <= distilled <= timesteps:
        raise UsageError(
            found=f"distilled {distilled}",
            expected=f"1 to {timesteps}, the network's number of timesteps",
            remedy="give the number of times at which the network was distilled",
        )
    if not 1 <= steps <= distilled:
        raise UsageError(
            found=f"{steps} steps",
            expected=f"1 to {distilled}, the times at which the network was distilled",
            remedy="choose another number of steps, or name a grid",
        )
    stride = timesteps // distilled
    known = [stride * (index + 1) - 1.0 for index in reversed(range(distilled))]
    return [known[index * distilled // steps] for index in range(steps)]
