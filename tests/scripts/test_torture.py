"""Trials that must end well: their small forms, and what judges them."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


def torture(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "torture.py"), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.slow
def test_broken_files_are_refused_or_do_no_harm(tmp_path: Path) -> None:
    output = tmp_path / "torture.json"
    ran = torture("files", "--small", "--jobs", 2, "--work", tmp_path, "--output", output)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(output.read_text())["files"]
    assert found["trials"] == sum(row["trials"] for row in found["rows"])
    assert {"refused", "the same result", "another result"} <= {r["ended"] for r in found["rows"]}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


@pytest.mark.posix
def test_how_an_action_ended_is_seen(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    trials = scripts("torture_trial")

    def ended(action: Callable[[], object], seconds: float = 30) -> Any:
        return trials.forked(action, tmp_path, seconds)

    assert ended(lambda: print("shown")) == (0, pytest.approx(0, abs=8 << 20), "shown\n", "")
    assert ended(lambda: sys.exit(3)).status == 3
    raised = ended(lambda: 1 // 0)
    assert raised.status == 70
    assert raised.err.strip().endswith("ZeroDivisionError: integer division or modulo by zero")
    assert ended(lambda: os.kill(os.getpid(), signal.SIGSEGV)).status == -signal.SIGSEGV
    assert ended(lambda: time.sleep(60), seconds=0.1).status is None
    assert ended(lambda: b"x" * (300 << 20)).peak > 290 << 20
    assert ended(lambda: bytearray(5 << 30)).err.strip().endswith("MemoryError")


def test_what_must_not_be_is_a_fault(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    files, trials = scripts("torture_files"), scripts("torture_trial")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    with files.Watch(outside) as watch:
        assert not watch.opened()
        subprocess.run(["cat", outside / "secret"], check=True, capture_output=True)
        assert watch.opened() == {"secret"}

    def fault(status: int | None, err: str = "", out: str = "", peak: int = 0) -> str:
        broken = files.Broken("something")
        action = files.Action("look", lambda: None)
        ended = trials.Ended(status, peak, out, err)
        return str(files.judged(action, broken, ended, tmp_path, tmp_path)[1])

    assert fault(0) == ""
    assert fault(1, "error: found this; expected that; do something.\n") == ""
    for wrong in (
        fault(None),
        fault(-signal.SIGABRT),
        fault(70, "Traceback (most recent call last):\nKeyError: 1\n"),
        fault(1, "Traceback (most recent call last):\nerror: found this\n"),
        fault(1, "error: found this\nerror: found that\n"),
        fault(1, "error: found \x1b[31m\n"),
        fault(1, "error: found " + "a" * 10_000),
        fault(0, out="\x1b[31m"),
        fault(0, peak=1 << 30),
    ):
        assert wrong
