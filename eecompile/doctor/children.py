"""Child processes of doctor: a library that crashes or hangs costs its own answer only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from eecompile.decoding import MalformedError, from_json
from eecompile.doctor.probes import Finding, failed
from eecompile.handle import Handle
from eecompile.measure.machine import short


def command(probe: str) -> list[str]:
    """The command line of a probe's child process."""
    return [sys.executable, "-P", "-m", "eecompile.doctor.probes", probe]


def ask(commands: Mapping[str, Sequence[str]], timeout: float) -> dict[str, Finding]:
    """Run child processes at once, and read each one's finding, or how it failed."""
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        children = {name: stack.enter_context(_Child(line)) for name, line in commands.items()}
        return {name: child.finding(deadline) for name, child in children.items()}


class _Child(Handle):
    """A child process; leaving the context ends it.

    Its output goes to files: a pipe would stay open as long as anything that it started.
    """

    def __init__(self, line: Sequence[str]) -> None:
        with ExitStack() as stack:
            self._out = stack.enter_context(tempfile.TemporaryFile())
            self._err = stack.enter_context(tempfile.TemporaryFile())
            # The same packages as here, whatever way this process came to see them.
            path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=self._err,
                env=os.environ | {"PYTHONPATH": path},
            )
            self._files = stack.pop_all()

    def close(self) -> None:
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # a driver may hold on to it for ever
            self._process.wait(1)
        self._files.close()

    def finding(self, deadline: float) -> Finding:
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return failed("it hangs: no answer in time")
        self._out.seek(0)
        answer = self._out.read()
        try:
            return from_json(answer, Finding)
        except MalformedError:
            pass
        if self._process.returncode != 0:
            return failed(f"it {_end(self._process.returncode)}{self._last_words()}")
        return failed(f"no answer but {short(answer.decode(errors='replace'), 60)!r}")

    def _last_words(self) -> str:
        self._err.seek(0)
        lines = self._err.read().decode(errors="replace").split("\n")
        words = next((line for line in reversed(lines) if line.strip()), "")
        return f": {short(words)}" if words else ""


def _end(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    try:
        return f"crashed with {signal.Signals(-status).name}"
    except ValueError:
        return f"crashed with signal {-status}"
