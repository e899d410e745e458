"""What every command takes: -h, --json, --quiet, --verbose."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import eecompile
from eecompile.cli import main
from eecompile.cli.app import app
from eecompile.store.shipped import shipped
from tests.cli.conftest import Run


def printed(result: tuple[int, str, str]) -> Any:
    status, out, _ = result
    assert status == 0
    return json.loads(out)


def test_json_is_the_result_alone(run: Run, engine_sets: dict[str, Path], tmp_path: Path) -> None:
    engines = engine_sets["per_exit"]
    sampled = printed(
        run("sample", engines, "-n", 2, "--steps", 3, "-o", tmp_path / "a.npy", "--json")
    )
    assert (sampled["n"], sampled["shape"], sampled["steps"]) == (2, [1, 28, 28], 3)
    assert sampled["seconds"] > 0
    assert printed(run("inspect", engines, "--json"))["target"]["backend"] == "onnxruntime"
    program = run("program", "ddim", "--for", engines, "-o", tmp_path / "p.json", "--json")
    assert printed(program) == json.loads((tmp_path / "p.json").read_bytes())
    assert {each["name"] for each in printed(run("recipes", "--json"))} == set(shipped("export"))
    assert printed(run("recipe", "fashion-dit", "--json"))["name"] == "fashion-dit"


def test_quiet_prints_errors_alone(
    run: Run,
    engine_sets: dict[str, Path],
    tmp_path: Path,
) -> None:
    engines = engine_sets["per_exit"]
    command = ("sample", engines, "-n", 1, "--steps", 2, "-o", tmp_path / "a.npy")
    assert run(*command, "-q") == (0, "", "")
    status, out, error = run("sample", engines, "-n", 0, "-o", tmp_path / "a.npy", "-q")
    assert (status, out) == (1, "")
    assert "error: found" in error


def test_verbose_shows_where_an_error_arose(run: Run, tmp_path: Path) -> None:
    status, _, error = run("inspect", tmp_path / "none", "-v")
    assert status == 1
    assert "Traceback" in error
    assert "Traceback" not in run("inspect", tmp_path / "none")[2]


def test_a_recipe_and_a_target_are_printed_as_they_are(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    for kind, command, name in (("export", "recipe", "fashion-dit"), ("engines", "target", "cpu")):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(sys, "argv", ["eecompile", command, name])
            main()
        assert capfdbinary.readouterr().out == shipped(kind)[name].read_bytes()  # type: ignore[index]


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_has_a_short_name(run: Run, option: str) -> None:
    status, out, _ = run("build", option)
    assert status == 0
    assert "--dry-run" in out
    assert "dpm-solver-3" not in out


def test_the_version_has_a_short_name(run: Run) -> None:
    assert run("-V")[1].strip() == f"eecompile {eecompile.__version__}"


def test_every_command_takes_what_every_command_takes() -> None:
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert len(commands) > 10
    for name, command in commands.items():
        taken = {option for each in command.params for option in each.opts}
        assert {"--json", "-q", "--quiet", "-v", "--verbose"} <= taken, name
    offered = {option for each in group.params for option in each.opts}
    assert {"--install-completion", "--show-completion"} <= offered


@pytest.mark.parametrize("colours", [True, False])
def test_colours_are_left_out_where_they_are_not_wanted(colours: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"FORCE_COLOR": "1"} | ({} if colours else {"NO_COLOR": "1"})
    command = [sys.executable, "-m", "eecompile", "inspect", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ("\x1b[1;31m" in done.stderr) == colours
    assert not re.search(r"\x1b\[[\d;]*3[1-7]m", done.stderr) or colours
