"""What a schedule is predicted to cost and to lose, without running it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eecompile.arrays import Floats
from eecompile.tune.choices import Slots
from eecompile.tune.influence import STALE, Errors, Influence
from eecompile.tune.optimise import Reuse, SlotTable


class Costs(NamedTuple):
    """Time, as shares of what full depth takes.

    Attributes:
        start: of what happens once a sampling.
        steps: of each step and choice, [E, C].
        reuse: of a step that evaluates nothing, [E].
    """

    start: float
    steps: Floats
    reuse: Floats


class Model:
    """Predicts the cost and the distance of the choices in each slot.

    Attributes:
        table: for the optimiser, whose costs are without :attr:`start`.
        start: share of time that no choice changes.
        alone: distance that each local error leads to by itself, [E, W].
    """

    def __init__(
        self,
        slots: Slots,
        costs: Costs,
        errors: Errors,
        influence: Influence,
        depths: Sequence[int],
        *,
        reuse: bool,
        monotone: bool = False,
    ) -> None:
        self.slots, self.start = slots, costs.start
        self._ratios, self._choices = influence.ratios, len(depths)
        self.alone = errors.sizes * influence.ratios  # [E, W]
        alone = self.alone.ravel()
        self._products = errors.cosines * np.outer(alone, alone)
        self._sizes, self._ways = errors.sizes, errors.sizes.shape[1]
        by_step = np.zeros((len(errors.sizes), len(depths)))
        by_step[:, 1:] = self.alone[:, : len(depths) - 1]
        by_step[:, list(errors.broken)] = np.inf
        steps = [list(found) for found in slots.steps]
        self.table = SlotTable(
            np.array([costs.steps[found].sum(axis=0) for found in steps]),
            np.array([by_step[found].sum(axis=0) for found in steps]),
            tuple(depths),
            self._reuse(costs) if reuse else None,
            monotone,
        )

    def _reuse(self, costs: Costs) -> Reuse:
        """Errors of a former output: that it is old, and those it had when it was new."""
        steps = self.slots.steps
        errors = np.full((len(steps), STALE, self._choices), np.inf)
        for slot, found in enumerate(steps):
            for stale in range(STALE - len(found) + 1):
                errors[slot, stale] = 0.0
                for later, step in enumerate(found):
                    age = stale + later + 1
                    source = step - age
                    if source < 0:
                        errors[slot, stale] = np.inf
                        break
                    way = self._choices - 1 + age - 1
                    errors[slot, stale] += self.alone[step, way]
                    own = self._sizes[source, : self._choices - 1]
                    errors[slot, stale, 1:] += own * self._ratios[step, : self._choices - 1]
        share = np.array([costs.reuse[list(found)].sum() for found in steps])
        return Reuse(share, errors, tuple(map(len, steps)))

    def cost(self, picks: Sequence[int]) -> float:
        """Predicted time as a share of full depth's."""
        reuse = self.table.reuse
        found = self.start
        for slot, pick in enumerate(picks):
            if pick == self.table.again:
                assert reuse is not None
                found += float(reuse.costs[slot])
            else:
                found += float(self.table.costs[slot, pick])
        return found

    def distance(self, picks: Sequence[int]) -> float:
        """Predicted distance of the samples to full depth's, RMS."""
        weights = self._weights(picks)
        own = np.flatnonzero(weights)
        part = weights[own]
        square = float(part @ self._products[np.ix_(own, own)] @ part)
        return math.sqrt(max(0.0, square))

    def _weights(self, picks: Sequence[int]) -> Floats:
        """How often each local error occurs, [E W]."""
        made = np.zeros((len(self._sizes), self._ways))
        pick_of = {step: pick for found, pick in zip(self.slots.steps, picks, strict=True)
                   for step in found}  # fmt: skip
        source = 0
        for step in range(len(made)):
            pick = pick_of[step]
            if pick != self.table.again:
                source = step
                if pick:
                    made[step, pick - 1] += 1.0
                continue
            made[step, self._choices - 1 + min(step - source, STALE) - 1] += 1.0
            if before := pick_of[source]:
                way = before - 1
                made[source, way] += self._ratios[step, way] / self._ratios[source, way]
        return made.ravel()
