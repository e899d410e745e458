"""Measuring time in turns, so that a machine that slows down slows everything alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from eecompile.arrays import Floats
from eecompile.interrupt import check

Key = TypeVar("Key", bound=Hashable)


class Timings(NamedTuple, Generic[Key]):
    """Seconds by what was timed, one a round; and what failed, with its error."""

    seconds: dict[Key, list[float]]
    failures: dict[Key, Exception]

    def checked(self) -> Timings[Key]:
        """The same, where nothing failed; otherwise the first error is raised."""
        for error in self.failures.values():
            raise error
        return self


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Tenth percentile, median and ninetieth."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return float(low), float(middle), float(high)


def median_interval(values: Sequence[float] | Floats) -> tuple[float, float]:
    """95 % interval of the median, by order statistics; of less than six values, their range."""
    ordered, count = np.sort(values), len(values)
    below = np.cumsum([math.comb(count, rank) / 2**count for rank in range(count)])
    out = max(0, int((below <= 0.025).sum()) - 1)  # values left out at each end
    return float(ordered[out]), float(ordered[count - 1 - out])


def interleaved(
    actions: Mapping[Key, Callable[[], object]],
    *,
    rounds: int | None = None,
    seconds: float = 2.0,
    least: int = 7,
    most: int = 50,
    twice: bool = False,
    warm: bool = False,
    report: Callable[[int, int], Any] = lambda done, total: None,
) -> Timings[Key]:
    """Time actions in turns.

    Each is done once before it counts, unless that has been. Every round begins with
    another action. One that fails is not tried again.

    Args:
        actions: by name.
        rounds: how often each is timed; None for at least ``least`` and at most ``most``
            rounds, until ``seconds`` are over.
        seconds: for all rounds together, where ``rounds`` is None.
        least: smallest number of rounds, where ``rounds`` is None.
        most: largest number of rounds, where ``rounds`` is None.
        twice: do each action twice a turn, and time the second time: its weights are then
            in the caches, as they are while one engine samples.
        warm: they need not be done once before.
        report: told of rounds: how many are done, of how many.
    """
    timings: Timings[Key] = Timings({name: [] for name in actions}, {})
    for name in () if warm else actions:
        _turn(name, actions[name], timings, counts=False)
    started, done, last = time.perf_counter(), 0, most if rounds is None else rounds
    while len(timings.failures) < len(actions) and done < last:
        over = time.perf_counter() - started > seconds
        if rounds is None and over and done >= least:
            break
        report(done, last)
        names = list(actions)
        for name in names[done % len(names) :] + names[: done % len(names)]:
            if twice:
                _turn(name, actions[name], timings, counts=False)
            _turn(name, actions[name], timings)
        done += 1
    return timings


def _turn(
    name: Key, action: Callable[[], object], timings: Timings[Key], *, counts: bool = True
) -> None:
    check()
    if name in timings.failures:
        return
    started = time.perf_counter()
    try:
        action()
    except Exception as error:  # a library's errors share no base class
        check()
        timings.failures[name] = error
        return
    if counts:
        timings.seconds[name].append(time.perf_counter() - started)
