"""Ctrl-C and SIGTERM as one exception that cannot get lost.

A KeyboardInterrupt that strikes inside a library's callback or destructor is swallowed
there; so the signal is remembered, and whoever loops asks again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_seen = False


def install() -> None:
    """From now on, SIGINT and SIGTERM raise KeyboardInterrupt, and are remembered.

    One that the parent process has set to be ignored, as shells do for background jobs,
    stays ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _remember)


def check() -> None:
    """Raise KeyboardInterrupt if a signal has come, even if the first one was swallowed."""
    if _seen:
        raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block has ended.

    For what must not be left half done. Elsewhere than in the main thread nothing is to be
    done: Python handles signals there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            os.kill(os.getpid(), came[0])


def _remember(*_: object) -> NoReturn:
    global _seen
    _seen = True
    raise KeyboardInterrupt
