"""Child processes that run a module of this package: what dies or hangs there costs that one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from eecompile.handle import Handle


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module as this interpreter would."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The environment in which a child sees the packages that this process sees."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return os.environ | {"PYTHONPATH": path}


def die_with_parent(parent: int | None = None) -> None:
    """From now on, this process ends when the thread that started it does (Linux).

    It ends now if the process ``parent`` started it, and has ended since.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os._exit(1)


class Child(Handle):
    """A child process; leaving the context ends it.

    What it reads and writes are files: a pipe would stay open as long as anything that it started.

    Args:
        line: its command line.
        given: what it reads from its input.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, line: Sequence[str], given: bytes = b"") -> None:
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            read, self._out, self._err = files
            read.write(given)
            read.seek(0)
            self._process = subprocess.Popen(
                line, stdin=read, stdout=self._out, stderr=self._err, env=environment()
            )
            self._files = stack.pop_all()

    def close(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # a driver may hold on to it for ever
            self._process.wait(1)
        self._files.close()

    def status(self, deadline: float) -> int | None:
        """Its exit status, negative for a signal; None where it runs beyond ``time.monotonic()``.

        Args:
            deadline: until when to wait for its end.
        """
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def output(self) -> bytes:
        """What it has written to its output."""
        self._out.seek(0)
        return self._out.read()

    def last_words(self) -> str:
        """The last line that it has written to its error output; "" for none."""
        self._err.seek(0)
        lines = self._err.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")


def signal_name(status: int) -> str:
    """The name of the signal that ended a process of that negative exit status."""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
