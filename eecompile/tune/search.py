"""Schedules made better by small changes, on the real distance of their samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from eecompile.arrays import Array
from eecompile.errors import NonFiniteError
from eecompile.interrupt import check
from eecompile.programs.program import Program
from eecompile.tune.model import Model
from eecompile.tune.probe import Experiment, Outputs, rms

Picks = tuple[int, ...]
_PATIENCE = 10  # trials without a better one
_EXCHANGES = 24  # cheaper and dearer changes that are paired
_RESTARTS = 4


class Trials:
    """Real distances to full depth, at the samples that schedules are chosen by.

    Args:
        experiment: whose engines are run.
        programs: the program of some picks.
        slots: of each slot, the program's steps.
    """

    def __init__(
        self,
        experiment: Experiment,
        programs: Callable[[Picks], Program],
        slots: Sequence[Sequence[int]],
    ) -> None:
        self._experiment, self._programs, self._slots = experiment, programs, slots
        self._full: Array | None = None
        self._runs: dict[Picks, dict[int, Outputs]] = {}

    def distance(self, picks: Picks) -> float:
        """RMS distance; infinite where an engine gives NaN or infinity."""
        key = f"distance {' '.join(map(str, picks))}"
        return float(self._experiment.work.recall(key, lambda: self._measured(picks)))

    def _measured(self, picks: Picks) -> float:
        full = (0,) * len(picks)
        if self._full is None:
            self._full = self._run(full)
        try:
            made = self._full if picks == full else self._run(picks)
        except NonFiniteError:
            return float("inf")
        return rms(made - self._full)

    def _run(self, picks: Picks) -> Array:
        record: dict[int, Outputs] = {}
        program, replay = self._programs(picks), self._shared(picks)
        made = self._experiment.prober.run(
            program, self._experiment.samples, replay=replay, record=record
        )
        while len(self._runs) > 2:  # full depth, and the last two
            del self._runs[list(self._runs)[1]]
        self._runs[picks] = record
        return made

    def _shared(self, picks: Picks) -> dict[int, Outputs]:
        """What a former run has in common with these picks, from the beginning."""
        best: dict[int, Outputs] = {}
        for other, record in self._runs.items():
            same = 0
            while same < len(picks) and picks[same] == other[same]:
                same += 1
            first = self._slots[same][0] if same < len(picks) else None
            known = {s: o for s, o in record.items() if first is None or s < first}
            best = max(best, known, key=len)
        return best


def neighbours(picks: Picks, model: Model, budget: float) -> Iterator[tuple[float, Picks]]:
    """Picks within a budget that differ in one slot, or in two: a dearer for a cheaper one.

    Each comes with its predicted distance.
    """
    cheaper: list[tuple[float, Picks]] = []
    dearer: list[tuple[float, Picks]] = []
    cost = model.cost(picks)
    for changed in _single(picks, model):
        spent, entry = model.cost(changed), (model.distance(changed), changed)
        (cheaper if spent < cost else dearer).append(entry)
        if spent <= budget:
            yield entry
    for _, one in sorted(cheaper)[:_EXCHANGES]:
        for _, other in sorted(dearer)[:_EXCHANGES]:
            both = _joined(picks, one, other)
            if both and model.cost(both) <= budget and model.table.allows(both):
                yield model.distance(both), both


def _single(picks: Picks, model: Model) -> Iterator[Picks]:
    for slot, pick in enumerate(picks):
        for other in model.table.picks:
            changed = (*picks[:slot], other, *picks[slot + 1 :])
            if other != pick and model.table.allows(changed):
                yield changed


def _joined(picks: Picks, one: Picks, other: Picks) -> Picks | None:
    """Both changes; None where they are of the same slot."""
    made = []
    for before, first, second in zip(picks, one, other, strict=True):
        if first != before and second != before:
            return None
        made.append(first if first != before else second)
    return tuple(made)


def improved(picks: Picks, model: Model, budget: float) -> Picks:
    """The picks that small changes lead to as long as the predicted distance falls."""
    best = model.distance(picks)
    while True:
        check()
        around = neighbours(picks, model, budget)
        found = min(around, key=lambda entry: entry[0], default=(best, picks))
        if found[0] >= best * (1 - 1e-9):
            return picks
        best, picks = found


def proposed(start: Picks, model: Model, budget: float, *, seed: int = 0) -> list[Picks]:
    """Picks worth a trial, by predicted distance: ``start``, and what changes make of it.

    Small changes end where none alone is an improvement; from there, some slots are made as
    cheap as can be, and the budget that this sets free is spent again.
    """
    rng = np.random.default_rng(seed)
    best = improved(start, model, budget)
    found = {start, best}
    for _ in range(_RESTARTS):
        other = improved(_kicked(best, model, rng), model, budget)
        found.add(other)
        best = min(best, other, key=model.distance)
    return sorted(found, key=lambda picks: (model.distance(picks), picks))


def _kicked(picks: Picks, model: Model, rng: np.random.Generator) -> Picks:
    """The picks with some slots made cheaper."""
    count = max(1, len(picks) // 6)
    for slot in rng.choice(len(picks), count, replace=False).tolist():
        again = [model.table.again] if model.table.reuse is not None else []
        cheap = again + np.argsort(model.table.costs[slot]).tolist()
        for pick in cheap:
            changed = (*picks[:slot], pick, *picks[slot + 1 :])
            if model.table.allows(changed) and model.cost(changed) <= model.cost(picks):
                picks = changed
                break
    return picks


def refined(
    starts: Sequence[Picks],
    model: Model,
    budget: float,
    trials: Trials,
    *,
    seconds: float,
    report: Callable[[], Any],
) -> Picks:
    """The best of some picks, changed as long as the real distance falls.

    Changes are tried in the order of their predicted distance, until ten in a row are no
    better or the seconds are over. ``report`` is told of each trial.
    """
    end = time.perf_counter() + seconds
    best = min(dict.fromkeys(starts), key=trials.distance)
    while time.perf_counter() < end:
        for _, picks in sorted(neighbours(best, model, budget))[:_PATIENCE]:
            check()
            report()
            if trials.distance(picks) < trials.distance(best):
                best = picks
                break
            if time.perf_counter() >= end:
                break
        else:
            break
    return best
