"""The nearest schedules within every budget, as predicted, by lists of partial ones.

Lists of partial solutions that no other beats, after Nemhauser and Ullmann ("Discrete dynamic
programming and capital allocation", Management Science 15, 1969): step by step, each is extended
by every choice; of those that later steps can tell apart only by cost and distance, the better
ones stay. Two things make these lists approximate. What later steps add has an angle to what
earlier ones have added, so that the nearer of two need not remain so; and the lists are
bounded: as many stay of each share of the cost.
"""

from __future__ import annotations

import numpy as np

from eecompile.arrays import Floats
from eecompile.interrupt import check
from eecompile.tune.model import Indices, Model, Paths, Picks, joined

_SHARES = 256  # of the time of full depth, by which partial solutions are grouped
_WIDTH = 64  # that stay in each
_ALIKE = 8  # of these, from the same sources
_SAME = 1e-9  # costs that differ by less than this share are equal


class Found:
    """Schedules for every budget.

    Attributes:
        costs: of each, as a share of full depth's time, [N].
        distances: predicted, [N].
    """

    def __init__(self, paths: Paths) -> None:
        self._picks = paths.picks
        self.costs: Floats = paths.costs
        self.distances: Floats = paths.distances

    def best(self, budget: float, count: int = 1) -> list[Picks]:
        """The nearest within a budget; fewer than ``count`` where there are no more."""
        within = np.flatnonzero(self.costs <= budget * (1 + _SAME))
        order = within[np.lexsort((self.costs[within], self.distances[within]))]
        return [tuple(self._picks[row].tolist()) for row in order[:count]]


def found(
    model: Model, *, limit: float = np.inf, shares: int = _SHARES, width: int = _WIDTH
) -> Found:
    """The nearest schedules, but those that cost more than ``limit``."""
    steps = model.costs.steps
    ahead = np.append(np.cumsum(steps.min(axis=1)[::-1])[::-1][1:], 0.0)  # what later steps cost
    paths = model.begun()
    for step in range(len(steps)):
        check()
        most = limit * (1 + _SAME) - ahead[step]
        parts = []
        for pick in range(len(model.choices)):
            allowed = model.allows(paths, step, pick)
            rows = np.flatnonzero(allowed & (paths.costs + steps[step, pick] <= most))
            if len(rows):
                parts.append(model.extended(paths.take(rows), step, pick))
        if not parts:
            return Found(paths.take(np.zeros(0, np.intp)))
        paths = joined(parts)
        paths = paths.take(_kept(paths, shares, width))
    return Found(paths)


def _kept(paths: Paths, shares: int, width: int) -> Indices:
    """Which partial solutions stay."""
    distances = paths.distances
    groups = np.floor(paths.costs * shares * (1 + _SAME)).astype(np.int64)
    state = np.hstack([each.steps for each in paths.sources.values()]).astype(np.uint64)
    odd = np.uint64(0x9E3779B97F4A7C15)
    codes = np.zeros(len(state), np.uint64)
    for column in state.T:
        codes = (codes ^ column) * odd
    order = np.lexsort((paths.costs, distances, codes, groups))
    order = order[_rank(groups[order], codes[order]) < _ALIKE]
    order = order[np.lexsort((distances[order], groups[order]))]
    nearest: Indices = order[_rank(groups[order]) < width]
    # The cheapest, too, so that a budget that can be met is met.
    kept: Indices = np.union1d(nearest, np.argmin(paths.costs))
    return kept


def _rank(*keys: np.ndarray) -> Indices:
    """The place of each element among those of equal keys, which follow one another."""
    changes = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    starts = np.append(0, np.flatnonzero(changes) + 1)
    sizes = np.diff(np.append(starts, len(keys[0])))
    ranks: Indices = np.arange(len(keys[0])) - np.repeat(starts, sizes)
    return ranks
