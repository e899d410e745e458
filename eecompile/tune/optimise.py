"""The least sum of errors within a sum of costs: one choice for each slot of time.

The multiple-choice knapsack problem with real-valued costs, solved exactly by lists of
undominated partial solutions (Nemhauser and Ullmann, "Discrete dynamic programming and
capital allocation", Management Science 15, 1969). The lists hold the answer for every
budget at once, costs need not be rounded, and what a slot may choose can depend on what
earlier ones chose: each list then belongs to a mode. A Lagrangian hull would miss the
solutions between its corners, and could not look back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eecompile.arrays import Floats

Indices = NDArray[np.intp]
_SAME = 1e-12  # costs that differ by less than this share of the largest are equal


class Reuse(NamedTuple):
    """What it costs to use the previous output again.

    Attributes:
        costs: of each slot, [S].
        errors: [S, K, C]: in a slot that follows the use of choice c, whose output has been
            used for j evaluations since; K is the largest number of such evaluations.
        takes: evaluations of each slot, [S].
    """

    costs: Floats
    errors: Floats
    takes: tuple[int, ...]


class SlotTable(NamedTuple):
    """A problem: slots in the order in which they are evaluated.

    A solution picks for each slot the index of a choice, or :attr:`again`.

    Attributes:
        costs: of each slot and choice, [S, C].
        errors: of each slot and choice, [S, C]; infinite for what may not be chosen.
        depths: of each choice.
        reuse: None where every slot evaluates.
        monotone: depths never fall from one evaluating slot to the next.
    """

    costs: Floats
    errors: Floats
    depths: tuple[int, ...]
    reuse: Reuse | None = None
    monotone: bool = False

    @property
    def again(self) -> int:
        """The pick of a slot that uses the previous output again: the one after the choices."""
        return int(self.costs.shape[1])

    @property
    def picks(self) -> range:
        """What a slot may pick."""
        return range(self.again + (self.reuse is not None))

    def allows(self, picks: Sequence[int]) -> bool:
        """Whether these picks may be made."""
        return bool(np.isfinite(objective(self, picks)[1]))


class _Layer(NamedTuple):
    """Undominated partial solutions after a slot; ``parents`` index the layer before."""

    costs: Floats
    errors: Floats
    modes: Indices
    parents: Indices


class ParetoFront:
    """Every solution that no other beats in both sums, by ascending cost.

    Attributes:
        costs: [N], ascending.
        errors: [N], descending.
    """

    def __init__(self, layers: Sequence[_Layer], choices: int) -> None:
        self._layers, self._again = layers, choices
        last = layers[-1]
        self._order = _undominated(last.costs, last.errors)
        self.costs: Floats = last.costs[self._order]
        self.errors: Floats = last.errors[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def picks(self, index: int) -> tuple[int, ...]:
        """The pick of each slot in solution ``index``; see :class:`SlotTable`."""
        found, place = [], int(self._order[index])
        for layer in reversed(self._layers):
            mode, place = int(layer.modes[place]), int(layer.parents[place])
            found.append(min(mode, self._again))
        return tuple(reversed(found))

    def best(self, budget: float) -> tuple[int, ...] | None:
        """The choices with the least error whose cost is within ``budget``; None without any."""
        index = int(np.searchsorted(self.costs, budget * (1 + _SAME), side="right")) - 1
        return None if index < 0 else self.picks(index)


def front(table: SlotTable, *, limit: float = np.inf) -> ParetoFront:
    """All undominated solutions, but those that cost more than ``limit``."""
    slots, choices = table.costs.shape
    cheapest = table.costs.min(axis=1)
    if table.reuse is not None:
        cheapest[1:] = np.minimum(cheapest[1:], table.reuse.costs[1:])
    ahead = np.append(np.cumsum(cheapest[::-1])[::-1][1:], 0.0)  # what later slots cost at least
    nothing = np.zeros(1)
    layer = _Layer(nothing, nothing, np.full(1, -1), np.full(1, -1))
    layers: list[_Layer] = []
    for slot in range(slots):
        parts = [*_fresh(table, slot, layer), *_again(table, slot, layer)]
        joined = _Layer(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        within = joined.costs + ahead[slot] <= limit * (1 + _SAME)
        layer = _Layer(*(array[within & np.isfinite(joined.errors)] for array in joined))
        layers.append(layer)
    return ParetoFront(layers, choices)


def _fresh(table: SlotTable, slot: int, before: _Layer) -> Iterator[_Layer]:
    """Each choice after whatever may come before it. Mode c: the output is choice c's, new."""
    choices = table.costs.shape[1]
    depths = np.array(table.depths)
    reached = np.where(before.modes < 0, 0, depths[before.modes % choices])
    pools: dict[int, Indices] = {}
    for choice in range(choices):
        bound = table.depths[choice] if table.monotone else int(depths.max())
        if bound not in pools:
            allowed = np.flatnonzero(reached <= bound)
            kept = _undominated(before.costs[allowed], before.errors[allowed])
            pools[bound] = allowed[kept]
        pool = pools[bound]
        yield _Layer(
            before.costs[pool] + table.costs[slot, choice],
            before.errors[pool] + table.errors[slot, choice],
            np.full(len(pool), choice),
            pool,
        )


def _again(table: SlotTable, slot: int, before: _Layer) -> Iterator[_Layer]:
    """The previous output again. Mode c + j C: choice c's, used j evaluations since."""
    reuse = table.reuse
    if reuse is None or slot == 0:
        return
    choices, most, takes = table.costs.shape[1], reuse.errors.shape[1], reuse.takes[slot]
    for stale in range(most - takes + 1):
        for choice in range(choices):
            own = np.flatnonzero(before.modes == choice + stale * choices)
            yield _Layer(
                before.costs[own] + reuse.costs[slot],
                before.errors[own] + reuse.errors[slot, stale, choice],
                np.full(len(own), choice + (stale + takes) * choices),
                own,
            )


def _undominated(costs: Floats, errors: Floats) -> Indices:
    """Indices of the entries that no other beats, by ascending cost."""
    if not len(costs):
        return np.zeros(0, np.intp)
    order: Indices = np.lexsort((errors, costs))
    least = np.minimum.accumulate(errors[order])
    order = order[np.append(True, errors[order][1:] < least[:-1])]
    # Sums of the same costs in another order differ by rounding: of equals the last is best.
    steps = np.diff(costs[order])
    kept: Indices = order[np.append(steps > _SAME * float(costs[order[-1]]), True)]
    return kept


def objective(table: SlotTable, picks: Sequence[int]) -> tuple[float, float]:
    """Sums of cost and error of a solution; the error is infinite if it is not allowed."""
    cost = error = 0.0
    source, stale, depth = -1, 0, 0
    for slot, pick in enumerate(picks):
        if pick == table.again:
            reuse = table.reuse
            if reuse is None or source < 0 or stale + reuse.takes[slot] > reuse.errors.shape[1]:
                return np.inf, np.inf
            cost += float(reuse.costs[slot])
            error += float(reuse.errors[slot, stale, source])
            stale += reuse.takes[slot]
            continue
        if table.monotone and table.depths[pick] < depth:
            return np.inf, np.inf
        cost += float(table.costs[slot, pick])
        error += float(table.errors[slot, pick])
        source, stale, depth = pick, 0, table.depths[pick]
    return cost, error
