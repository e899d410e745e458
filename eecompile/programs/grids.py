"""Time grids: at which moments of a process a solver evaluates the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from eecompile.errors import UsageError
from eecompile.programs.process import NOISIEST, Point, Process

GridName = Literal["trailing", "leading", "linspace", "uniform", "karras", "logsnr", "quadratic"]
Grid = GridName | Sequence[float]
_LEAST = 1e-3  # share of T at which the grids of flows and continuous diffusions end
GRIDS: tuple[GridName, ...] = get_args(GridName)


def points(process: Process, steps: int, grid: Grid) -> list[Point]:
    """The moments to visit, from noise to data; the end (data) is not among them.

    Args:
        process: the network's.
        steps: how many, 1 to T.
        grid: by name, all over t within [0, T): ``trailing`` starts at the end of time,
            ``leading`` ends at 0, ``linspace`` does both (arXiv 2305.08891, table 2; a
            diffusion's are whole timesteps, unless its betas are continuous; then, and of
            a flow, they end at T / 1000, where there is some noise); ``uniform`` is
            ``linspace`` of one more, without its end; ``quadratic`` grows with the square of t
            (arXiv 2010.02502, appendix D.2); ``karras`` is even in
            ``(sigma / alpha) ** (1 / 7)`` (arXiv 2206.00364, equation 5); ``logsnr`` in
            its logarithm (arXiv 2206.00927, section 3.4). Or the times themselves,
            descending. A flow's are shifted by ``process.shift``, unless they are given.

    Raises:
        UsageError: ``steps`` is out of range, or the grid is unknown or does not descend
            within [0, T].
    """
    total = process.timesteps
    if not 1 <= steps <= total:
        raise UsageError(
            found=f"{steps} steps",
            expected=f"1 to {total}, the network's number of timesteps",
            remedy="choose another number of steps",
        )
    if not isinstance(grid, str):
        return _given(process, steps, grid)
    if grid not in GRIDS:
        raise UsageError(
            found=f"time grid {grid!r}",
            expected=f"one of {list(GRIDS)}, or a list of times",
            remedy="choose one of these",
        )
    if grid in ("karras", "logsnr"):
        return _by_ratio(process, steps, grid)
    if process.family == "diffusion" and process.betas != "continuous":
        return [process.at(time) for time in _whole(total, steps, grid)]
    shares = _shares(steps, grid, 0.0 if process.family == "edm" else _LEAST)
    if process.betas == "continuous" and grid in ("trailing", "quadratic"):
        least = process.at(0.0).time / max(process.last.time, 1.0)
        shares = [least + (1 - least) * share for share in shares]
    if process.family == "flow":
        shift = process.shift
        shares = [shift * share / (1 + (shift - 1) * share) for share in shares]
    return [process.at(process.last.time * share) for share in shares]


def _whole(total: int, steps: int, grid: str) -> list[int]:
    """Whole timesteps, all different."""
    if grid == "trailing":
        return [round(total - index * total / steps) - 1 for index in range(steps)]
    if grid == "leading":
        return [index * (total // steps) for index in reversed(range(steps))]
    last = total - 1
    exact = np.linspace(0, 1, steps) if steps > 1 else np.ones(1)
    if grid == "uniform":
        exact = np.linspace(0, 1, steps + 1)[1:]
    wanted = last * (exact**2 if grid == "quadratic" else exact)
    found = [round(t) for t in wanted]
    for index in range(1, steps):  # squares crowd near 0
        found[index] = max(found[index], found[index - 1] + 1)
    # Where there are nearly as many steps as timesteps, they crowd at the end, too.
    return [min(t, last - below) for below, t in enumerate(reversed(found))]


def _shares(steps: int, grid: str, least: float) -> list[float]:
    """Shares of T for processes in continuous time.

    ``least`` is the smallest: above 0 where t = 0 has no noise.
    """
    if grid == "trailing":
        return [1 - index / steps for index in range(steps)]
    if grid == "leading":
        return [least + (1 - least) * index / steps for index in reversed(range(steps))]
    if grid in ("linspace", "uniform"):
        count = steps if grid == "uniform" else max(steps - 1, 1)
        return [1 - index * (1 - least) / count for index in range(steps)]
    return [(1 - index / steps) ** 2 for index in range(steps)]


def _by_ratio(process: Process, steps: int, grid: str) -> list[Point]:
    first, last = process.at(0.0), process.last
    if process.family == "flow":  # where there is no noise, or no data, the ratio is no use
        first = process.at(_LEAST * process.timesteps)
        last = process.at((1 - _LEAST) * process.timesteps)
    if not last.alpha:
        last = process.at_ratio(NOISIEST)
    if steps == 1:
        return [last]
    if grid == "karras":
        low, high = first.ratio ** (1 / 7), last.ratio ** (1 / 7)
        ratios = [float(r) ** 7 for r in np.linspace(high, low, steps)]
    else:
        logs = np.linspace(math.log(last.ratio), math.log(first.ratio), steps)
        ratios = [math.exp(float(log)) for log in logs]
    # The ends themselves: their ratios, computed anew, would be off by rounding.
    return [last, *(process.at_ratio(ratio) for ratio in ratios[1:-1]), first]


def _given(process: Process, steps: int, times: Sequence[float]) -> list[Point]:
    found = [float(time) for time in times]
    low = _LEAST * 1e-3 * process.timesteps if process.family == "flow" else 0.0
    high = process.timesteps - (1 if process.family == "diffusion" else 0)
    inside = all(math.isfinite(time) and low <= time <= high for time in found)
    visited = [process.at(time) for time in found] if inside else []
    descending = all(after.time < before.time for before, after in pairwise(visited))
    if len(found) != steps or not inside or not descending:
        raise UsageError(
            found=f"a time grid of {len(found)} times for {steps} steps"
            + ("" if inside and descending else f", not descending within {low:g} to {high}"),
            expected=f"a time for each step, descending, within {low:g} to {high}",
            remedy="fix the grid, or name one",
        )
    return visited
