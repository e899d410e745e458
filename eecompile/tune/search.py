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
from eecompile.runtime.request import SampleRequest
from eecompile.tune.model import Model
from eecompile.tune.optimise import objective
from eecompile.tune.probe import Outputs, Prober
from eecompile.tune.work import Work

Picks = tuple[int, ...]
_PATIENCE = 10  # trials without a better one
_EXCHANGES = 24  # cheaper and dearer changes that are paired
_RESTARTS = 4


class Trials:
    """Real distances to full depth, at the samples that schedules are chosen by.

    Args:
        prober: runs the engines.
        programs: the program of some picks.
        samples: which ones.
        slots: of each slot, the program's steps.
        work: keeps what has been measured.
    """

    def __init__(
        self,
        prober: Prober,
        programs: Callable[[Picks], Program],
        samples: SampleRequest,
        slots: Sequence[Sequence[int]],
        work: Work,
    ) -> None:
        self._prober, self._programs, self._samples, self._work = prober, programs, samples, work
        self._slots = slots
        self._full: Array | None = None
        self._runs: dict[Picks, dict[int, Outputs]] = {}

    def distance(self, picks: Picks) -> float:
        """RMS distance; infinite where an engine gives NaN or infinity."""
        key = f"distance {' '.join(map(str, picks))}"
        found = self._work.get(key)
        if found is None:
            if self._full is None:
                full = (0,) * len(picks)
                record: dict[int, Outputs] = {}
                self._full = self._prober.run(self._programs(full), self._samples, record=record)
                self._runs[full] = record
            found = self._measured(picks, self._full)
            self._work.put(key, found)
        return float(found)

    def _measured(self, picks: Picks, full: Array) -> float:
        record: dict[int, Outputs] = {}
        try:
            made = self._prober.run(
                self._programs(picks), self._samples, replay=self._shared(picks), record=record
            )
        except NonFiniteError:
            return float("inf")
        while len(self._runs) > 2:  # full depth, and the last two
            del self._runs[list(self._runs)[1]]
        self._runs[picks] = record
        return float(np.sqrt(np.square(made - full, dtype=np.float64).mean()))

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


def neighbours(
    picks: Picks, model: Model, budget: float, *, monotone: bool
) -> Iterator[tuple[float, Picks]]:
    """Picks that differ in one slot, or in two: a dearer one for a cheaper one.

    Yields:
        Predicted distance, and the picks; none that costs more than ``budget``.
    """
    cheaper: list[tuple[float, Picks]] = []
    dearer: list[tuple[float, Picks]] = []
    cost = model.cost(picks)
    for changed in _single(picks, model, monotone=monotone):
        spent, entry = model.cost(changed), (model.distance(changed), changed)
        (cheaper if spent < cost else dearer).append(entry)
        if spent <= budget:
            yield entry
    for _, one in sorted(cheaper)[:_EXCHANGES]:
        for _, other in sorted(dearer)[:_EXCHANGES]:
            both = _joined(picks, one, other)
            if both is None or model.cost(both) > budget:
                continue
            if np.isfinite(objective(model.table, both, monotone=monotone)[1]):
                yield model.distance(both), both


def _single(picks: Picks, model: Model, *, monotone: bool) -> Iterator[Picks]:
    for slot, pick in enumerate(picks):
        for other in model.table.picks:
            if other == pick:
                continue
            changed = (*picks[:slot], other, *picks[slot + 1 :])
            if np.isfinite(objective(model.table, changed, monotone=monotone)[1]):
                yield changed


def _joined(picks: Picks, one: Picks, other: Picks) -> Picks | None:
    """Both changes; None where they are of the same slot."""
    made = []
    for before, first, second in zip(picks, one, other, strict=True):
        if first != before and second != before:
            return None
        made.append(first if first != before else second)
    return tuple(made)


def improved(picks: Picks, model: Model, budget: float, *, monotone: bool) -> Picks:
    """The picks that small changes lead to as long as the predicted distance falls."""
    best = model.distance(picks)
    while True:
        check()
        found = min(
            neighbours(picks, model, budget, monotone=monotone),
            key=lambda entry: entry[0],
            default=(best, picks),
        )
        if found[0] >= best * (1 - 1e-9):
            return picks
        best, picks = found


def proposed(
    start: Picks, model: Model, budget: float, *, monotone: bool, seed: int = 0
) -> list[Picks]:
    """Picks worth a trial, by predicted distance: ``start``, and what changes make of it.

    Small changes end where none alone is an improvement; from there, some slots are made as
    cheap as can be, and the budget that this sets free is spent again.
    """
    rng = np.random.default_rng(seed)
    best = improved(start, model, budget, monotone=monotone)
    found = {start, best}
    for _ in range(_RESTARTS):
        kicked = _kicked(best, model, rng, monotone=monotone)
        other = improved(kicked, model, budget, monotone=monotone)
        found.add(other)
        best = min(best, other, key=model.distance)
    return sorted(found, key=lambda picks: (model.distance(picks), picks))


def _kicked(picks: Picks, model: Model, rng: np.random.Generator, *, monotone: bool) -> Picks:
    """The picks with some slots made cheaper."""
    count = max(1, len(picks) // 6)
    for slot in rng.choice(len(picks), count, replace=False).tolist():
        again = [model.table.again] if model.table.reuse is not None else []
        cheap = again + np.argsort(model.table.costs[slot]).tolist()
        for pick in cheap:
            changed = (*picks[:slot], pick, *picks[slot + 1 :])
            fits = np.isfinite(objective(model.table, changed, monotone=monotone)[1])
            if fits and model.cost(changed) <= model.cost(picks):
                picks = changed
                break
    return picks


def refined(
    starts: Sequence[Picks],
    model: Model,
    budget: float,
    trials: Trials,
    *,
    monotone: bool,
    seconds: float,
    report: Callable[[], Any],
) -> Picks:
    """The best of some picks, changed as long as the real distance falls.

    Changes are tried in the order of their predicted distance, until ten in a row are no
    better or the time is over.

    Args:
        starts: picks to begin with.
        model: predicts.
        budget: share of full depth's time that must not be exceeded.
        trials: measures.
        monotone: depths must not fall.
        seconds: after which nothing more is tried.
        report: told of each trial.
    """
    end = time.perf_counter() + seconds
    best = min(dict.fromkeys(starts), key=trials.distance)
    while time.perf_counter() < end:
        changed = sorted(neighbours(best, model, budget, monotone=monotone))
        for _, picks in changed[:_PATIENCE]:
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
