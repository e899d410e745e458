"""The training script, on data made here: the same result whether stopped or not."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import RECIPE, ROOT
from tests.evaluate.pictures import idx


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ninety-six garments of noise, in the IDX format."""
    folder = tmp_path / "data"
    folder.mkdir()
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (96, 28, 28), np.uint8)
    labels = draws.integers(0, 10, 96, np.uint8)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def train(run: Path, recipe: Path, data: Path, *more: str) -> str:
    options = ["--steps", "6", "--batch", "16", "--no-compile", "--device", "cpu", "--seed", "3"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), str(recipe), "--run", str(run)]
    command += ["--data", str(data), *options, *more]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # the network is tiny
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread)
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, data: Path, optimizer: str
) -> None:
    recipe = tmp_path / "tiny.toml"
    text = (
        RECIPE.read_text().replace("width = 128", "width = 16").replace("depth = 12", "depth = 2")
    )
    text = text.replace("exits = [3, 6, 9, 12]", "exits = [1, 2]").partition("[schedules]")[0]
    recipe.write_text(text)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, recipe, data, "--optimizer", optimizer)
    assert "paused" in train(parts, recipe, data, "--optimizer", optimizer, "--pause-at", "4")
    assert not (parts / "weights.safetensors").exists()
    assert "resumed at step 4" in train(parts, recipe, data, "--optimizer", optimizer)
    expected, found = (load_file(run / "weights.safetensors") for run in (whole, parts))
    assert {value.dtype for value in expected.values()} == {np.dtype(np.float16)}
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    assert {"exit 1", "exit 2"} < set(rows[-1])


def test_data_that_is_not_there_is_told_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        train(tmp_path / "run", RECIPE, tmp_path / "nowhere", "--exits", "12")
    said = caught.value.stderr
    assert said.startswith("error: found no folder")
    assert "dataset-fashion-mnist" in said
