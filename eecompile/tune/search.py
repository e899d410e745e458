"""Schedules made better by small changes, on the real distance of their samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from eecompile.arrays import Array
from eecompile.errors import NonFiniteError
from eecompile.interrupt import check
from eecompile.programs.program import Program
from eecompile.tune.model import Model, Picks
from eecompile.tune.probe import Experiment, Outputs, rms

STARTS = 4  # that are tried, however long it takes
_PATIENCE = 10  # trials without a better one
_EXCHANGES = 24  # cheaper and dearer changes that are paired
_SAME = 1e-9  # costs that differ by less than this share are equal


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
        while record and len(self._runs) > 2:  # full depth, and the last two
            del self._runs[list(self._runs)[1]]
        if record:
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


def neighbours(picks: Picks, model: Model, budget: float) -> list[Picks]:
    """Picks within a budget that differ by a small change, by predicted distance.

    One slot picks something else, or two do, the one cheaper and the other dearer; or two
    slots that follow one another exchange their picks.
    """
    alone = model.assessed(_alone(picks, model))
    order = np.argsort(alone.distances)
    cheap = alone.costs < model.cost(picks)
    changed = [tuple(row) for row in alone.picks.tolist()]
    cheaper = [changed[row] for row in order if cheap[row]][:_EXCHANGES]
    dearer = [changed[row] for row in order if not cheap[row]][:_EXCHANGES]
    pairs = (_both(picks, one, other) for one, other in product(cheaper, dearer))
    every = dict.fromkeys([*changed, *_exchanged(picks), *filter(None, pairs)])
    paths = model.assessed(every)
    within = np.flatnonzero(paths.costs <= budget * (1 + _SAME))
    order = within[np.argsort(paths.distances[within], kind="stable")]
    return [tuple(row) for row in paths.picks[order].tolist()]


def improved(picks: Picks, model: Model, budget: float) -> Picks:
    """The picks that small changes lead to as long as the predicted distance falls."""
    while nearest := neighbours(picks, model, budget)[:1]:
        check()
        if model.distance(nearest[0]) >= model.distance(picks) * (1 - _SAME):
            break
        (picks,) = nearest
    return picks


def _alone(picks: Picks, model: Model) -> Iterator[Picks]:
    for slot, pick in enumerate(picks):
        for other in range(len(model.choices)):
            if other != pick:
                yield (*picks[:slot], other, *picks[slot + 1 :])


def _exchanged(picks: Picks) -> Iterator[Picks]:
    for slot in range(len(picks) - 1):
        if picks[slot] != picks[slot + 1]:
            yield (*picks[:slot], picks[slot + 1], picks[slot], *picks[slot + 2 :])


def _both(picks: Picks, one: Picks, other: Picks) -> Picks | None:
    """Both changes; None where they are of the same slot."""
    made = []
    for before, first, second in zip(picks, one, other, strict=True):
        if first != before and second != before:
            return None
        made.append(first if first != before else second)
    return tuple(made)


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

    A few starts are tried in any case, the others for half of the seconds. Then changes are, in
    the order of their predicted distance, until ten in a row are no better or the seconds are
    over. ``report`` is told of each trial.
    """
    began = time.perf_counter()
    end, best = began + seconds, starts[0]
    for index, picks in enumerate(dict.fromkeys(starts)):
        if index >= STARTS and time.perf_counter() > began + seconds / 2:
            break
        check()
        report()
        best = min(best, picks, key=trials.distance)
    while time.perf_counter() < end:
        for picks in neighbours(best, model, budget)[:_PATIENCE]:
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
