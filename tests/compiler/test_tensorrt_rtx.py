"""Real TensorRT-RTX plans; they are built without a GPU, and need one to run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
import pytest

from eecompile.compiler.backends import tensorrt_rtx
from eecompile.compiler.build import engine_set_from_bundle, planned_build
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.graph.attention import DecomposeAttention
from eecompile.compiler.graph.merge import merged_exits
from eecompile.compiler.progress import silent
from eecompile.compiler.segments import warnings_in
from eecompile.errors import BackendError, BusyError, VerificationError
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_bundle, open_engine_set
from eecompile.store.target import Target, load_target
from tests.conftest import ROOT, TARGETS, Beside

trt = pytest.importorskip("tensorrt_rtx")


def target(precision: str, **changes: Any) -> Target:
    return msgspec.structs.replace(
        load_target(ROOT / "engines" / f"rtx-{precision}.toml"), **changes
    )


def finished(store: Path) -> dict[str, int]:
    """When the engines in a store were written, by key."""
    paths = (path for path in store.glob("*") if len(path.stem) == 64)
    return {path.stem: path.stat().st_mtime_ns for path in paths}


@pytest.fixture
def fp16(rtx_set: Callable[[str], Path]) -> Path:
    """The shipped network's plans in FP16, chained; not to be written to."""
    return rtx_set("fp16")


@pytest.fixture
def fewer(other_exits: Callable[..., Path]) -> Path:
    """The shipped network without exit 6; not to be written to."""
    return other_exits(3, 9, 12)


def test_half_precision_is_within_its_tolerance_before_anything_is_built(fp16: Path) -> None:
    manifest = open_engine_set(fp16)
    assert manifest.verified.startswith("the graphs")
    assert all(1e-6 < plan.relative_error < 5e-3 for plan in manifest.exits)
    assert "tensorrt_rtx" in manifest.versions


def test_every_segment_is_a_plan_of_half_the_weights(fp16: Path, bundle: Path) -> None:
    segments = open_engine_set(fp16).segments
    deepest = open_bundle(bundle).exits[-1]
    assert sum(s.bytes for s in segments) < 0.56 * deepest.bytes
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    for segment in segments:
        data = (fp16 / segment.file).read_bytes()
        assert len(data) > segment.bytes
        validity, _ = runtime.get_engine_validity(data[:4096] if len(data) > 4096 else data)
        assert validity is not None


BOUNDS = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}


def like_tensorrt(precision: str, layout: str) -> Target:
    """A target of TensorRT proper for TensorRT-RTX: they are one code path."""
    like = load_target(ROOT / "engines" / f"tensorrt-{precision}.toml")
    return msgspec.structs.replace(like, backend="tensorrt-rtx", layout=layout)


@pytest.mark.parametrize(
    ("precision", "layout"),
    [
        ("fp32", "chained"),
        ("fp16", "per_exit"),
        ("bf16", "chained"),
        pytest.param("fp32", "per_exit", marks=pytest.mark.slow),
        pytest.param("bf16", "per_exit", marks=pytest.mark.slow),
    ],
)
def test_the_other_precisions_and_layouts_build(
    bundle: Path, tmp_path: Path, precision: str, layout: str
) -> None:
    wanted = like_tensorrt(precision, layout)
    manifest = engine_set_from_bundle(bundle, wanted, tmp_path / "set").manifest
    assert len(manifest.segments) == (9 if layout == "chained" else 4)
    assert all((tmp_path / "set" / s.file).stat().st_size > s.bytes for s in manifest.segments)
    assert all(plan.relative_error < BOUNDS[precision] for plan in manifest.exits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "uvit", "pixart"])
def test_other_networks_build_in_every_layout_and_precision(
    network: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    bundle = network(name) / "bundle"
    for precision, bound in BOUNDS.items():
        for layout in ("chained", "per_exit"):
            folder = tmp_path / f"{precision}-{layout}"
            wanted = like_tensorrt(precision, layout)
            manifest = engine_set_from_bundle(bundle, wanted, folder).manifest
            assert all(plan.relative_error < bound for plan in manifest.exits)
            assert all((folder / s.file).stat().st_size > s.bytes for s in manifest.segments)


def test_what_the_library_printed_is_kept(fp16: Path) -> None:
    log = (fp16 / "build.log").read_text()
    assert log.count("Finished engine building") == 9
    assert "TF32" not in log, "FP32 is FP32"
    assert open_engine_set(fp16).warnings == ()
    assert warnings_in(fp16 / "build.log") == ()


def test_warnings_are_picked_from_a_log(tmp_path: Path) -> None:
    lines = ["[W] slow", "[I] fine", "[W] slow", "[W] Make sure input x has Int64 binding."]
    (tmp_path / "log").write_text("\n".join(lines))
    assert warnings_in(tmp_path / "log") == ("slow",)
    assert warnings_in(tmp_path / "none") == ()


def test_a_dry_run_says_which_plans_would_be_built(bundle: Path, fp16: Path, fewer: Path) -> None:
    assert planned_build(bundle, target("fp16"), fp16).reasons == ()
    before = sorted(path.name for path in fp16.parent.glob(f"*{fp16.name}*"))
    planned = planned_build(fewer, target("fp16"), fp16)
    assert [reason.partition(":")[0] for reason in planned.reasons] == ["bundle"]
    built = {segment.exits for segment in planned.segments if not segment.reused}
    assert built == {(9, 12)}
    changed = planned_build(bundle, target("fp16", workspace_mib=100), fp16)
    assert changed.reasons == ("target's workspace_mib: None -> 100",)
    assert not any(segment.reused for segment in changed.segments)
    assert sorted(path.name for path in fp16.parent.glob(f"*{fp16.name}*")) == before


def test_with_an_exit_less_only_what_changes_is_built(
    fewer: Path, fp16: Path, copied: Callable[[Path], Path]
) -> None:
    folder = copied(fp16)
    before = {s.key for s in open_engine_set(folder).segments}
    stamps = {s.key: (folder / s.file).stat().st_mtime_ns for s in open_engine_set(folder).segments}
    engine_set_from_bundle(fewer, target("fp16"), folder)
    after = open_engine_set(folder).segments
    for segment in after:
        if segment.key in before:
            assert (folder / segment.file).stat().st_mtime_ns == stamps[segment.key]
    kept = [s for s in after if s.key in before]
    # The trunk up to exit 3, and the heads that read the same values.
    assert {(3,), (12,)} <= {s.exits for s in kept}
    assert {s.exits for s in after if s.key not in before} == {(9, 12)}


def test_an_interrupted_build_goes_on_where_it_stopped(bundle: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(phase: str, done: int = 0, total: int = 0) -> None:
        if "(3 of " in phase:
            raise StoppedError

    wanted, output = target("fp32"), tmp_path / "set"
    with pytest.raises(StoppedError):
        engine_set_from_bundle(bundle, wanted, output, report=stop)
    stamps = finished(tmp_path / ".set.segments")
    assert len(stamps) == 2
    assert not output.exists()
    built = engine_set_from_bundle(bundle, wanted, output)
    for segment in built.manifest.segments:
        if segment.key in stamps:
            assert 12 in segment.exits, "the deepest exit comes first"
            assert (output / segment.file).stat().st_mtime_ns == stamps.pop(segment.key)
    assert not stamps
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.slow
def test_a_killed_build_leaves_what_was_there_and_the_next_goes_on(
    bundle: Path, fp16: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = copied(fp16)
    manifest = (folder / "manifest.json").read_bytes()
    file = ROOT / "engines" / "rtx-fp16.toml"
    changed = tmp_path / "target.toml"
    changed.write_text(file.read_text() + "\n[options]\noptimization_level = 2\n")
    command = [sys.executable, "-m", "eecompile", "build", bundle, "--target", changed]
    store = tmp_path / f".{folder.name}.segments"
    with subprocess.Popen(
        [*map(str, command), "-o", str(folder)], stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None and len(finished(store)) < 2:
            time.sleep(0.02)
        assert process.poll() is None, "it was killed half-way"
        process.kill()
    assert (folder / "manifest.json").read_bytes() == manifest
    stamps = finished(store)
    for _ in range(100):  # the kernel drops the lock when the process is gone
        try:
            built = engine_set_from_bundle(bundle, changed, folder).manifest
            break
        except BusyError:
            time.sleep(0.05)
    for segment in built.segments:
        if segment.key in stamps:
            assert (folder / segment.file).stat().st_mtime_ns == stamps.pop(segment.key)
    assert not stamps
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, "target.toml"]


def test_a_tolerance_that_the_precision_cannot_hold_is_refused(
    bundle: Path, tmp_path: Path
) -> None:
    strict = msgspec.structs.replace(target("fp16").tolerance, absolute=0.0, relative=1e-6)
    with pytest.raises(VerificationError, match="rtx-fp16's graph against the bundle"):
        engine_set_from_bundle(bundle, target("fp16", tolerance=strict), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"speed": 3}}, r"option speed = 3 .*compute_capabilities \(str\)"),
        ({"options": {"compute_capabilities": 89}}, "compute_capabilities = 89"),
        ({"options": {"compute_capabilities": "9.9"}}, "9.9"),
        ({"options": {"compute_capabilities": "ampere"}}, "'ampere'; expected capabilities such"),
        (
            {"options": {"compute_capabilities": "8.9", "current_gpu": True}},
            "beside current_gpu",
        ),
        ({"keep_fp32": ("nothing",)}, "'nothing' in the target, which matches no node"),
    ],
)
def test_a_wrong_target_is_refused(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BackendError, match=words):
        wanted = msgspec.structs.replace(target("fp16"), **changes)
        engine_set_from_bundle(bundle, wanted, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_the_parser_refuses_is_named(tmp_path: Path) -> None:
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape(["batch", 4]), type=kind)
    node = ir.Node("", "Attention", [x, x, x], name="odd")
    node.outputs[0].name = "y"
    node.outputs[0].type, node.outputs[0].shape = kind, x.shape
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23}, name="g")
    model = ir.Model(graph, ir_version=10)
    with (
        tensorrt_rtx.builder(tmp_path, tmp_path / "timing.cache") as builder,
        pytest.raises(BackendError, match=r"segment s refused by tensorrt_rtx: Attention odd"),
    ):
        builder.build(model, tmp_path / "s.plan", target("fp32"), silent, name="s")


def test_attention_is_written_out_for_fp32(bundle: Path) -> None:
    model = merged_exits(bundle, open_bundle(bundle).interface.exits)
    count = sum(node.op_type == "Attention" for node in model.graph)
    softmax = sum(node.op_type == "Softmax" for node in model.graph)
    assert count == 12
    DecomposeAttention()(model)
    operators = [node.op_type for node in model.graph]
    assert "Attention" not in operators
    assert operators.count("Softmax") == softmax + count


def test_a_library_that_crashes_takes_only_its_process_with_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "tensorrt_rtx.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "crash"))
    with pytest.raises(BackendError, match=r"crashing while it built segment .*status -6"):
        engine_set_from_bundle(bundle, target("fp32"), tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["crash"]


FLAT = """
import torch
from torch import nn

class Flat(nn.Module):
    exits = (1, 2)

    def __init__(self, exits):
        super().__init__()
        self.exits = tuple(exits)
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 8)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x, t):
        hidden = (self.stem(x) + t[:, None, None] * 1e-3).flatten(0, 1)  # tokens of all samples
        made = []
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
            made.append(self.head(hidden).unflatten(0, (-1, 4)))
        return tuple(made)
"""
FLAT_RECIPE = """
name = "flat"
[network]
factory = "{module}:Flat"
checkpoint = "flat.pt"
exits = [1, 2]
[state]
shape = [4, 8]
"""


def test_engines_that_would_exchange_a_multiple_of_the_batch_are_refused(
    tmp_path: Path, beside: Beside
) -> None:
    module = beside(FLAT)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(FLAT_RECIPE.format(module=module))
    code = f"import torch, {module}; torch.save({module}.Flat((1, 2)).state_dict(), 'flat.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    bundle_from_recipe(recipe, tmp_path / "bundle")
    with pytest.raises(BackendError, match=r"the batch itself as first axis.*per_exit"):
        engine_set_from_bundle(tmp_path / "bundle", target("fp32"), tmp_path / "chained")
    apart = target("fp32", layout="per_exit")
    engine_set_from_bundle(tmp_path / "bundle", apart, tmp_path / "apart")
    engine_set_from_bundle(tmp_path / "bundle", TARGETS["chained"], tmp_path / "cpu")
    with Sampler.open(tmp_path / "cpu") as sampler:
        assert sampler.sample(3, steps=2).shape == (3, 4, 8)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_plans_are_built_without_a_gpu(
    own_bundle: Path, tmp_path: Path, kind: str
) -> None:
    quantised = target(kind, layout="per_exit")
    engine_set_from_bundle(own_bundle, quantised, tmp_path / "set")
    manifest = open_engine_set(tmp_path / "set")
    found = manifest.quantisation
    assert found is not None
    assert found.scheme == {"int8": "S8S8", "fp8": "E4M3"}[kind]
    assert found.instructions == ""
    assert all(plan.relative_error < 5e-2 for plan in manifest.exits)
    weights = sum(segment.bytes for segment in manifest.segments)
    plain = planned_build(own_bundle, target("fp16", layout="per_exit"), tmp_path / "fp16")
    assert weights < sum(segment.bytes for segment in plain.segments)


def test_fp8_is_refused_for_gpus_without_it(small_bundle: Path, tmp_path: Path) -> None:
    old = target("fp8", options={"compute_capabilities": "7.5,8.9"})
    with pytest.raises(BackendError, match=r"FP8 for compute capability 7\.5; expected 8\.9"):
        engine_set_from_bundle(small_bundle, old, tmp_path / "set")
