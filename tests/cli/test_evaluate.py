"""``eecompile evaluate`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_engine_set
from tests.cli.conftest import Run
from tests.cli.test_cli import fails
from tests.conftest import ROOT
from tests.evaluate.pictures import feature_network, function, garments
from tests.test_import import without

Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluated(run: Run, engine_sets: dict[str, Path], tmp_path: Path) -> Evaluate:
    """Runs the command on the shipped network with a small feature network."""
    np.save(tmp_path / "real.npy", garments(60, 0))
    network = feature_network(tmp_path / "net.onnx")

    def call(*arguments: object) -> tuple[int, str, str]:
        given = ("--reference", tmp_path / "real.npy", "--features", network, "-n", 24)
        places = ("--work", tmp_path / "work", "-o", tmp_path / "out.json")
        fixed = (*given, "--steps", 2, "--batch", 10, *places)
        return run("evaluate", engine_sets["chained"], *fixed, *arguments)

    return call


def rows(folder: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((folder / "out.json").read_text())["rows"]}


def test_schedules_files_and_samples_share_a_table(evaluated: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "found.json").write_bytes(ExitSchedule((12, 3), (0.6,)).to_json())
    np.save(tmp_path / "ready.npy", garments(50, 1))
    status, out, _ = evaluated(
        "--schedule", "full", "--schedule", 3, "--schedule", tmp_path / "found.json",
        "--samples", tmp_path / "ready.npy",
    )  # fmt: skip
    assert status == 0
    for words in ("full", "found", "ready.npy", "one half", "25%", "no FID", "± is one standard"):
        assert words in " ".join(out.split())
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["format"] == 2
    assert written["network"] == "fashion-dit"
    assert written["settings"] == {
        "solver": "ddim(eta=0, trailing)", "steps": 2, "guidance": 1.0, "seed": 0, "shape": None,
        "guidance_interval": None, "conditions": [], "nulls": [],
        "digest": SampleRequest().digest(),
    }  # fmt: skip
    found = rows(tmp_path)
    assert list(found) == ["full", "3", "found", "ready.npy"]
    assert [found[name].get("cost_share") for name in found] == [1.0, 0.25, 0.625, None]
    assert [c["depth"] for c in found["found"]["choices"]] == [3, 12]
    beyond = found["3"]["frechet_distance"] - found["full"]["frechet_distance"]
    assert found["3"]["beyond"] == pytest.approx(beyond, abs=1e-3)
    assert "beyond" not in found["full"]
    assert "beyond" not in found["ready.npy"]
    assert found["full"]["samples"] == 24
    assert found["full"] != found["3"] | {"name": "full"}


def test_what_is_evaluated_is_what_the_sampler_makes(
    evaluated: Evaluate, engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    with Sampler.open(engine_sets["chained"]) as sampler:
        made = sampler.sample(
            24, steps=2, schedule="fast", seed=5, label=7,
            guidance=2.0, guidance_interval=(0, 600), nulls={"label": 3},
        )  # fmt: skip
    np.save(tmp_path / "ready.npy", made.astype(np.float16))
    settings = ("--seed", 5, "--guidance", 2, "--set", "label=7", "--schedule", "fast")
    given = ("--guidance-interval", "0,600", "--null", "label=3", "--shape", "1,28,28")
    assert evaluated(*settings, *given, "--samples", tmp_path / "ready.npy")[0] == 0
    found = rows(tmp_path)
    for figure in ("frechet_distance", "precision", "recall"):
        assert found["fast"][figure] == pytest.approx(found["ready.npy"][figure], rel=1e-3)
    told = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert (told["guidance_interval"], told["shape"]) == ([0.0, 600.0], [1, 28, 28])
    assert (told["conditions"], told["nulls"]) == (["label"], ["label"])
    for before, other in ("0,600", "0,300"), ("label=3", "label=4"):  # not the kept samples
        changed = [other if word == before else word for word in given]
        assert evaluated(*settings, *changed)[0] == 0
        assert rows(tmp_path)["fast"]["frechet_distance"] != found["fast"]["frechet_distance"]
    listed = []
    for labels in ([0, 1, 2], [index % 3 for index in range(24)]):  # repeated in turn, and whole
        assert evaluated("--set", f"label={labels}", "--schedule", "fast")[0] == 0
        listed.append(rows(tmp_path)["fast"]["frechet_distance"])
    assert listed[0] == listed[1] != found["fast"]["frechet_distance"]


def test_programs_are_further_rows(
    evaluated: Evaluate, engine_sets: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    engines = engine_sets["chained"]
    for solver, steps in (("ddim", 3), ("dpmpp-2m", 3), ("ddim", 2)):
        path = tmp_path / f"{solver}-{steps}.json"
        command = ("program", solver, "--steps", steps, "--for", engines, "--schedule", "full")
        assert run(*command, "-o", path)[0] == 0
    with Sampler.open(engines) as sampler:
        made = sampler.sample(24, solver="dpmpp-2m", steps=3, schedule="full")
    np.save(tmp_path / "ready.npy", made.astype(np.float16))
    status, out, _ = evaluated(
        "--schedule", "full", "--program", tmp_path / "ddim-3.json",
        "--program", tmp_path / "dpmpp-2m-3.json", "--samples", tmp_path / "ready.npy",
    )  # fmt: skip
    assert status == 0
    assert "3, 2 steps" in " ".join(out.split())
    assert "(dpmpp-2m)" in out
    found = rows(tmp_path)
    assert list(found) == ["full", "ddim-3", "dpmpp-2m-3", "ready.npy"]
    assert [len(row.get("choices", ())) for row in found.values()] == [2, 3, 3, 0]
    assert "solver" not in found["ddim-3"]
    assert found["dpmpp-2m-3"]["solver"].startswith("dpmpp-2m")
    assert found["dpmpp-2m-3"]["beyond"] is not None
    assert found["dpmpp-2m-3"]["frechet_distance"] == pytest.approx(
        found["ready.npy"]["frechet_distance"], rel=1e-3
    )
    assert evaluated("--program", tmp_path / "ddim-2.json")[0] == 0  # without a schedule: alone
    assert list(rows(tmp_path)) == ["ddim-2"]
    assert rows(tmp_path)["ddim-2"]["frechet_distance"] == found["full"]["frechet_distance"]
    fails(evaluated("--program", tmp_path / "none.json"), "none.json")
    ready = ("--samples", tmp_path / "ready.npy", "--reference", tmp_path / "real.npy")
    given = ("--program", tmp_path / "ddim-2.json")
    fails(run("evaluate", *ready, *given), "without an engine set")


def test_schedules_may_name_engine_sets(
    evaluated: Evaluate, engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    sets = [engine_sets["chained"], engine_sets["per_exit"]]
    first, second = (open_engine_set(folder).target.name for folder in sets)
    with Sampler.open(*sets) as sampler:
        named = ExitSchedule.parse(f"12,3@{second}")
        made = sampler.sample(24, steps=2, schedule=named)
    np.save(tmp_path / "ready.npy", made.astype(np.float16))
    (tmp_path / "both.json").write_bytes(named.to_json())
    given = ("--engines", sets[1], "--schedule", tmp_path / "both.json")
    assert evaluated(*given, "--samples", tmp_path / "ready.npy")[0] == 0
    found = rows(tmp_path)
    both, ready = (found[name]["frechet_distance"] for name in ("both", "ready.npy"))
    assert both == pytest.approx(ready, rel=1e-3)
    assert json.loads((tmp_path / "out.json").read_text())["engines"] == [first, second]
    fails(evaluated("--schedule", tmp_path / "both.json"), second)  # without the second set


def test_an_interrupted_evaluation_goes_on(
    evaluated: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluated("--schedule", "fast", "--work", tmp_path / "at once")[0] == 0
    expected = rows(tmp_path)
    (tmp_path / "out.json").unlink()
    sample, calls = Sampler.sample_requests, []

    def failing(self: Sampler, requests: list[SampleRequest], **options: Any) -> Any:
        calls.append(requests[0].first)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, requests, **options)

    monkeypatch.setattr(Sampler, "sample_requests", failing)
    status, _, error = evaluated("--schedule", "fast")
    assert (status, calls) == (130, [0, 10, 20])
    assert "interrupted" in error
    assert not (tmp_path / "out.json").exists()
    assert evaluated("--schedule", "fast")[0] == 0
    assert calls == [0, 10, 20, 20]
    assert rows(tmp_path) == expected
    assert evaluated("--schedule", "fast")[0] == 0
    assert len(calls) == 4
    damaged, *_ = (tmp_path / "work" / "samples").rglob("*.npy")
    np.save(damaged, np.zeros((10, 1, 28, 28), np.float16))
    assert evaluated("--schedule", "fast")[0] == 0
    assert len(calls) == 5, "what is damaged is made anew"
    assert rows(tmp_path) == expected
    assert not list((tmp_path / "work").rglob("*.partial"))
    assert evaluated("--schedule", "fast", "--seed", 1)[0] == 0  # other samples
    assert len(calls) == 8


def test_samples_alone_need_no_engine_set(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "real.npy", ((garments(60, 0) + 1) * 127.5).astype(np.uint8))
    np.save(tmp_path / "ready.npy", garments(50, 1))
    network = feature_network(tmp_path / "net.onnx")
    status, out, _ = run(
        "evaluate", "--samples", tmp_path / "ready.npy", "--reference", tmp_path / "real.npy",
        "--features", network, "--work", tmp_path / "work",
    )  # fmt: skip
    assert status == 0
    assert "samples beside real.npy" in out


def test_wrong_input_is_a_sentence(evaluated: Evaluate, run: Run, tmp_path: Path) -> None:
    fails(evaluated("--reference", tmp_path / "none.npy"), "none.npy", "folder of pictures")
    fails(evaluated("--schedule", "unknown"), "unknown", "balanced")
    fails(evaluated("--schedule", tmp_path / "none.json"), "none.json", "eecompile tune")
    fails(evaluated("--schedule", "5"), "depth 5", "[3, 6, 9, 12]")
    fails(evaluated("-n", 10), "-n 10", "20 samples or more")
    fails(evaluated("--batch", 0), "--batch 0")
    fails(evaluated("--set", "colour=3"), "'colour'", "['label']")
    fails(evaluated("--set", f"label={[3] * 25}"), "label", "[25]", "[24]")
    fails(evaluated("--shape", "1,14,14"), "[1, 14, 14]", "[1, 28, 28]")
    fails(evaluated("--guidance-interval", "5"), "--guidance-interval 5", "LOW,HIGH")
    fails(evaluated("--guidance-interval", "9,5"), "9", "5")
    fails(evaluated("--null", "colour=1"), "'colour'", "['label']")
    fails(evaluated("--floor", tmp_path / "out.json"), "out.json", "IDX")
    fails(evaluated("-o", tmp_path / "out.txt"), "out.txt", ".json")
    np.save(tmp_path / "large.npy", garments(40, 0).repeat(2, 3))
    fails(evaluated("--samples", tmp_path / "large.npy"), "[40, 1, 28, 56]", "[N, 1, 28, 28]")
    other = function(tmp_path / "other.onnx", "Identity", ("n", 5, 9))
    fails(evaluated("--features", other), "other.onnx", "[1, 28, 28]")
    fails(run("evaluate", "--reference", tmp_path / "real.npy"), "no engine set and no --samples")
    assert not (tmp_path / "work").exists()


def test_a_missing_package_names_the_extra(engine_sets: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "real.npy", garments(60, 0))
    for package in ("torchmetrics", "efficientnet_lite_pytorch", "torch"):
        code = without(package) + "from eecompile.__main__ import main; main()"
        command = [sys.executable, "-c", code, "evaluate", str(engine_sets["chained"])]
        command += ["--reference", str(tmp_path / "real.npy"), "-n", "20", "--steps", "1"]
        command += ["--work", str(tmp_path / "work")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        fails((done.returncode, done.stdout, done.stderr), package, "eecompile[evaluate]")
    assert not list((tmp_path / "work").rglob("samples"))
