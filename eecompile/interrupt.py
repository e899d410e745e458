"""Ctrl-C and SIGTERM as one exception that cannot get lost.

A KeyboardInterrupt that strikes inside a library's callback or destructor is swallowed
there; so the signal is remembered, and whoever loops asks again.
"""

from __future__ import annotations

import signal
from typing import NoReturn

__all__ = ["check", "install"]

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


def _remember(*_: object) -> NoReturn:
    global _seen
    _seen = True
    raise KeyboardInterrupt
