"""``eecompile tune`` as a user meets it, on the shipped network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.store.target import Target
from eecompile.tune.report import Front, read_front
from tests.cli.conftest import Run
from tests.cli.test_cli import fails
from tests.conftest import ROOT
from tests.test_import import without

FAST = ("--solver", "dpmpp-2m", "--steps", 4, "--seeds", 2, "--held-out", 4, "--batch", 2,
        "--minutes", 0.05)  # fmt: skip
LIBRARIES = ("torch", "onnx", "polygraphy", "plotly")


def command(*arguments: object, missing: tuple[str, ...] = ()) -> list[str]:
    code = without(*missing) + "from eecompile.__main__ import main; main()"
    return [sys.executable, "-c", code, "tune", *map(str, arguments)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned") / "schedules"


@pytest.fixture(scope="module")
def printed(engine_sets: dict[str, Path], folder: Path) -> str:
    """What the command prints where torch, onnx, polygraphy and plotly cannot be imported."""
    done = subprocess.run(
        command(engine_sets["chained"], *FAST, "-o", folder, missing=LIBRARIES),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def front(printed: str, folder: Path) -> Front:
    return read_front(folder / "front.json")


@pytest.mark.alone
def test_tables_and_files(printed: str, front: Front, folder: Path) -> None:
    for words in (
        "What a step takes",
        "forecast1",
        "full",
        "ASE",
        "linear to 3",
        "exit 9",
        "steps",
    ):
        assert words in printed
    found = [point for point in front.points if point.kind == "found"]
    names = {"front.json", *(f"{point.name}.json" for point in found)}
    assert {path.name for path in folder.iterdir()} == names
    assert len(found) >= 3


@pytest.mark.alone
def test_the_figures_are_those_of_the_shipped_network(front: Front) -> None:
    assert front.network == "fashion-dit"
    assert front.unit == "range"
    assert {"12", "9", "6", "3", "again", "forecast1", "forecast2"} <= {
        each.choice.text for each in front.latencies
    }
    assert all(each.median >= 0 for each in front.latencies)
    points = {point.name: point for point in front.points}
    assert points["exit 3"].distance > points["exit 6"].distance > points["exit 9"].distance > 0
    for point in front.points:
        assert point.ideal_share == pytest.approx(sum(c.blocks for c in point.choices) / 48)
        assert point.interval[0] <= point.distance <= point.interval[1]
    for each in front.points:
        if each.kind == "found":
            assert each.predicted_share <= (each.budget or 0) * 1.011


def test_sample_takes_a_found_schedule(
    run: Run, front: Front, folder: Path, engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    point = min((p for p in front.points if p.kind == "found"), key=lambda p: p.distance)
    made = {}
    for name, schedule in (("found", folder / f"{point.name}.json"), ("full", "full")):
        path = tmp_path / f"{name}.npy"
        status, _, error = run("sample", engine_sets["chained"], "-n", 6, "--solver", "dpmpp-2m",
                               "--steps", 4, "--schedule", schedule, "-o", path)  # fmt: skip
        assert status == 0, error
        made[name] = np.load(path)[2:]  # the held-out ones
    distance = np.sqrt(np.square(made["found"] - made["full"]).mean()) / 2
    assert distance == pytest.approx(point.distance, rel=1e-3)


def test_what_is_there_is_replaced_only_when_asked(
    run: Run, printed: str, folder: Path, engine_sets: dict[str, Path]
) -> None:
    again = ("tune", engine_sets["chained"], *FAST, "-o", folder)
    fails(run(*again), "--force")
    assert (folder / "front.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", 0.05), ("budget of 0.05", "at least 0.")),
        (("--budget", 2), ("budget 2", "above 0, and at most 1")),
        (("--use", "exits,nonsense"), ("nonsense", "exits, forecasts")),
        (("--seeds", 1), ("--seeds",)),
        (("--batch", 100000), ("batch size",)),
        (("--solver", "nonsense"), ("nonsense",)),
        (("--set", "colour=3"), ("colour", "label")),
        (("--set", "label=77"), ("label = 77",)),
        (("--guidance", "nan"), ("guidance nan",)),
    ],
)
def test_what_cannot_be_done_is_said(
    run: Run, engine_sets: dict[str, Path], tmp_path: Path, arguments: tuple[object, ...],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    fails(run("tune", engine_sets["chained"], *FAST, *arguments, "-o", out), *words)
    assert "--budget" in arguments or not out.exists()


def test_engine_sets_of_other_networks_are_refused(
    run: Run, engine_sets: dict[str, Path], other_exits: Callable[..., Path], tmp_path: Path
) -> None:
    target = Target(name="other", backend="onnxruntime")
    engine_set_from_bundle(other_exits(3, 12), target, tmp_path / "other")
    result = run("tune", engine_sets["chained"], "--engines", tmp_path / "other", *FAST,
                 "-o", tmp_path / "out")  # fmt: skip
    fails(result, "another bundle")


@pytest.mark.posix
def test_an_interrupted_command_goes_on(engine_sets: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = command(engine_sets["chained"], *FAST, "--budget", 0.7, "-o", out)
    # The test run itself may be a background job, in which shells have SIGINT ignored.
    process = subprocess.Popen(
        whole,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "what every choice costs" in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from there" in output
    assert "Traceback" not in error
    assert [path.name for path in out.iterdir()] == [".tune.partial"]
    done = subprocess.run(whole, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    # It had evaluated every choice at every step before.
    assert (out / "front.json").exists()
    assert (out / "report.html").exists()
    assert not (out / ".tune.partial").exists()
    about = json.loads((out / "budget-70.json").read_text())["about"]
    assert about["budget"] == 0.7
