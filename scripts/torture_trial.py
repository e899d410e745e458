"""What trials share: how one ends, and actions in a process of their own."""

from __future__ import annotations

import faulthandler
import math
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

_CRASHED = 70  # exit status of an action that raised
_ROOM = 4 << 30  # bytes of addresses that an action may ask for beside the process's own


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one trial ended.

    Attributes:
        number: of the trial; with the seed, it makes the same trial again.
        kind: what was done, in a few words that many trials share.
        ended: how, such as "the same result", "refused", "went on".
        fault: what happened that must not; empty where nothing did.
        seconds: taken.
    """

    number: int
    kind: str
    ended: str
    fault: str = ""
    seconds: float = 0.0


class Ended(NamedTuple):
    """How an action ended.

    Attributes:
        status: exit status, negative for a signal; None where it was stopped, taking too long.
        peak: bytes of memory that it took beside what the process had.
        out: what it printed.
        err: what it printed as errors.
    """

    status: int | None
    peak: int
    out: str
    err: str


def forked(action: Callable[[], object], folder: Path, seconds: float) -> Ended:
    """Carry out an action in a fork of this process, which must have no threads.

    Args:
        action: may end by SystemExit; what else it raises becomes a traceback and status 70.
        folder: for what is printed; it exists.
        seconds: of the processor that it may take, and ten times as many of the clock.
    """
    if not _EMPTY:
        _EMPTY.append(_forked(lambda: None, folder, seconds)[1])
    status, peak = _forked(action, folder, seconds)
    return Ended(status, peak - _EMPTY[0], *(_text(folder / name) for name in ("out", "err")))


_EMPTY: list[int] = []  # bytes of memory of a fork that does nothing


def _forked(action: Callable[[], object], folder: Path, seconds: float) -> tuple[int | None, int]:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _act(action, folder / "out", folder / "err", seconds)
    return _waited(child, seconds)


def _act(action: Callable[[], object], out: Path, err: Path, seconds: float) -> None:
    """The child's part; it does not return."""
    status = _CRASHED
    try:
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = (os.fdopen(each, "w", closefd=False) for each in (1, 2))
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds)))
        most = _addresses() + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        action()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _waited(child: int, seconds: float) -> tuple[int | None, int]:
    """The exit status and the peak of resident memory of a child, stopped when time is up."""
    handle = os.pidfd_open(child)
    try:
        ready = select.select([handle], [], [], 10 * seconds)[0]
    finally:
        os.close(handle)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    late = not ready or code in (-signal.SIGXCPU, -signal.SIGKILL)
    return (None if late else code), usage.ru_maxrss * 1024


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def _addresses() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def clocked(began: float) -> float:
    """Seconds since a moment of ``time.perf_counter()``, to the millisecond."""
    return round(time.perf_counter() - began, 3)
