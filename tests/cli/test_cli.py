"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.show.table import MISSING
from eecompile.store.bundle import open_bundle, open_engine_set, write_manifest
from eecompile.store.folders import make_marked
from tests.cli.conftest import Run
from tests.conftest import RECIPE, TARGETS


def fails(result: tuple[int, str, str], *words: str) -> None:
    """Exit status 1, one sentence with these words on standard error, no traceback."""
    status, _, error = result
    assert status == 1
    assert "Traceback" not in error
    sentence = " ".join(error.partition("error: ")[2].split())
    assert sentence.startswith("found ")
    assert "; expected " in sentence
    assert sentence.endswith(".")
    for word in words:
        assert word in sentence


def test_sample_writes_a_labelled_grid(
    run: Run, engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out.png"
    status, out, _ = run(
        "sample",
        engine_sets["chained"],
        "-n",
        12,
        "--solver",
        "ddim",
        "--steps",
        3,
        "--schedule",
        "full",
        "--seed",
        0,
        "-o",
        output,
    )
    assert status == 0
    assert str(output) in out
    with Image.open(output) as picture:
        assert picture.width > 10 * 84
        assert len(set(np.asarray(picture.convert("L")).ravel())) > 50
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_sample_writes_the_array(run: Run, engine_sets: dict[str, Path], tmp_path: Path) -> None:
    command = ("sample", engine_sets["per_exit"], "-n", 2, "--steps", 3, "--seed", 5)
    for schedule in ("fast", "12,12,9,9,6,6,3,3,3,3", "12:0.2,9:0.4,6:0.6,3"):
        name = tmp_path / f"{len(schedule)}.npy"
        assert run(*command, "--schedule", schedule, "--set", "label=[3, 4]", "-o", name)[0] == 0
    arrays = [np.load(path) for path in tmp_path.iterdir()]
    assert arrays[0].shape == (2, 1, 28, 28)
    assert arrays[0].dtype == np.float32
    for array in arrays[1:]:
        np.testing.assert_array_equal(array, arrays[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", 0), ["0 steps", "1 to 1000"]),
        (("--steps", 2000), ["2000 steps"]),
        (("-n", 0), ["number of samples 0"]),
        (("--set", "label=12"), ["label = 12", "0 to 9"]),
        (("--set", "label=boot"), ["--set label=boot"]),
        (("--set", "class=1"), ["'class'", "label"]),
        (("--set", "seed=1"), ["condition 'seed'", "label"]),
        (("--set", "n=1"), ["condition 'n'", "label"]),
        (("--set", "label=1", "--set", "label=2"), ["label=... twice"]),
        (("--set", "label=[[1,2],[3]]"), ["unequal lengths"]),
        (("--set", "[b]label[/b]=1"), ["[b]label[/b]"]),
        (("--null", "class=1"), ["null value", "'class'"]),
        (("--set", "label=@none.npy"), ["--set label=@none.npy", "@FILE.npy"]),
        (("--null", "class=1", "--guidance", 2), ["null value", "'class'"]),
        (("--null", "label=a"), ["--null label=a"]),
        (("--shape", "1,14,14"), ["shape [1, 14, 14]", "[1, 28, 28]"]),
        (("--shape", "wide"), ["--shape wide", "whole numbers"]),
        (("--schedule", "fastest"), ["'fastest'", "full"]),
        (("--schedule", "12,5"), ["depth 5", "[3, 6, 9, 12]"]),
        (("--schedule", "12:2,3"), ["thresholds"]),
        (("--solver", "eulers"), ["'eulers'", "ddim"]),
        (("--seed", -1), ["seed -1"]),
        (("-o", "out.jpg"), ["out.jpg", ".png or .npy"]),
        (("-o", "no/such/folder/out.png"), ["no/such/folder"]),
    ],
)
def test_wrong_arguments_of_sample(
    run: Run,
    engine_sets: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("sample", engine_sets["per_exit"], "-o", "out.png", "-n", 1, *arguments)
    fails(result, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "x"),
        ("sample", "x", "-o", "a.png", "--steps", "many"),
        ("fly",),
        ("build", "x", "--unknown"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    status, _, error = run(*arguments)
    assert status == 2
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments",
    [("LONG",), ("inspect", "--LONG"), ("inspect", "LONG"), ("inspect", ".", "LONG")]
    + [("program", "ddim:eta=LONG", "-o", "p.json")],
)
def test_what_was_given_is_not_repeated_at_length(run: Run, arguments: tuple[str, ...]) -> None:
    status, out, error = run(*(word.replace("LONG", "a" * 100_000) for word in arguments))
    assert status
    assert "aaaaaaaaa" in error
    assert len(out + error) < 3000


def test_help_and_version(run: Run) -> None:
    for command in ("export", "build", "sample", "inspect"):
        status, out, _ = run(command, "--help")
        assert status == 0
        assert "Usage" in out
    assert run("--version")[:2] == (0, "eecompile 0.1.0\n")


def test_inspect_shows_bundles_and_engine_sets(
    run: Run, bundle: Path, engine_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, words in (
        (bundle, ["unique", "verified", "exit schedules", "█", "T-shirt to ankle boot"]),
        (bundle, ["just these exits", " 6 9 12 │", "relative", "against torch"]),
        (engine_sets["chained"], ["segments", "3 6 9 12", "onnxruntime, fp32, chained"]),
        (
            bundle,
            ["cuts        0 3 6 9 12", "│ 3-9  │ 9 12 ", "│           50% │       1 │ 24.5 KiB │"],
        ),
        (engine_sets["chained"], ["0 3 6 9 12", "│ 9-12 │ 12 ", "│           25% │"]),
        (engine_sets["per_exit"], ["0 3 6 9 12; no spans with layout per_exit"]),
    ):
        status, out, _ = run("inspect", folder)
        assert status == 0
        for word in words:
            assert word in out
        assert max(map(len, out.splitlines())) <= 80


def test_inspect_shows_exits_that_were_checked_at_other_timesteps(
    run: Run, copied: Callable[[Path], Path], small_sets: dict[str, Path]
) -> None:
    folder = copied(small_sets["chained"])
    manifest = open_engine_set(folder)
    first, *others = manifest.exits
    fewer = msgspec.structs.replace(first, points=first.points[-1:])
    write_manifest(folder, msgspec.structs.replace(manifest, exits=(fewer, *others)))
    status, out, _ = run("inspect", folder)
    assert status == 0
    assert re.search(rf"│\s+0 │\s+{MISSING} │", out)


def test_inspect_prints_json(run: Run, bundle: Path, engine_sets: dict[str, Path]) -> None:
    assert json.loads(run("inspect", bundle, "--json")[1])["digest"] == open_bundle(bundle).digest
    shown = json.loads(run("inspect", engine_sets["chained"], "--json")[1])
    assert shown["fingerprint"] == open_engine_set(engine_sets["chained"]).fingerprint
    for spans in (shown["spans"], json.loads(run("inspect", bundle, "--json")[1])["spans"]):
        (span,) = (each for each in spans if (each["start"], each["stop"]) == (3, 9))
        assert span["tensors"][0]["shape"] == [49, 128]
        assert span["bytes"] == 4 * 49 * 128


def test_build_is_up_to_date_the_second_time(run: Run, bundle: Path, tmp_path: Path) -> None:
    command = ("build", bundle, "--target", TARGETS["chained"], "-o", tmp_path / "engines")
    status, out, _ = run(*command)
    assert status == 0
    assert "segments" in out
    status, out, _ = run(*command)
    assert status == 0
    assert "up to date" in out


def test_what_a_build_left_that_was_killed_at_its_end_goes_with_the_next(
    run: Run,
    small_bundle: Path,
    small_sets: dict[str, Path],
    copied: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    folder = copied(small_sets["chained"])
    (tmp_path / f".{folder.name}.lock").touch()
    for name in ("partial", "segments"):
        make_marked(tmp_path / f".{folder.name}.{name}")
    status, out, _ = run("build", small_bundle, "--target", TARGETS["chained"], "-o", folder)
    assert status == 0
    assert "up to date" in out
    assert list(tmp_path.iterdir()) == [folder]


def test_conditions_may_come_from_a_file(
    run: Run, engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "labels.npy", np.array([3, 4]))
    command = ("sample", engine_sets["per_exit"], "-n", 2, "--steps", 2, "--guidance", 2)
    given = (f"label=@{tmp_path / 'labels.npy'}", "label=[3, 4]")
    for name, value in zip(("a", "b"), given, strict=True):
        assert run(*command, "--set", value, "-o", tmp_path / f"{name}.npy")[0] == 0
    assert run(*command, "--set", given[1], "--null", "label=9", "-o", tmp_path / "c.npy")[0] == 0
    a, b, c = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--exits", "6,3"), ["[6, 3]", "ascending"]),
        (("--exits", "3,6"), ["[3, 6]", "the last of them 12"]),
        (("--exits", "all"), ["--exits all", "whole numbers"]),
        (("--checkpoint", "none.pt"), ["no checkpoint at", "none.pt", "--checkpoint"]),
    ],
)
def test_wrong_arguments_of_export(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(run("export", RECIPE, *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_folders(
    run: Run, bundle: Path, engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    fails(run("build", tmp_path), "no manifest.json")
    fails(run("build", bundle, "--target", tmp_path / "x.toml"), "no readable file")
    fails(run("inspect", tmp_path / "none"), "no manifest.json")
    fails(run("sample", bundle, "-o", tmp_path / "a.png"), "a bundle", "an engine-set")
    fails(run("build", engine_sets["chained"]), "an engine-set", "a bundle")
    fails(run("export", tmp_path / "none.toml"), "no readable file")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    target = TARGETS["chained"]
    fails(run("build", bundle, "--target", target, "-o", tmp_path / "taken"), "taken")
    fails(run("build", bundle, "--target", target, "-o", tmp_path / "taken", "--force"), "taken")
    assert (tmp_path / "taken" / "file").read_text() == "mine"


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "COLUMNS"}


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "eecompile", *map(str, arguments)]
    # The test run itself may be a background job, in which shells have SIGINT ignored.
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def wait_for(process: subprocess.Popen[str], phase: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if phase in line:
            return
    raise AssertionError(f"never reached {phase!r}")


@pytest.mark.posix
@pytest.mark.parametrize("phase", ["checking", "optimising", "verifying"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_the_previous_engines(
    bundle: Path, engine_sets: dict[str, Path], tmp_path: Path, how: signal.Signals, phase: str
) -> None:
    folder = tmp_path / "engines"
    shutil.copytree(engine_sets["per_exit"], folder)
    before = open_engine_set(folder)
    command = ("build", bundle, "--target", TARGETS["per_exit"], "-o", folder, "--force")
    with start(*command) as process:
        wait_for(process, phase)
        process.send_signal(how)
        _, error = process.communicate(timeout=60)
    if phase != "verifying":  # by then it may be done before the signal comes
        assert process.returncode != 0
    if process.returncode != 0:
        assert open_engine_set(folder) == before
        if how != signal.SIGKILL:
            assert process.returncode == 130
            assert "to go on, run it again: finished engines are kept" in error
            assert "Traceback" not in error
            assert [p.name for p in tmp_path.iterdir()] == ["engines"]
    engine_set_from_bundle(bundle, TARGETS["per_exit"], folder, force=True)
    open_engine_set(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["engines"]


@pytest.mark.posix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_export_leaves_the_previous_bundle(
    small_recipe: Path, small_bundle: Path, tmp_path: Path, how: signal.Signals
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(small_bundle, folder)
    before = open_bundle(folder)
    with start("export", small_recipe, "-o", folder) as process:
        wait_for(process, "tracing")
        time.sleep(0.3)
        process.send_signal(how)
        process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGKILL)
    assert open_bundle(folder) == before
    bundle_from_recipe(small_recipe, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    open_bundle(folder)


@pytest.mark.posix
def test_an_interrupted_sampling_leaves_the_previous_picture(
    engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out.npy"
    output.write_bytes(b"previous")
    with start(
        "sample",
        engine_sets["per_exit"],
        "-n",
        64,
        "--solver",
        "ddpm",
        "--steps",
        1000,
        "-o",
        output,
    ) as process:
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "it begins anew next time" in error
    assert output.read_bytes() == b"previous"
    assert [p.name for p in tmp_path.iterdir()] == ["out.npy"]


def test_two_builds_at_once_do_not_harm_each_other(bundle: Path, tmp_path: Path) -> None:
    command = ("build", bundle, "--target", TARGETS["per_exit"], "-o", tmp_path / "engines")
    with start(*command) as one, start(*command) as other:
        errors = [process.communicate(timeout=120)[1] for process in (one, other)]
    codes = [one.returncode, other.returncode]
    assert min(codes) == 0
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or "another process" in error or "which exists" in error
    open_engine_set(tmp_path / "engines")


def test_a_bundle_is_not_built_into_itself(run: Run, bundle: Path) -> None:
    for output in (bundle, bundle / "engines"):
        fails(run("build", bundle, "-o", output, "--force"), "within the bundle")
    open_bundle(bundle)


@pytest.mark.posix
@pytest.mark.parametrize("command", ["build", "sample"])
def test_a_full_disk_is_one_sentence(
    bundle: Path, engine_sets: dict[str, Path], tmp_path: Path, command: str
) -> None:
    arguments = {
        "build": [str(bundle), "-o", str(tmp_path / "engines")],
        "sample": [str(engine_sets["chained"]), "-o", str(tmp_path / "a.npy"), "-n", "2"],
    }[command]
    # No file may grow beyond this: as on a full disk, writing fails half-way.
    limit = {"build": 100_000, "sample": 1000}[command]
    code = (
        "import resource, signal, sys\n"
        "from eecompile.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"sys.argv = ['eecompile', '{command}', *{arguments!r}]\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    fails((result.returncode, result.stdout, result.stderr), "no room to write", str(tmp_path))
    assert "operator" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "2>&-"])
def test_closed_streams_lead_nowhere(
    small_sets: dict[str, Path], tmp_path: Path, closed: str
) -> None:
    """Else the file that is written takes a stream's number, and what is printed goes into it."""
    output = tmp_path / "a.npy"
    command = f"sample {small_sets['chained']} -n 2 --steps 2 --schedule 1 -o {output}"
    for line in (f"inspect {small_sets['chained']} --json", command):
        result = subprocess.run(
            f"{sys.executable} -m eecompile {line} {closed}",
            shell=True,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Traceback" not in result.stderr
    assert np.load(output).shape == (2, 1, 28, 28)


def test_compare_without_docstrings_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    arguments = ["compare", str(small_bundle), "--peers", "-o", str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, "-OO", "-m", "eecompile", *arguments], capture_output=True, text=True
    )
    fails((result.returncode, result.stdout, result.stderr), "-OO", "polygraphy")


@pytest.mark.parametrize(
    ("arguments", "mebibytes"),
    [(("export", "{recipe}", "-o", "out"), 500), (("evaluate", "--reference", "a.npy"), 1200)],
)
def test_what_needs_torch_is_refused_in_little_address_space(
    small_recipe: Path, tmp_path: Path, arguments: tuple[str, ...], mebibytes: int
) -> None:
    given = [each.format(recipe=small_recipe) for each in arguments]
    result = subprocess.run(
        ["prlimit", f"--as={mebibytes * 2**20}", sys.executable, "-m", "eecompile", *given],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    fails((result.returncode, result.stdout, result.stderr), f"{mebibytes} MiB", "ulimit -v")


@pytest.mark.posix
def test_export_from_a_folder_that_is_gone_is_refused(small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = [sys.executable, "-m", "eecompile", "export", small_recipe, "-o", tmp_path / "out"]
    result = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *map(str, command)],
        cwd=tmp_path / "gone",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    fails((result.returncode, result.stdout, result.stderr), "has been removed", "cd")


def test_a_terminal_without_the_charts_characters_still_shows_the_rest(bundle: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "eecompile", "inspect", str(bundle)],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "share of blocks" in result.stdout


def test_schedules_that_other_exits_rule_out_are_named(
    run: Run, small_recipe: Path, tmp_path: Path
) -> None:
    status, out, _ = run("export", small_recipe, "--exits", "2,4", "-o", tmp_path / "bundle")
    assert status == 0
    assert "schedules left out" in out
    assert "balanced" in out


def test_a_dry_run_says_what_would_be_built_and_writes_nothing(
    run: Run, bundle: Path, engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    status, out, _ = run("build", bundle, "-o", tmp_path / "set", "--dry-run")
    assert status == 0
    assert "would be built" in out
    assert "segment-03-exits-12.onnx" in out
    assert list(tmp_path.iterdir()) == []
    folder = engine_sets["per_exit"]
    status, out, _ = run(
        "build", bundle, "-o", folder, "--target", TARGETS["per_exit"], "--dry-run"
    )
    assert status == 0
    assert "up to date" in out
