"""Comparisons of real engine sets: what a report says, and what it does where something fails."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from polygraphy.comparator import RunResults
from rich.console import Console
from safetensors.numpy import save_file

from eecompile.compare import checks, peers
from eecompile.compare.accuracy import accuracy, outputs_of
from eecompile.compare.candidates import Spec, opened
from eecompile.compare.child import Job, JobResult, in_child
from eecompile.compare.comparison import (
    PAGE,
    REPORT,
    ComparisonResult,
    check_output,
    compare,
    write,
)
from eecompile.compare.gate import regressions
from eecompile.compare.measure import points, quiet
from eecompile.compare.report import read_report
from eecompile.compare.tables import comparison_parts
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.errors import BackendError, NonFiniteError, OutputExistsError, UsageError
from eecompile.runtime.request import SampleRequest
from eecompile.show.terminal import rendered
from eecompile.store.bundle import open_engine_set, records, write_manifest
from eecompile.store.files import form_bytes
from eecompile.store.target import DEFAULT_TARGET, Tolerance
from tests.conftest import RECIPE

Copied = Callable[[Path], Path]
FAST: dict[str, Any] = {"batches": (1, 3), "rounds": 2, "steps": 2}
EXITS = [3, 6, 9, 12]


@pytest.fixture(scope="module")
def comparison(bundle: Path, engine_sets: dict[str, Path]) -> ComparisonResult:
    """The trained network, both layouts, ONNX Runtime, and whatever else there is."""
    return compare(
        bundle,
        list(engine_sets.values()),
        recipe=RECIPE,
        named=["onnxruntime", "openvino"],
        **FAST,
    )


def test_every_cell_is_measured(comparison: ComparisonResult) -> None:
    report = comparison.report
    names = [each.name for each in report.candidates]
    assert names == ["torch", "cpu", "cpu-chained", "onnxruntime", "openvino"]
    assert [each.kind for each in report.candidates] == ["torch", *["engines"] * 2, *["peer"] * 2]
    for each in report.candidates:
        assert not each.skipped
        assert each.versions
        assert (each.bytes or 0) > 1 << 20
        assert (each.resident_mib or 0) > 5
        assert [exit_.depth for exit_ in each.exits] == EXITS
        for exit_ in each.exits:
            assert [latency.batch for latency in exit_.latencies] == [1, 3]
            for latency in exit_.latencies:
                assert 0 < latency.median <= latency.p90
                assert latency.rounds == 2


def test_errors_are_to_the_trained_network_at_many_timesteps(comparison: ComparisonResult) -> None:
    report = comparison.report
    assert report.reference == "torch"
    assert len(report.settings.timesteps) >= 5
    assert report.settings.timesteps[0] == 0
    assert report.settings.timesteps[-1] == 999
    for each in report.candidates:
        for exit_ in each.exits:
            assert exit_.passed
            if each.name == "torch":
                assert not exit_.errors
                continue
            timesteps = {point.timestep for point in exit_.errors}
            assert timesteps == set(report.settings.timesteps)
            assert all(0 < point.worst < 1e-4 for point in exit_.errors)
            assert exit_.metrics["cosine"] > 0.99999
            assert exit_.metrics["psnr"] > 80
            assert exit_.metrics["l2"] < 1e-2


def test_trajectories_have_speed_and_distance(comparison: ComparisonResult) -> None:
    found = {(each.candidate, each.schedule): each for each in comparison.report.trajectories}
    assert len(found) == 5 * 4
    for (_, schedule), each in found.items():
        assert each.batch == 3
        assert each.seconds_per_sample > 0
        assert each.ideal_speed_up == pytest.approx(12 / each.mean_depth)
        if schedule == "full":
            assert (each.speed_up, each.psnr) == (1, None)
        else:
            assert each.psnr is not None
            assert each.distance is not None
            assert each.psnr == pytest.approx(-20 * np.log10(each.distance))
    psnrs = [found[name, "fast"].psnr for name in ("torch", "cpu", "openvino")]
    assert np.ptp(np.array(psnrs, float)) < 0.1


def test_the_same_seeds_are_drawn_for_every_candidate_and_schedule(
    comparison: ComparisonResult,
) -> None:
    assert len(comparison.images) == 5 * 4
    assert all(data.startswith(b"\x89PNG") for data in comparison.images.values())


def test_a_report_is_written_and_read_again(comparison: ComparisonResult, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    written = write(comparison, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(p.name for p in written)
    assert read_report(folder / REPORT) == comparison.report
    check_output(folder)
    (folder / "notes.txt").touch()
    with pytest.raises(OutputExistsError, match=r"notes\.txt"):
        write(comparison, folder)
    assert PAGE == "report.html"


@pytest.mark.posix
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_output_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(OutputExistsError, match="report, which is no folder"):
        check_output(tmp_path / "report" / below)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputExistsError, match="nowhere, which is no folder"):
        check_output(tmp_path / "nowhere")
    check_output(tmp_path / "new" / "folder")


def perturbed(folder: Path, factor: float) -> Path:
    """The engine set with other weights, and a manifest that says so."""
    path = folder / "weights.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    weights = np.frombuffer(data[start:], np.float32) * np.float32(factor)
    path.write_bytes(data[:start] + weights.tobytes())
    write_manifest(folder, replace(open_manifest(folder), files=records(folder)))
    return folder


def open_manifest(folder: Path) -> Any:
    import msgspec

    from eecompile.store.bundle import MANIFEST
    from eecompile.store.manifest import EngineManifest

    return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=EngineManifest)


def test_a_perturbed_engine_set_is_caught(
    bundle: Path, engine_sets: dict[str, Path], copied: Copied, tmp_path: Path
) -> None:
    bad = perturbed(copied(engine_sets["per_exit"]), 1.01)
    assert open_engine_set(bad)
    broken = perturbed(copied(engine_sets["chained"]).rename(bad.parent / "broken"), np.nan)
    good = engine_sets["chained"]
    report = compare(bundle, [bad, good, broken], **FAST).report
    assert report.reference == "onnxruntime"
    verdicts = {each.name: [exit_.passed for exit_ in each.exits] for each in report.candidates}
    assert verdicts == {
        "onnxruntime": [True] * 4,
        "cpu": [False] * 4,
        "cpu-chained (chained)": [True] * 4,
        "cpu-chained (broken)": [False] * 4,
    }
    _, right, nan, reference = report.candidates
    assert "NaN" in nan.skipped  # in the first step of a trajectory
    for exit_ in nan.exits:  # speed is measured all the same
        assert len(exit_.latencies) == 2
        assert {point.relative for point in exit_.errors} == {None}
    path = tmp_path / REPORT
    path.write_bytes(form_bytes(report))
    assert read_report(path) == report
    shown = Console(width=200, file=io.StringIO(), record=True)
    shown.print(rendered(*comparison_parts(report)))
    assert (
        shown.export_text().count("not finite") == 16
    )  # the largest error and its share, at four exits in two sets
    healthy = replace(nan, exits=right.exits, skipped="")
    baseline = replace(report, candidates=(healthy, reference))
    found = regressions(report, baseline, max_slowdown=1e9)
    assert len(found) == 1 + 4
    assert found[1].startswith("cpu-chained (broken), exit 3: outputs are no longer finite")
    now = replace(report, candidates=(nan, reference))
    assert not regressions(baseline, now, max_slowdown=1e9)


def test_what_fails_half_way_keeps_the_others_results(
    bundle: Path, engine_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = peers.OpenvinoPeer.evaluate

    def failing(self: Any, depth: int, *inputs: Any) -> Any:
        if depth == 9:
            raise RuntimeError("no memory left")
        return evaluate(self, depth, *inputs)

    monkeypatch.setattr(peers.OpenvinoPeer, "evaluate", failing)
    report = compare(bundle, [engine_sets["chained"]], named=["openvino"], **FAST).report
    found = {each.name: each for each in report.candidates}
    assert found["openvino"].skipped == "exit 9: RuntimeError: no memory left"
    assert [exit_.depth for exit_ in found["openvino"].exits] == [3, 6]
    assert not found["cpu-chained"].skipped
    assert [exit_.depth for exit_ in found["cpu-chained"].exits] == EXITS
    assert {each.candidate for each in report.trajectories} == {"onnxruntime", "cpu-chained"}


def test_a_missing_peer_is_left_out_with_its_reason_or_refused_by_name(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = checks.find_spec
    monkeypatch.setattr(
        checks, "find_spec", lambda name: None if name == "openvino" else known(name)
    )
    with pytest.raises(BackendError, match=r"pip install 'eecompile\[openvino\]'"):
        compare(bundle, named=["openvino"], **FAST)
    with pytest.raises(UsageError, match=r"add --torch RECIPE"):
        compare(bundle, named=["torch.compile"], **FAST)
    report = compare(bundle, peers=True, schedules=["fast"], **FAST).report
    skipped = {each.name: each.skipped for each in report.candidates if each.skipped}
    assert "no package openvino" in skipped["openvino"]
    assert "without the trained network" in skipped["torch.compile"]
    if not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110
        assert {"tensorrt", "tensorrt-rtx"} <= set(skipped)
    assert {each.schedule for each in report.trajectories} == {"full", "fast"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batches": (0,)}, "batch size 0"),
        ({"batches": ()}, "no batch sizes"),
        ({"rounds": -1}, "rounds -1"),
        ({"steps": 0}, "0 steps"),
        ({"schedules": ["fastest"]}, "'fastest'"),
        ({"schedules": ["5"]}, "depth 5"),
        ({"schedules": ["12@cpu,6"]}, "chooses among engine sets"),
        ({"solver": "rk45"}, "rk45"),
        ({"samples": SampleRequest(seed=-1)}, "seed -1"),
        ({"samples": SampleRequest(seed=2**64)}, "seed"),
        ({"samples": SampleRequest(guidance=float("nan"))}, "guidance"),
        ({"samples": SampleRequest(conditions={"label": [1, 2, 3, 4]})}, r"\[4\]; .* \[3\]"),
        ({"samples": SampleRequest(conditions={"label": [[1, 2], [3]]})}, "unequal lengths"),
        ({"named": ["tvm"]}, "peer 'tvm'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(
    bundle: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        compare(bundle, **FAST | arguments)


SERIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, exits):
        super().__init__()
        self.exits = exits
        self.mix = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x, t, mood):
        found = torch.tanh(self.mix(x)) + mood.sum(1)[:, None, None] + t[:, None, None] / 1000
        return (found,)
"""


def test_one_exit_of_a_series_with_a_condition_without_default(
    tmp_path: Path, beside: Callable[[str], str]
) -> None:
    module = beside(SERIES)
    weights = {"mix.weight": np.ones((2, 2, 3), np.float32), "mix.bias": np.zeros(2, np.float32)}
    save_file(weights, tmp_path / "series.safetensors")
    recipe = tmp_path / "series.toml"
    recipe.write_text(
        f'name = "series"\n[network]\nfactory = "{module}:Net"\nexits = [1]\n'
        'checkpoint = "series.safetensors"\n[state]\nshape = [2, 16]\n'
        '[conditions.mood]\ndtype = "float32"\nshape = [5]\n'
    )
    folders = [tmp_path / "[red]one", tmp_path / "<b>two"]
    bundle_from_recipe(recipe, tmp_path / "bundle")
    for folder in folders:
        engine_set_from_bundle(tmp_path / "bundle", DEFAULT_TARGET, folder)
    asked = SampleRequest(guidance=2.0, seed=5)
    made = compare(tmp_path / "bundle", folders, samples=asked, solver="dpmpp-2m", **FAST)
    report = made.report
    assert (report.settings.guidance, report.settings.seed) == (2, 5)
    assert report.settings.solver == "dpmpp-2m"
    assert {each.schedule for each in report.trajectories} == {"full"}
    assert not any(each.skipped for each in report.candidates)
    assert made.images == {}
    shown = Console(width=200, file=io.StringIO(), record=True)
    shown.print(rendered(*comparison_parts(report)))
    words = shown.export_text()
    page = write(made, tmp_path / "report")[1].read_text()
    for folder in folders:
        assert f"({folder.name})" in words
        assert f"({html.escape(folder.name)})" in page


def test_a_batch_that_an_engine_set_does_not_take_is_refused(
    bundle: Path, engine_sets: dict[str, Path]
) -> None:
    with pytest.raises(UsageError, match="batch size 65, and engines of cpu-chained for at most"):
        compare(bundle, [engine_sets["chained"]], **FAST | {"batches": (1, 65)})


def test_one_engine_set_twice_is_refused(bundle: Path, engine_sets: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="two candidates named"):
        compare(bundle, [engine_sets["chained"]] * 2, **FAST)


def test_a_process_of_its_own_brings_results_that_polygraphy_joins(
    bundle: Path, tmp_path: Path
) -> None:
    spec = Spec(name="apart", source="onnxruntime", bundle=str(bundle))
    answer = in_child(Job(spec=spec, batches=(1, 2), largest=4, rounds=2), tmp_path)
    assert not answer.error
    assert {depth: len(each) for depth, each in answer.latencies.items()} == dict.fromkeys(EXITS, 2)
    with quiet(), opened(spec) as here:
        inputs = points(here.interface, [4])
        ours = outputs_of(here.runner(6), inputs)
        theirs = RunResults.load(str(tmp_path / "outputs-6.json"))
        found = accuracy(6, ours, theirs, inputs, Tolerance())
    assert found.passed
    assert found.metrics["cosine"] == pytest.approx(1)


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    spec = Spec(name="none", source="onnxruntime", bundle=str(tmp_path / "none"))
    answer = in_child(Job(spec=spec, batches=(1,)), tmp_path)
    assert isinstance(answer, JobResult)
    assert "no manifest.json" in answer.error


def test_outputs_that_are_not_finite_have_not_passed(bundle: Path) -> None:
    spec = Spec(name="one", source="onnxruntime", bundle=str(bundle))
    with quiet(), opened(spec) as here:
        inputs = points(here.interface, [2])
        right = outputs_of(here.runner(3), inputs)
        broken = outputs_of(here.runner(3), inputs)
        broken[0][1][2]["prediction_003"][0, 0, 0, 0] = np.nan
        found = accuracy(3, right, broken, inputs, Tolerance())
        assert not found.passed
        assert [each.timestep for each in found.errors if each.relative is None] == [333]
        assert [each.worst for each in found.errors if each.worst] == []
        assert found.metrics == {"l2": 0, "cosine": pytest.approx(1)}  # of the others


def test_a_reference_that_is_not_finite_is_an_error(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = peers.OnnxRuntimePeer.evaluate

    def broken(self: Any, depth: int, x: Any, t: Any, conditions: Any) -> Any:
        outputs = evaluate(self, depth, x, t, conditions)
        if depth == 6 and t[0] == 666:
            outputs[0][0] = np.inf
        return outputs

    monkeypatch.setattr(peers.OnnxRuntimePeer, "evaluate", broken)
    with pytest.raises(NonFiniteError, match=r"reference .onnxruntime. at exit 6, t = 666"):
        compare(bundle, named=["onnxruntime"], **FAST)
