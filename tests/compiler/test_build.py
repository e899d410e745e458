from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from eecompile.arrays import Inputs
from eecompile.compiler import build as build_module
from eecompile.compiler import segments as segments_module
from eecompile.compiler.backends import onnxruntime as ort_backend
from eecompile.compiler.build import engine_set_from_bundle, planned_build
from eecompile.compiler.graph.cuts import HEAD
from eecompile.compiler.verify import Outputs, once
from eecompile.errors import BackendError, DigestError, OutputExistsError, VerificationError
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import WEIGHTS, open_bundle, open_engine_set
from eecompile.store.companions import CompanionTarget
from eecompile.store.manifest import EngineManifest
from eecompile.store.target import BatchProfile, Quantise, Target, Tolerance, load_target
from tests.conftest import ROOT, TARGETS


def target(tmp_path: Path, old: str, new: str) -> Path:
    text = TARGETS["per_exit"].read_text()
    assert old in text
    path = tmp_path / "target.toml"
    path.write_text(text.replace(old, new))
    return path


def test_the_chained_layout_is_a_trunk_with_a_head_an_exit(engine_sets: dict[str, Path]) -> None:
    manifest = open_engine_set(engine_sets["chained"])
    everything, head = (3, 6, 9, 12), HEAD
    assert [(segment.exits, segment.level) for segment in manifest.segments] == [
        (everything, 0),
        (everything, 3),
        ((6, 9, 12), 6),
        ((9, 12), 9),
        ((3,), head),
        ((6,), head),
        ((9,), head),
        ((12,), 12),
        ((12,), head),
    ]
    assert [plan.segments for plan in manifest.exits] == [
        (0, 1, 4),
        (0, 1, 2, 5),
        (0, 1, 2, 3, 6),
        (0, 1, 2, 3, 7, 8),
    ]
    heads = [segment.nodes for segment in manifest.segments if segment.level == head]
    assert max(heads) < 20  # what the heads share is computed once, in the trunk
    spans = {(span.start, span.stop): span for span in manifest.spans}
    assert list(spans) == list(combinations((0, 3, 6, 9, 12), 2))
    assert all(len(span.tensors) == 1 and span.tensors[0].enters for span in spans.values())
    assert all(0 <= (span.relative_error or 0.0) < 1e-5 for span in spans.values())


def test_the_graphs_are_stored_optimised(engine_sets: dict[str, Path]) -> None:
    folder = engine_sets["per_exit"]
    for segment in open_engine_set(folder).segments:
        operators = {node.op_type for node in ir.load(folder / segment.file).graph}
        assert {"FastGelu", "QuickGelu"} < operators
        assert "Gelu" not in operators


def test_a_changed_target_or_a_damaged_engine_is_built_again(
    bundle: Path, engine_sets: dict[str, Path], copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = copied(engine_sets["per_exit"])
    built = engine_set_from_bundle(bundle, target(tmp_path, "max = 64", "max = 32"), folder)
    assert not built.up_to_date
    assert open_engine_set(folder).target.batch.max == 32
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(OutputExistsError, match="--force"):  # it can no longer be recognised
        engine_set_from_bundle(bundle, TARGETS["per_exit"], folder)
    engine_set_from_bundle(bundle, TARGETS["per_exit"], folder, force=True)
    assert open_engine_set(folder).target.batch.max == 64


def test_another_targets_engine_set_is_not_replaced(
    bundle: Path, engine_sets: dict[str, Path], copied: Callable[[Path], Path]
) -> None:
    folder = copied(engine_sets["per_exit"])
    with pytest.raises(OutputExistsError, match="--force"):
        engine_set_from_bundle(bundle, TARGETS["chained"], folder)
    assert open_engine_set(folder).target.layout == "per_exit"


def test_a_damaged_bundle_is_not_built(
    bundle: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = copied(bundle)
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"x")
    with pytest.raises(DigestError, match=WEIGHTS):
        engine_set_from_bundle(folder, TARGETS["per_exit"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_engines_that_differ_from_the_bundle_are_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = segments_module.extract

    def drifted(model: ir.Model, inputs: object, outputs: object) -> ir.Model:
        made = genuine(model, inputs, outputs)  # type: ignore[arg-type]
        for value in made.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tuple(tensor.shape) == (16,):  # the head's first bias
                value.const_value = ir.tensor(tensor.numpy() + 0.5, name=value.name)
        return made

    monkeypatch.setattr(segments_module, "extract", drifted)
    with pytest.raises(VerificationError, match=r"exit 3 .* \(cpu against the bundle\)") as raised:
        engine_set_from_bundle(bundle, TARGETS["per_exit"], tmp_path / "out")
    assert raised.value.remedy == "choose another backend, or widen the target's tolerance"
    few = Quantise(kind="int8-weights", samples=1, search=False)
    wide = Tolerance(absolute=0.4, relative=0)  # which the graph holds
    per_exit = load_target(TARGETS["per_exit"])
    target = msgspec.structs.replace(per_exit, quantise=few, tolerance=wide)
    with pytest.raises(
        VerificationError, match=r"\(cpu against .*keep more operators .* more bits"
    ):
        engine_set_from_bundle(bundle, target, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_equal_inputs_are_evaluated_once() -> None:
    points = [{"x": np.full((1, 2), value, np.float32)} for value in (0, 1, 1)]
    seen: list[float] = []

    def evaluate(point: Inputs) -> Outputs:
        seen.append(float(point["x"][0, 0]))
        return {3: [point["x"] * 2]}

    known = once(evaluate)
    assert [known(point)[3][0][0, 0] for point in points] == [0, 2, 2]
    known({"x": points[0]["x"].reshape(2, 1)})  # other shapes are other inputs
    assert seen == [0, 1, 0]


def test_a_dry_run_of_engines_that_share_a_file_says_why(
    bundle: Path, engine_sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, folder = load_target(TARGETS["per_exit"]), engine_sets["per_exit"]
    assert planned_build(bundle, target, folder).reasons == ()
    fresh = planned_build(bundle, target, tmp_path / "none")
    assert fresh.reasons == (f"engine set at {tmp_path / 'none'}: none",)
    assert [segment.exits for segment in fresh.segments] == [(3,), (6,), (9,), (12,)]
    with pytest.raises(OutputExistsError, match="--force"):
        planned_build(bundle, target, engine_sets["chained"])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    with pytest.raises(OutputExistsError, match="no folder that eecompile wrote"):
        planned_build(bundle, target, tmp_path / "home", force=True)
    changed = msgspec.structs.replace(target, threads=3)
    assert planned_build(bundle, changed, folder).reasons == ("target's threads: 0 -> 3",)
    monkeypatch.setattr(ort_backend, "versions", lambda: {"onnxruntime": "99"})
    (reason,) = planned_build(bundle, target, folder).reasons
    assert reason.startswith("onnxruntime: ")
    assert reason.endswith(" -> 99")
    assert not engine_set_from_bundle(bundle, target, tmp_path / "set").up_to_date
    monkeypatch.undo()
    assert not engine_set_from_bundle(bundle, target, tmp_path / "set").up_to_date


def test_engines_for_a_gpu_are_built_without_one_and_say_what_they_need(
    bundle: Path, tmp_path: Path
) -> None:
    target = load_target(ROOT / "engines" / "cuda-fp16.toml")
    manifest = engine_set_from_bundle(bundle, target, tmp_path / "set").manifest
    assert "did not run" in manifest.verified or "CUDAExecutionProvider" in (
        onnxruntime.get_available_providers()
    )
    for plan in manifest.exits:
        assert 1e-6 < plan.relative_error < 5e-3
        assert {point.timestep for point in plan.points} == {0.0, 500.0, 999.0}
        assert max(point.relative for point in plan.points) == plan.relative_error
    deepest = open_bundle(bundle).exits[-1]
    assert (tmp_path / "set" / WEIGHTS).stat().st_size < 0.56 * deepest.bytes
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(BackendError, match=r"without CUDAExecutionProvider.*eecompile\[gpu\]"):
            Sampler.open(tmp_path / "set")


def test_engines_for_a_gpu_may_be_of_full_precision(small_bundle: Path, tmp_path: Path) -> None:
    target = load_target(ROOT / "engines" / "cuda-fp16.toml")
    wide = msgspec.structs.replace(target, precision="fp32")
    manifest = engine_set_from_bundle(small_bundle, wide, tmp_path / "set").manifest
    assert all(plan.relative_error < 1e-5 for plan in manifest.exits)
    assert open_engine_set(tmp_path / "set") == manifest


def test_engines_that_cannot_be_opened_here_are_built_for_elsewhere(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_backend, "runs", lambda target: True)  # as on a machine with a GPU
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("they can be opened")
    target = load_target(ROOT / "engines" / "cuda-fp16.toml")
    manifest = engine_set_from_bundle(bundle, target, tmp_path / "set").manifest
    (warning,) = manifest.warnings
    assert warning.startswith("not run on this machine: found an onnxruntime")
    assert "did not run" in manifest.verified


def test_tensorrt_may_go_through_onnxruntime(bundle: Path, tmp_path: Path) -> None:
    target = load_target(ROOT / "engines" / "tensorrt-fp16.toml")
    options = {**target.options, "through": "onnxruntime"}
    target = msgspec.structs.replace(target, options=options)
    manifest = engine_set_from_bundle(bundle, target, tmp_path / "set").manifest
    assert (manifest.target.backend, manifest.target.precision) == ("onnxruntime", "fp16")
    assert manifest.target.options == {"provider": "tensorrt"}
    assert engine_set_from_bundle(bundle, target, tmp_path / "set").up_to_date
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(BackendError, match="without TensorrtExecutionProvider"):
            Sampler.open(tmp_path / "set")
    wrong = msgspec.structs.replace(target, options={"through": "openvino"})
    with pytest.raises(BackendError, match="through = 'openvino'"):
        engine_set_from_bundle(bundle, wrong, tmp_path / "other")


@pytest.mark.parametrize(
    "changes",
    [{"options": {"provider": "metal"}}, {"options": {"speed": 1}}],
)
def test_a_wrong_target_of_onnxruntime_is_refused(
    bundle: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    target = msgspec.structs.replace(load_target(TARGETS["per_exit"]), **changes)
    with pytest.raises(BackendError, match=r"options\.provider of \['cpu', 'cuda', 'tensorrt'\]"):
        engine_set_from_bundle(bundle, target, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_precision_for_gpus_names_the_option_that_gives_it(bundle: Path, tmp_path: Path) -> None:
    target = msgspec.structs.replace(load_target(TARGETS["per_exit"]), precision="fp16")
    with pytest.raises(BackendError, match=r"'fp32'; choose .* options\.provider = 'cuda'"):
        engine_set_from_bundle(bundle, target, tmp_path / "set")


def test_every_ingredient_is_in_the_fingerprint(bundle: Path) -> None:
    source, target = open_bundle(bundle), load_target(TARGETS["per_exit"])
    versions = {"onnxruntime": "1", "GPU": "a", "driver": "b"}
    changes: dict[str, Any] = {
        "name": "other",
        "backend": "openvino",
        "precision": "fp16",
        "layout": "chained",
        "batch": BatchProfile(max=65),
        "tolerance": Tolerance(absolute=1.0),
        "threads": 3,
        "options": {"provider": "cuda"},
        "keep_fp32": ("final",),
        "workspace_mib": 5,
        "quantise": Quantise(kind="int8"),
        "companions": CompanionTarget(precision="bf16"),
    }
    assert set(changes) == {field.name for field in msgspec.structs.fields(Target)}
    variants = [
        (source, msgspec.structs.replace(target, **{k: v}), versions) for k, v in changes.items()
    ]
    variants += [(source, target, {**versions, name: "other"}) for name in versions]
    variants.append((msgspec.structs.replace(source, digest="other"), target, versions))
    before = build_module._fingerprint(source, target, versions)
    found = {build_module._fingerprint(*variant) for variant in variants}
    assert len(found - {before}) == len(variants)
    existing = EngineManifest(
        interface=source.interface,
        target=target,
        exits=(),
        segments=(),
        files=(),
        versions=versions,
        verified="",
        bundle_digest=source.digest,
        fingerprint=before,
    )
    names = [f"target's {name}" for name in changes] + [*versions, "bundle"]
    for name, variant in zip(names, variants, strict=True):
        (reason,) = build_module._reasons(existing, *variant, Path("set"))
        assert reason.startswith(f"{name}: ")
    assert build_module._reasons(existing, source, target, versions, Path("set")) == ()
