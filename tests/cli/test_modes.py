"""What every command takes: -h, --json, --quiet, --verbose."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import eecompile
from eecompile.cli import main
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
