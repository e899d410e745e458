"""Child processes of doctor: a library that crashes or hangs costs its own answer only."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from eecompile import children
from eecompile.children import Child, signal_name
from eecompile.decoding import MalformedError, from_json
from eecompile.doctor.probes import Finding, failed
from eecompile.measure.machine import short


def command(probe: str) -> list[str]:
    """The command line of a probe's child process."""
    return children.command("eecompile.doctor.probes", probe)


def ask(commands: Mapping[str, Sequence[str]], timeout: float) -> dict[str, Finding]:
    """Run child processes at once, and read each one's finding, or how it failed."""
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        started = {name: stack.enter_context(Child(line)) for name, line in commands.items()}
        return {name: _finding(child, deadline) for name, child in started.items()}


def _finding(child: Child, deadline: float) -> Finding:
    status = child.status(deadline)
    if status is None:
        return failed("it hangs: no answer in time")
    answer = child.output()
    try:
        return from_json(answer, Finding)
    except MalformedError:
        pass
    if status == 0:
        return failed(f"no answer but {short(answer.decode(errors='replace'), 60)!r}")
    ended = f"ended with status {status}" if status > 0 else f"crashed with {signal_name(status)}"
    words = short(child.last_words())
    return failed(f"it {ended}: {words}" if words else f"it {ended}")
