"""What the command line says of itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.golden.stored import FOLDER, check

COMMANDS = (
    "eecompile", "export", "build", "sign", "sample", "compare", "tune", "program", "inspect",
    "evaluate", "serve", "triton", "doctor", "recipes", "recipe", "targets", "target",
)  # fmt: skip
CODE = """
import contextlib, io, json, sys
from eecompile.__main__ import main
said = {}
for command in sys.argv[1:]:
    sys.argv = ["eecompile", *([] if command == "eecompile" else [command]), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as end:
            assert not end.code, end.code
    said[command] = out.getvalue()
print(json.dumps(said))
"""
TERMINAL = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
COLOURED = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH", "LINES"}


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """The help of every command, as a process with a plain terminal prints it."""
    inherited = {name: value for name, value in os.environ.items() if name not in COLOURED}
    command = [sys.executable, "-c", CODE, *COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True, env=inherited | TERMINAL)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help(said: dict[str, str], command: str) -> None:
    lines = (line.rstrip() for line in said[command].splitlines())
    check(f"help/{command}.txt", "\n".join(lines).strip("\n") + "\n")


def test_every_command_is_listed(said: dict[str, str]) -> None:
    listed = re.findall(r"^│ ([a-z]\S*)", said["eecompile"], re.MULTILINE)
    assert listed == list(COMMANDS[1:])
    assert {path.stem for path in (FOLDER / "help").iterdir()} == set(COMMANDS)
