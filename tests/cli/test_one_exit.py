"""A network with one exit, as most checkpoints have: every command takes it as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eecompile.compare.report import read_report
from eecompile.recipe import load_recipe
from tests.cli.conftest import Run
from tests.conftest import TARGETS

FORECASTS = "4,forecast2,4,forecast1,4,again,4,4"  # t = 0 first, one entry for each of 8 steps


@pytest.fixture
def recipe(small_recipe: Path, tmp_path: Path) -> Path:
    """The small network with its deepest exit alone, and no schedules."""
    text = small_recipe.read_text()
    before, _, rest = text.partition("[schedules]")
    _, sampling, after = rest.partition("[sampling]")
    text = before + sampling + after.replace('schedule = "balanced"\n', "")
    text = text.replace("exits = [1, 2, 4]", "exits = [4]")
    weights = small_recipe.with_name("small.safetensors")
    (tmp_path / "one.toml").write_text(text.replace('"small.safetensors"', f'"{weights}"'))
    return tmp_path / "one.toml"


@pytest.mark.parametrize("layout", TARGETS)
def test_export_build_sample_and_compare(
    run: Run, recipe: Path, layout: str, tmp_path: Path
) -> None:
    bundle, engines = tmp_path / "bundle", tmp_path / "engines"
    assert load_recipe(recipe).network.exits == (4,)
    assert run("export", recipe, "-o", bundle)[0] == 0
    status, out, _ = run("build", bundle, "--target", TARGETS[layout], "-o", engines)
    assert status == 0, out
    settings = ("--steps", 8, "--seed", 3)
    for name, schedule in (("full", "full"), ("forecasts", FORECASTS)):
        output = tmp_path / f"{name}.npy"
        assert run("sample", engines, *settings, "--schedule", schedule, "-o", output)[0] == 0
    full, forecast = (np.load(tmp_path / f"{name}.npy") for name in ("full", "forecasts"))
    assert full.shape == forecast.shape == (16, 1, 28, 28)
    assert 0 < np.sqrt(np.mean((full - forecast) ** 2)) < 0.1 * np.std(full)
    options = ("--engines", engines, "--batch", 1, "--rounds", 2, *settings[:2])
    report = tmp_path / "report"
    status, out, error = run("compare", bundle, *options, "--schedule", FORECASTS, "-o", report)
    assert status == 0, error
    found = read_report(report / "report.json")
    assert {each.exits[0].depth for each in found.candidates} == {4}
    ideal = {each.schedule: each.ideal_speed_up for each in found.trajectories}
    assert ideal == {"full": 1.0, FORECASTS: pytest.approx(8 / 5)}
