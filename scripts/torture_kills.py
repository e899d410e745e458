"""Kills: commands that are killed at a random moment; nothing is lost, and the next run goes on.

A kill strikes at a random time of the command's, or at a random one of its changes to files. It
is of the whole process group, or of the main process alone, which its children must not outlive.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from torture_commands import COMMANDS, TIMEOUT, Trial, counting, prepare, state
from torture_trial import Outcome

__all__ = ["SMALL", "TRIALS", "prepare", "trial"]

TRIALS, SMALL = 200, 3
_ORDER = (
    *("sample", "build", "evaluate", "export", "build for OpenVINO", "sample", "build", "tune"),
    *("build for TensorRT-RTX", "export", "evaluate", "compare", "build", "fine-tune"),
)
_ORPHANS = 5  # seconds that children may live on


def trial(work: Path, number: int, seed: int) -> Outcome:
    """Kill one command, see what is there, and run it again."""
    draws = random.Random(f"{seed} kills {number}")
    name = _ORDER[number % len(_ORDER)]
    alone, timed = draws.random() < 0.3, draws.random() < 0.3
    run = Trial(work, number, name, "the main process" if alone else "the group")
    command, expected = COMMANDS[name], run.expected
    if replaces := bool(command.older) and draws.random() < 0.5:
        run.lay_older()
    moment = 0 if timed else draws.randint(1, expected.changes)
    process = counting(run.line, run.folder, run.folder / "tmp" / "changes", moment, alone=alone)
    try:
        status = _killed(process, draws.uniform(0, expected.seconds) if timed else None, alone)
        fault = _orphans(process.pid) if alone else ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if status not in (0, -signal.SIGKILL):
        words = (run.folder / "tmp" / "stderr").read_text()[-200:]
        fault = f"it failed before it was killed, status {status}: {words}"
    found, wrong = state(command, run.out, run.known)
    if replaces and found == "nothing":
        wrong = "what was there is lost"
    fault = fault or wrong or run.again()
    return run.end(f"{found} is there, and the next run goes on", fault)


def _killed(process: subprocess.Popen[bytes], seconds: float | None, alone: bool) -> int:
    """The status of a process that is killed after so many seconds, or by itself."""
    try:
        return process.wait(TIMEOUT if seconds is None else seconds)
    except subprocess.TimeoutExpired:
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
        return process.wait()


def _orphans(session: int) -> str:
    """What is wrong with the children of a process that was killed: some live on."""
    deadline = time.monotonic() + _ORPHANS
    while living := _members(session):
        if time.monotonic() > deadline:
            return f"children that outlive it: {', '.join(living)}"
        time.sleep(0.05)
    return ""


def _members(session: int) -> list[str]:
    """The living processes of a session, by their commands."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, group = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(group) == session and state != "Z":
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:99])
    return found
