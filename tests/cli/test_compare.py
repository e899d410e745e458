"""``eecompile compare`` as a user meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from eecompile.compare.report import Comparison, EvaluationLatency, read_report
from eecompile.store.files import form_bytes
from tests.cli.conftest import Run
from tests.cli.test_cli import fails
from tests.compare.test_comparison import Copied
from tests.conftest import RECIPE, ROOT
from tests.test_import import without

FAST = ("--batch", "1,2", "--rounds", 2, "--steps", 2, "--schedule", "fast")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def compared(bundle: Path, engine_sets: dict[str, Path], folder: Path) -> str:
    """What the command prints, in a process in which torch cannot be imported."""
    code = without("torch") + "from eecompile.__main__ import main; main()"
    command = [sys.executable, "-c", code, "compare", str(bundle), *map(str, FAST)]
    command += ["--engines", str(engine_sets["chained"]), "-o", str(folder / "report")]
    command += ["--polygraphy-script", str(folder / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "[I]" not in done.stdout + done.stderr  # polygraphy's own log
    return done.stdout


def test_tables_and_files(compared: str, folder: Path) -> None:
    for words in ("cpu-chained", "onnxruntime", "samples/s", "speed-up", "ideal", "fast", "full"):
        assert words in compared
    assert read_report(folder / "report" / "report.json").network == "fashion-dit"
    assert str(folder / "report" / "report.json") in compared.replace("\n", "")


def test_the_script_runs(compared: str, folder: Path) -> None:
    command = [sys.executable, str(folder / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ms ") == 8


def scaled(report: Comparison, factor: float) -> Comparison:
    """As if all but the reference had taken that many times as long."""

    def slowed(latency: EvaluationLatency) -> EvaluationLatency:
        return replace(latency, median=latency.median * factor)

    candidates = tuple(
        each
        if each.name == report.reference
        else replace(
            each,
            exits=tuple(
                replace(exit_, latencies=tuple(map(slowed, exit_.latencies)))
                for exit_ in each.exits
            ),
        )
        for each in report.candidates
    )
    return replace(report, candidates=candidates, trajectories=())


def test_the_gate(
    compared: str,
    run: Run,
    bundle: Path,
    engine_sets: dict[str, Path],
    folder: Path,
    tmp_path: Path,
) -> None:
    report = read_report(folder / "report" / "report.json")
    command = ("compare", bundle, "--engines", engine_sets["chained"], *FAST, "-o", tmp_path / "r")
    (tmp_path / "slow.json").write_bytes(form_bytes(scaled(report, 100)))
    status, out, _ = run(*command, "--baseline", tmp_path / "slow.json")
    assert status == 0
    assert "nothing regressed" in out
    (tmp_path / "fast.json").write_bytes(form_bytes(scaled(report, 0.01)))
    status, _, error = run(*command, "--baseline", tmp_path / "fast.json", "--max-slowdown", "50%")
    assert status == 3
    assert "regressed: cpu-chained, exit 12, batch 2" in error
    assert read_report(tmp_path / "r" / "report.json").network == "fashion-dit"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["nothing to compare", "--engines"]),
        (("--peer", "tvm"), ["peer 'tvm'", "onnxruntime"]),
        (("--peers", "--batch", "one"), ["--batch one", "whole numbers"]),
        (("--peers", "--batch", "0"), ["batch size 0"]),
        (("--peers", "--rounds", "0"), ["--rounds 0"]),
        (("--peers", "--steps", "5000"), ["5000 steps"]),
        (("--peers", "--solver", "rk45"), ["rk45", "ddim"]),
        (("--peers", "--seed", "-1"), ["seed -1"]),
        (("--peers", "--guidance", "nan"), ["guidance"]),
        (("--peers", "--batch", "1000", "--peer", "tvm"), ["peer 'tvm'"]),
        (("--peers", "--polygraphy-script", "none/script.py"), ["none/script.py", "folder"]),
        (("--peers", "--schedule", "fastest"), ["'fastest'"]),
        (("--peers", "--max-error", "1e-3"), ["without --baseline"]),
        (("--peers", "--baseline", "none.json"), ["no report at none.json"]),
        (("--peers", "--baseline", str(RECIPE)), ["no report at"]),
        (("--engines", "nowhere"), ["no manifest.json in nowhere"]),
        (("--torch", "nowhere.toml"), ["nowhere.toml"]),
    ],
)
def test_bad_arguments_are_a_sentence(
    run: Run, bundle: Path, tmp_path: Path, arguments: tuple[str, ...], words: list[str]
) -> None:
    fails(run("compare", bundle, "-o", tmp_path / "report", *arguments), *words)
    assert not (tmp_path / "report").exists()


def test_a_baseline_of_another_format_and_a_folder_of_something_else(
    run: Run, bundle: Path, tmp_path: Path, copied: Copied
) -> None:
    (tmp_path / "old.json").write_bytes(msgspec.json.encode({"format": 99}))
    command = ("compare", bundle, "--peers", "-o", tmp_path)
    fails(run(*command), "which is no folder that eecompile wrote")
    later = (*command[:-1], tmp_path / "report", "--baseline", tmp_path / "old.json")
    fails(run(*later), "format 99", "format 2")


def test_without_polygraphy_the_extra_is_named(bundle: Path, tmp_path: Path) -> None:
    code = without("polygraphy") + "from eecompile.__main__ import main; main()"
    command = [sys.executable, "-c", code, "compare", str(bundle), "--peers", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "pip install 'eecompile[compare]'" in done.stderr
