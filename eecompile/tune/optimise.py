"""The nearest schedules within every budget, as predicted, by lists of partial ones.

Lists of partial solutions that no other beats, after Nemhauser and Ullmann ("Discrete dynamic
programming and capital allocation", Management Science 15, 1969): step by step, each is extended
by every choice; of those that later steps can tell apart only by cost and distance, the better
ones stay. Two things make these lists approximate. What later steps add has an angle to what
earlier ones have added, so that the nearer of two need not remain so; and the lists are
bounded: as many stay of each share of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eecompile.arrays import Floats
from eecompile.interrupt import check
from eecompile.programs.choice import OUTPUT
from eecompile.tune.model import Indices, Model, Paths, Picks, codes_of, joined

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

    def best(self, budget: float, count: int = 1, without: Sequence[int] = ()) -> list[Picks]:
        """The nearest within a budget, ``without`` some picks; fewer where there are no more."""
        free = ~np.isin(self._picks, without).any(axis=1)
        within = np.flatnonzero((self.costs <= budget * (1 + _SAME)) & free)
        order = within[np.lexsort((self.costs[within], self.distances[within]))]
        return [tuple(self._picks[row].tolist()) for row in order[:count]]


def found(
    model: Model, *, limit: float = np.inf, shares: int = _SHARES, width: int = _WIDTH
) -> Found:
    """The nearest schedules, but those that cost more than ``limit``.

    Lists are made of exits and forecasts of predictions alone, and of all choices: the more
    choices there are, the sooner a list is full.
    """
    every = model.usable
    plain = [pick for pick in every if model.choices[pick].memory in (None, OUTPUT)]
    lists = [plain, every] if plain != every else [every]
    return Found(joined([_listed(model, picks, limit, shares, width) for picks in lists]))


def _listed(model: Model, picks: Sequence[int], limit: float, shares: int, width: int) -> Paths:
    """The nearest schedules of some choices."""
    steps = model.costs.steps[:, picks]
    ahead = np.append(np.cumsum(steps.min(axis=1)[::-1])[::-1][1:], 0.0)  # what later steps cost
    memories = {OUTPUT, *(model.choices[pick].memory for pick in picks)}
    paths = model.begun()
    for step in range(len(steps)):
        check()
        most = limit * (1 + _SAME) - ahead[step]
        parts = []
        for pick in picks:
            allowed = model.allows(paths, step, pick)
            dearer = paths.costs + model.costs.steps[step, pick]
            rows = np.flatnonzero(allowed & (dearer <= most))
            if len(rows):
                parts.append(model.extended(paths.take(rows), step, pick))
        if not parts:
            return paths.take(np.zeros(0, np.intp))
        paths = joined(parts)
        read = [each.steps for name, each in paths.sources.items() if name in memories]
        paths = paths.take(_kept(paths, codes_of(*read), shares, width))
    return paths


def _kept(paths: Paths, codes: NDArray[np.uint64], shares: int, width: int) -> Indices:
    """Which partial solutions stay; those of one code have the same sources."""
    distances = paths.distances
    groups = np.floor(paths.costs * shares * (1 + _SAME)).astype(np.int64)
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
