"""What only a GPU can settle, rehearsed on the CPU."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from eecompile.measure.machine import gpus
from tests.conftest import ROOT


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("gpu")


@pytest.mark.posix
@pytest.mark.skipif(bool(gpus()), reason="a rehearsal on the CPU")
def test_parts_run_on_the_cpu_as_far_as_they_can(
    gpu: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").symlink_to(bundle)
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    built, refused = gpu.plans()
    assert built["target"] == "cpu"
    assert built["ddim, guidance 1"] == 0, "it is what it is compared with"
    assert "tensorrt" in refused["refused"]
    rows = gpu.choices()
    assert rows[0]["choices"] == "full"
    assert rows[0]["distance over deviation"] == 0
    assert {row["of its blocks"] for row in rows} > {0.25, 0.5, 0.75, 1.0}
    assert all(row["distance over deviation"] > 0 for row in rows[1:])
    assert gpu.trajectories()[0]["batch"] == 1
    assert gpu.memory()[0]["opened"] == 0, "of the GPU, and there is none"


def test_a_part_that_fails_says_why_and_the_next_goes_on(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def in_child(part: str, seconds: float) -> dict[str, Any]:
        asked.append(part)
        return {"failed": "it broke"} if asked == ["plans"] else {"result": []}

    monkeypatch.setattr(gpu, "_in_child", in_child)
    output = tmp_path / "gpu.json"
    gpu.run(["plans", "memory"], output=output)
    assert "plans, 0 s: it broke" in capsys.readouterr().out
    assert json.loads(output.read_text())["plans"]["failed"] == "it broke"
    gpu.run(["plans", "memory"], output=output)
    assert asked == ["plans", "memory", "plans"], "what is done is not done again"
    gpu.run(["plans"], again=True, seconds=1, output=output)
    assert "no time is left; run the command again to go on" in capsys.readouterr().out


def test_a_part_in_a_process_of_its_own_ends_at_its_limit(gpu: Any) -> None:
    assert "it took longer than 1 s" in gpu._in_child("environment", 1)["failed"]
    assert "KeyError: 'nothing'" in gpu._in_child("nothing", 60)["failed"]


def test_an_unknown_part_is_named(gpu: Any) -> None:
    with pytest.raises(SystemExit, match="found part 'nothing'; expected one of environment"):
        gpu.run(["nothing"])
