"""A user's file is checked as precisely as the docstrings promise, by mypy and by pyright."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

USER = Path(__file__).with_name("user.py")


def refused_by_mypy(folder: Path) -> set[int]:
    said = checker("mypy", "--strict", "--config-file=", "--cache-dir", folder, USER)
    found = re.findall(r"(\w+)\.py:(\d+): error", said)
    assert {name for name, _ in found} == {"user"}, said
    return {int(number) for _, number in found}


def refused_by_pyright(folder: Path) -> set[int]:
    settings = folder / "pyrightconfig.json"
    settings.write_text(json.dumps({"include": [str(USER)], "typeCheckingMode": "strict"}))
    said = checker("basedpyright", "--outputjson", "--project", settings)
    found = json.loads(said)["generalDiagnostics"]
    return {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}


def checker(name: str, *arguments: str | Path) -> str:
    """What a type checker says, as a user's project runs it."""
    done = subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("refused", [refused_by_mypy, refused_by_pyright])
def test_the_public_api_is_typed(refused: object, tmp_path: Path) -> None:
    lines = USER.read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert wrong
    assert refused(tmp_path) == wrong  # type: ignore[operator]
