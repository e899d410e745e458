"""What a schedule is predicted to cost and to lose, without running it.

A schedule is assessed step by step. What each step's choice is off by, a vector, moves the samples
by its influence; the movements of all steps are summed::

    distance  =  | sum over steps k of  r_k e_k |

with r the ratio of :class:`eecompile.tune.influence.Influence`. A forecast is off by what its
sources, were they full depth's, extrapolate wrongly, and by what they were off by themselves,
times their weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eecompile.arrays import Floats
from eecompile.programs.choice import HIGHEST, OUTPUT, Choice
from eecompile.programs.forecasts import SAME, Weights, lagrange, variable
from eecompile.programs.program import Program
from eecompile.tune.additions import from_before
from eecompile.tune.choices import Slots, skipping
from eecompile.tune.influence import Influence, Recorded

Indices = NDArray[np.intp]
Picks = tuple[int, ...]
"""The choice in each slot, by index."""
_SOURCES = HIGHEST + 1  # that a forecast has at most
_UNSURE = 0.4  # of a step's movement: the share in a direction of its own


class Costs(NamedTuple):
    """Time, as shares of what full depth takes.

    Attributes:
        start: of what happens once a sampling.
        steps: of each step and choice, [E, K].
    """

    start: float
    steps: Floats


class Memory(Protocol):
    """What forecasts extrapolate, by :attr:`Choice.memory`."""

    def error(self, step: int, sources: Indices, weights: Floats) -> Floats:
        """What predictions are off by, [N, R], if the memory is extrapolated from exact sources.

        Args:
            step: that is forecast.
            sources: steps, for each of N forecasts, [N, J].
            weights: of what the sources made, [N, J].
        """


class Predictions:
    """The predictions themselves; see :class:`Memory`."""

    def __init__(self, predictions: Floats) -> None:
        self._predictions = predictions

    def error(self, step: int, sources: Indices, weights: Floats) -> Floats:
        """The extrapolated prediction less that of full depth."""
        made: Floats = -self._predictions[step]
        for source, weight in zip(sources.T, weights.T, strict=True):
            made = made + weight[:, None] * self._predictions[source]
        return made


class Additions:
    """What a span adds; see :class:`Memory`.

    From other steps than those just before, the prediction is off in the same direction, and as
    much farther as an extrapolated prediction would be: both change smoothly in one variable.

    Args:
        errors: by order, what predictions are off by from the steps just before, [E, R].
        predictions: full depth's.
        places: the variable of the polynomials at every step.
    """

    def __init__(
        self, errors: Mapping[int, Floats], predictions: Predictions, places: Sequence[float]
    ) -> None:
        self._errors, self._predictions = errors, predictions
        self._usual = {
            order: [
                self._length(step, from_before(step, order, places)) for step in range(len(own))
            ]
            for order, own in errors.items()
        }

    def error(self, step: int, sources: Indices, weights: Floats) -> Floats:
        """The error from the steps just before, scaled."""
        order = sources.shape[1] - 1
        lengths = np.linalg.norm(self._predictions.error(step, sources, weights), axis=1)
        usual = self._usual[order][step]
        scales = lengths / usual if usual else np.ones(len(lengths))
        return np.asarray(scales[:, None] * self._errors[order][step])

    def _length(self, step: int, made_of: Weights) -> float:
        """What an extrapolated prediction is off by; 0 from nothing."""
        if not made_of:
            return 0.0
        sources, weights = zip(*made_of, strict=True)
        error = self._predictions.error(step, np.array([sources]), np.array([weights]))
        return float(np.linalg.norm(error))


class Sources(NamedTuple):
    """The last steps that made a memory, the latest first, [N, 3].

    Attributes:
        steps: their indices; -1 for none.
        picks: what they chose.
        scales: what their predictions were off by, over what was recorded of that choice.
    """

    steps: Indices
    picks: Indices
    scales: Floats

    def take(self, rows: Indices) -> Sources:
        """Those of some schedules."""
        return Sources(self.steps[rows], self.picks[rows], self.scales[rows])


class Paths(NamedTuple):
    """N schedules up to a step.

    Attributes:
        picks: of each slot, -1 where it is open, [N, S].
        costs: so far, [N].
        moved: the samples, so far, [N, R].
        squares: sum of the squares of each step's movement, [N].
        depths: of the last evaluation, [N].
        sources: of each memory.
    """

    picks: NDArray[np.int16]
    costs: Floats
    moved: Floats
    squares: Floats
    depths: Indices
    sources: Mapping[str, Sources]

    def take(self, rows: Indices) -> Paths:
        """Some of them."""
        sources = {name: each.take(rows) for name, each in self.sources.items()}
        return Paths(
            self.picks[rows],
            self.costs[rows],
            self.moved[rows],
            self.squares[rows],
            self.depths[rows],
            sources,
        )

    @property
    def distances(self) -> Floats:
        """Predicted, of the samples to full depth's, RMS, [N]."""
        squares = np.square(self.moved).sum(axis=1) + _UNSURE**2 * self.squares
        return np.asarray(np.sqrt(squares))


def joined(parts: Sequence[Paths]) -> Paths:
    """All of them."""
    sources = {
        name: Sources(*map(np.concatenate, zip(*(p.sources[name] for p in parts), strict=True)))
        for name in parts[0].sources
    }
    return Paths(
        np.concatenate([part.picks for part in parts]),
        np.concatenate([part.costs for part in parts]),
        np.concatenate([part.moved for part in parts]),
        np.concatenate([part.squares for part in parts]),
        np.concatenate([part.depths for part in parts]),
        sources,
    )


class Model:
    """Predicts the cost and the distance of the picks in each slot.

    Args:
        program: at full depth.
        slots: of the program.
        choices: full depth first.
        costs: of every choice.
        record: of full depth and other exits.
        influence: of every choice.
        monotone: whether the depth of an evaluation must not be less than the last one's.

    Attributes:
        choices, slots, costs: as given.
        slot_of: the slot of each step.
    """

    def __init__(
        self,
        program: Program,
        slots: Slots,
        choices: Sequence[Choice],
        costs: Costs,
        record: Recorded,
        influence: Influence,
        *,
        monotone: bool = False,
    ) -> None:
        self.slots, self.choices, self.costs = slots, tuple(choices), costs
        self.slot_of = [0] * len(program.steps)
        for slot, steps in enumerate(slots.steps):
            for step in steps:
                self.slot_of[step] = slot
        self._monotone = monotone
        self._usable = [index not in record.broken for index in range(len(choices))]
        self._own = record.errors * influence.ratios[:, :, None]
        self._record, self._ratios = record, influence.ratios
        self._places = np.array([variable(program.process, step) for step in program.steps])
        predictions = Predictions(record.predictions)
        self._memories: dict[str, Memory] = {OUTPUT: predictions}
        for name, kinds in skipping(self.choices).items():
            errors = {choice.order: record.errors[:, kind] for kind, choice in kinds.items()}
            self._memories[name] = Additions(errors, predictions, [*map(float, self._places)])

    @property
    def usable(self) -> list[int]:
        """The choices that may be made, by index."""
        return [index for index, usable in enumerate(self._usable) if usable]

    def only(self, picks: Iterable[int]) -> Model:
        """The same of some choices alone, by index."""
        made, kept = copy(self), set(picks)
        made._usable = [usable and pick in kept for pick, usable in enumerate(self._usable)]
        return made

    def begun(self) -> Paths:
        """The one schedule before the first step."""
        none = np.full((1, _SOURCES), -1)
        return Paths(
            np.full((1, len(self.slots.steps)), -1, np.int16),
            np.full(1, self.costs.start),
            np.zeros((1, self._own.shape[2])),
            np.zeros(1),
            np.zeros(1, np.intp),
            {name: Sources(none, none, np.ones(none.shape)) for name in self._memories},
        )

    def allows(self, paths: Paths, step: int, pick: int) -> NDArray[np.bool_]:
        """Which schedules may go on with a choice in a step, [N]."""
        choice, slot = self.choices[pick], paths.picks[:, self.slot_of[step]]
        allowed: NDArray[np.bool_] = ((slot == pick) | (slot < 0)) & self._usable[pick]
        if choice.memory is not None:
            allowed &= paths.sources[choice.memory].steps[:, choice.order] >= 0
        if self._monotone and choice.evaluates:
            allowed &= paths.depths <= max(choice.exits)
        return allowed

    def extended(self, paths: Paths, step: int, pick: int) -> Paths:
        """The schedules with a choice, which they allow, in a step."""
        choice, picks = self.choices[pick], paths.picks.copy()
        picks[:, self.slot_of[step]] = pick
        moved, scales = self._own[step, pick], np.ones(len(picks))
        if choice.memory is not None:
            moved = self._extrapolated(paths.sources[choice.memory], step, pick)
            scales = _over(moved, self._own[step, pick])
        sources = {
            name: self._pushed(each, step, pick, scales) if choice.makes(name) else each
            for name, each in paths.sources.items()
        }
        depths = paths.depths
        if choice.evaluates:
            depths = np.full_like(depths, max(choice.exits))
        costs = paths.costs + self.costs.steps[step, pick]
        squares = paths.squares + np.square(moved).sum(axis=-1)
        return Paths(picks, costs, paths.moved + moved, squares, depths, sources)

    def assessed(self, picks: Iterable[Picks]) -> Paths:
        """The paths of picks that may be made, in their order; the others are left out."""
        wanted = np.array(list(picks), np.int16).reshape(-1, len(self.slots.steps))
        paths, rows = self.begun().take(np.zeros(len(wanted), np.intp)), np.arange(len(wanted))
        for step, slot in enumerate(self.slot_of):
            parts, places = [paths.take(rows[:0])], [rows[:0]]
            for pick in np.unique(wanted[rows, slot]).tolist():
                own = np.flatnonzero((wanted[rows, slot] == pick) & self.allows(paths, step, pick))
                parts.append(self.extended(paths.take(own), step, pick))
                places.append(rows[own])
            rows = np.concatenate(places)
            order = np.argsort(rows)
            paths, rows = joined(parts).take(order), rows[order]
        return paths

    def distance(self, picks: Picks) -> float:
        """Predicted distance of the samples to full depth's; infinite for what is not allowed."""
        return float(next(iter(self.assessed([picks]).distances), np.inf))

    def cost(self, picks: Picks) -> float:
        """Predicted time as a share of full depth's."""
        steps = self.costs.steps
        return self.costs.start + float(sum(steps[s, picks[k]] for s, k in enumerate(self.slot_of)))

    def _extrapolated(self, sources: Sources, step: int, pick: int) -> Floats:
        """How far a forecast moves the samples, for each schedule, [N, R]."""
        choice, ratios = self.choices[pick], self._ratios[step]
        assert choice.memory is not None
        known = sources if choice.memory == OUTPUT else sources[:1]
        first, which = _distinct(*(each[:, : choice.order + 1] for each in known))
        steps, picks = (each[first, : choice.order + 1] for each in sources[:2])
        nodes = self._places[steps.T]
        weights = np.stack(lagrange(list(nodes), self._places[step]), axis=1)
        moved = ratios[pick] * self._memories[choice.memory].error(step, steps, weights)
        if choice.memory == OUTPUT:
            lost = weights * ratios[picks] * sources.scales[first, : choice.order + 1]
            for own, made, share in zip(steps.T, picks.T, lost.T, strict=True):
                moved += share[:, None] * self._record.errors[own, made]
        return np.asarray(moved[which])

    def _pushed(self, sources: Sources, step: int, pick: int, scales: Floats) -> Sources:
        """With one more; of several at one place only the latest counts."""
        places = self._places[sources.steps]
        apart = (sources.steps >= 0) & ~np.isclose(places, self._places[step], SAME, SAME)
        order = np.argsort(~apart, axis=1, kind="stable")[:, : _SOURCES - 1]
        rows = np.arange(len(order))[:, None]
        kept = apart[rows, order]
        last = Sources(
            np.where(kept, sources.steps[rows, order], -1),
            np.where(kept, sources.picks[rows, order], -1),
            sources.scales[rows, order],
        )
        new = np.full((len(order), 1), step)
        return Sources(
            np.hstack([new, last.steps]),
            np.hstack([np.full_like(new, pick), last.picks]),
            np.hstack([scales[:, None], last.scales]),
        )


def _over(made: Floats, known: Floats) -> Floats:
    """The share of a direction in each row, [N]; 1 where there is none."""
    square = float(known @ known)
    return made @ known / square if square else np.ones(len(made))


def _distinct(*columns: NDArray[Any]) -> tuple[Indices, Indices]:
    """The first of each distinct row, and which of these each row is."""
    _, first, which = np.unique(codes_of(*columns), return_index=True, return_inverse=True)
    return first, which


def codes_of(*columns: NDArray[Any]) -> NDArray[np.uint64]:
    """A number for each row of columns of numbers; other rows have others, but by chance."""
    odd, codes = np.uint64(0x9E3779B97F4A7C15), np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        for each in np.ascontiguousarray(column.T, np.float64).view(np.uint64):
            mixed = (codes ^ each) * odd
            codes = mixed ^ (mixed >> np.uint64(32))
    return codes
