"""A clock that only tests move, so that what is timed takes what it should on any machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_LOOK = 1e-6  # seconds that a look at the clock takes: no loop until a deadline goes on for ever


class _Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += _LOOK
        return self.seconds


@contextmanager
def standing_clock() -> Iterator[None]:
    """Make ``time.perf_counter`` stand still but for what :func:`spend` adds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", _Clock())
        yield


def spend(seconds: float) -> None:
    """Let time pass on the standing clock; without one, nothing happens."""
    if isinstance(time.perf_counter, _Clock):
        time.perf_counter.seconds += seconds
