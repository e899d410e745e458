"""The benchmark of schedules, from tuning to quality, on few samples."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import RECIPE, ROOT
from tests.evaluate.pictures import garments


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path) -> Any:
    """The script as a module, for which the shipped network has been exported."""

    def exported(recipe: Path, folder: Path) -> None:
        assert recipe == RECIPE
        shutil.copytree(bundle, folder, dirs_exist_ok=True)

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("bench_schedules")
    monkeypatch.setattr(module, "OUT", tmp_path / "out")
    monkeypatch.setattr(module, "bundle_from_recipe", exported)
    return module


def run(bench: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    command = ["schedules", *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", ["bench.py", *command])
    importlib.import_module("bench").app(command, standalone_mode=False)


@pytest.mark.slow
def test_a_small_case_from_tuning_to_quality(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    np.save(tmp_path / "real.npy", garments(30, 0))
    output = tmp_path / "made.json"
    small = ("--small", "--output", output, "--only")
    run(
        bench, monkeypatch, *small, "dpmpp-2m-forecasts",
        "--evaluate", tmp_path / "real.npy", "--budgets", 0.7, "-n", 24,
    )  # fmt: skip
    made = json.loads(output.read_text())["cases"]
    assert list(made) == ["dpmpp-2m-forecasts"]
    found = {row["name"]: row for row in made["dpmpp-2m-forecasts"]["quality"]["rows"]}
    assert {"full", "budget-70"} <= set(found)
    assert any(name.endswith(" steps") and row["steps"] < 4 for name, row in found.items())
    assert found["full"]["beyond full depth, %"] == 0
    excess = found["budget-70"]["Frechet distance"] / found["full"]["Frechet distance"] - 1
    assert found["budget-70"]["beyond full depth, %"] == pytest.approx(100 * excess, abs=0.1)
    run(bench, monkeypatch, *small, "ddim")  # the other case stays
    both = json.loads(output.read_text())
    assert list(both["cases"]) == ["ddim", "dpmpp-2m-forecasts"]
    assert both["cases"]["dpmpp-2m-forecasts"] == made["dpmpp-2m-forecasts"]
    assert "--only ddim" in both["cases"]["ddim"]["command"]
    run(bench, monkeypatch, *small, "dpmpp-2m-forecasts", "--keep")  # tuned already
    again = json.loads(output.read_text())["cases"]["dpmpp-2m-forecasts"]
    assert again["goals"] == made["dpmpp-2m-forecasts"]["goals"]


def test_figures_of_two_machines_do_not_share_a_file(bench: Any, tmp_path: Path) -> None:
    output, facts = tmp_path / "made.json", {"cpu": "one", "command": "now"}
    case = {"goals": {}}
    output.write_text(json.dumps({"machine": facts, "cases": {"ddim": case}}))
    later = {**facts, "command": "later"}
    assert bench.kept(output, later, ["dpmpp-2m"]) == {"ddim": case, "dpmpp-2m": None}
    assert set(bench.kept(output, facts, bench.CASES).values()) == {None}
    with pytest.raises(SystemExit, match="another machine"):
        bench.kept(output, {**facts, "cpu": "other"}, ["dpmpp-2m"])
