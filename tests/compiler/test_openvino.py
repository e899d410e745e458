"""The OpenVINO backend, compile and run time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
import torch

from eecompile.compiler.backends import openvino as backend
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.progress import silent
from eecompile.errors import BackendError
from eecompile.networks.load import load_network
from eecompile.recipe import load_recipe
from eecompile.runtime.engines import openvino as runtime
from eecompile.runtime.opening import open_engine
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import MANIFEST, open_engine_set, records, write_manifest
from eecompile.store.manifest import EngineManifest, Segment
from eecompile.store.target import Target, load_target
from tests.conftest import RECIPE, ROOT
from tests.test_import import COMMAND_LINE, COMPILE_TIME, run, without

FP32, BF16 = (load_target(ROOT / "engines" / f"cpu-{n}.toml") for n in ("openvino", "bf16"))
LAYOUTS = ("per_exit", "chained")
CAPABILITIES = runtime.import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif("BF16" not in CAPABILITIES, reason="the CPU has no BF16")
PRECISIONS = [pytest.param("fp32"), pytest.param("bf16", marks=needs_bf16)]

Build = Callable[..., Path]


def target(precision: str, layout: str) -> Target:
    base = {"fp32": FP32, "bf16": BF16}[precision]
    return msgspec.structs.replace(base, layout=layout)


@pytest.fixture(scope="module")
def build(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """An engine set by precision and layout, built when first asked for; not to be written to."""
    folder, made = tmp_path_factory.mktemp("openvino"), {}

    def once(precision: str = "fp32", layout: str = "per_exit") -> Path:
        key = f"{precision}-{layout}"
        if key not in made:
            made[key] = folder / key
            engine_set_from_bundle(bundle, target(precision, layout), made[key])
        return made[key]

    return once


def inputs(batch: int, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    draws = np.random.default_rng(seed)
    x = draws.standard_normal((batch, 1, 28, 28), np.float32)
    t = draws.integers(0, 1000, batch).astype(np.float32)
    return x, t, {"label": draws.integers(0, 11, batch)}


def evaluate(engine: Engine, depth: int, batch: int, seed: int) -> Any:
    (result,) = engine.evaluate(depth, *inputs(batch, seed))
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_are_as_near_to_torch_as_their_target_says(
    build: Build, precision: str, layout: str
) -> None:
    network = load_network(load_recipe(RECIPE).network, RECIPE.parent)
    tolerance = target(precision, layout).tolerance
    with open_engine(build(precision, layout))[0] as engine:
        for batch in (1, 3, 16):
            x, t, given = inputs(batch, seed=batch)
            for depth in engine.exits:
                with torch.inference_mode():
                    wanted = network.predict_at(
                        depth,
                        *map(torch.from_numpy, (x, t)),
                        label=torch.from_numpy(given["label"]),
                    ).numpy()
                (found,) = engine.evaluate(depth, x, t, given)
                worst, size = np.abs(found - wanted).max(), np.abs(wanted).max()
                assert worst <= tolerance.absolute + tolerance.relative * size
                assert found.dtype == np.float32
                assert found.shape == x.shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_are_those_of_onnx_runtime(
    build: Build, engine_sets: dict[str, Path], layout: str
) -> None:
    with Sampler.open(build("fp32", layout)) as ours, Sampler.open(engine_sets[layout]) as theirs:
        for solver in ("ddim", "ddpm"):
            found, wanted = (s.sample(3, solver=solver, steps=6, seed=5) for s in (ours, theirs))
            np.testing.assert_allclose(found, wanted, atol=1e-3)


@needs_bf16
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_bf16_neighbouring_timesteps_stay_apart(build: Build, layout: str) -> None:
    # BF16 has 992 and 996 and nothing between them.
    x, _, given = inputs(1, seed=0)
    with open_engine(build("bf16", layout))[0] as engine:
        for depth in engine.exits:
            times = [np.full(1, t, np.float32) for t in (995, 996, 997)]
            first, middle, last = (engine.evaluate(depth, x, t, given)[0] for t in times)
            assert not np.array_equal(first, middle)
            assert not np.array_equal(middle, last)


@needs_bf16
def test_in_bf16_late_timesteps_are_no_worse_than_early_ones(build: Build) -> None:
    errors = []
    with open_engine(build("fp32"))[0] as exact, open_engine(build("bf16"))[0] as engine:
        for t in (984.0, 999.0):  # the first is a multiple of 4
            x, _, given = inputs(8, seed=1)
            times = np.full(8, t, np.float32)
            found, wanted = (e.evaluate(12, x, times, given)[0] for e in (engine, exact))
            errors.append(np.abs(found - wanted).mean())
    assert errors[1] < 1.5 * errors[0]


def test_a_number_of_threads_is_honoured(build: Build) -> None:
    wanted = None
    for threads in (1, 2):
        with open_engine(build(), threads=threads)[0] as engine:
            found = evaluate(engine, 12, 3, seed=4)
            for model in engine._models:  # type: ignore[attr-defined]
                assert model.compiled.get_property("INFERENCE_NUM_THREADS") == threads
                assert model.compiled.get_property("ENABLE_CPU_PINNING") is False
        wanted = found if wanted is None else wanted
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_segment_opens_from_its_graph_where_no_blob_fits(
    build: Build, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(precision)
    with open_engine(folder)[0] as engine:
        wanted = evaluate(engine, 12, 3, seed=6)
    monkeypatch.setattr(runtime, "blob_name", lambda *_: "segment.of-another-machine.blob")
    with open_engine(folder)[0] as engine:
        np.testing.assert_array_equal(evaluate(engine, 12, 3, seed=6), wanted)


@pytest.mark.parametrize("damage", ["RuntimeError", "UnicodeDecodeError"])
def test_a_blob_that_openvino_refuses_is_passed_over(
    build: Build, copied: Callable[[Path], Path], damage: str
) -> None:
    """Whatever it raises: its message may quote bytes of the blob, which may be no text."""
    folder = copied(build())
    blobs = sorted(folder.glob("*.blob"))
    assert len(blobs) == 4 * 3  # for all batch sizes, and for 1 and 16
    for blob in blobs:
        data = blob.read_bytes()
        assert data.count(b";ov=") == 1
        text = damage == "RuntimeError"
        blob.write_bytes(b"no blob at all" if text else data.replace(b";ov=", b";o\xff="))
    resign(folder)
    with open_engine(folder)[0] as engine, open_engine(build())[0] as genuine:
        found, wanted = (evaluate(e, 6, 2, seed=7) for e in (engine, genuine))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_models_of_one_batch_size_give_what_those_of_all_sizes_do(
    build: Build, bundle: Path, tmp_path: Path, precision: str, layout: str
) -> None:
    folder = build(precision, layout)
    off = msgspec.structs.replace(target(precision, layout), options={"fixed_batches": False})
    engine_set_from_bundle(bundle, off, tmp_path / "off")
    segments = open_engine_set(folder).segments
    assert len(list(folder.glob("*.blob"))) == 3 * len(segments)
    assert len(list((tmp_path / "off").glob("*.blob"))) == len(segments)
    with open_engine(folder)[0] as engine, open_engine(tmp_path / "off")[0] as plain:
        for batch in (1, 3, 16):
            for depth in (3, 12):
                found, wanted = (evaluate(e, depth, batch, seed=batch) for e in (engine, plain))
                # In BF16 a few values are rounded the other way, by one place of eight bits.
                bound = 1e-5 if precision == "fp32" else np.abs(wanted).max() / 2**7
                assert np.abs(found - wanted).max() <= bound
                assert np.abs(found - wanted).mean() <= bound / 10
        fixed = engine._fixed  # type: ignore[attr-defined]
        assert {batch for (_, batch), model in fixed.items() if model} == {1, 16}
        assert not any(plain._fixed.values())  # type: ignore[attr-defined]
        model = next(model for (_, batch), model in fixed.items() if batch == 16)
        assert all(not place.get_partial_shape().is_dynamic for place in model.compiled.inputs)


def test_requests_of_a_model_are_made_and_dropped_while_none_of_them_runs(build: Build) -> None:
    with open_engine(build())[0] as engine:
        evaluate(engine, 3, 16, seed=1)
        (model,) = [model for model in engine._fixed.values() if model]  # type: ignore[attr-defined]
        made: list[bool] = []
        compiled = model.compiled

        class Counted:
            def create_infer_request(self) -> Any:
                made.append(model._lock.locked())
                return compiled.create_infer_request()

        model.compiled = Counted()
        assert len(model._dropped) == 1  # the first evaluation's, whose arrays are gone
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda seed: evaluate(engine, 3, 16, seed=seed), range(8)))
        assert made == [True] * 8
        evaluate(engine, 3, 16, seed=1)
        assert len(model._dropped) == 1


def test_models_of_one_batch_size_are_opened_once_by_several_threads(build: Build) -> None:
    with open_engine(build())[0] as engine:
        opened: list[int] = []
        inner = engine._from_blob  # type: ignore[attr-defined]

        def counted(segment: Segment, batch: int = 0) -> Any:
            opened.append(batch)
            return inner(segment, batch)

        engine._from_blob = counted  # type: ignore[attr-defined]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: evaluate(engine, 12, 16, seed=1), range(4)))
        assert len(opened) == 1
        for array in found[1:]:
            np.testing.assert_array_equal(array, found[0])


def test_a_slice_to_the_end_is_one_in_a_blob_too(tmp_path: Path) -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23]>
        sliced (float[batch, 6] x) => (float[batch, 5] y)
        <int64[1] one = {1}, int64[1] end = {9223372036854775807}>
        { y = Slice(x, one, end, one) }
    """)
    backend.compile_segments(tmp_path, {"sliced.xml": model}, FP32, tmp_path, silent)
    core = runtime.import_openvino().Core()
    blob = tmp_path / runtime.blob_name(runtime.import_openvino(), core, "sliced.xml")
    compiled = core.import_model(blob.read_bytes(), "CPU", runtime.blob_options(tmp_path))
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    (found,) = compiled({"x": x}).values()
    np.testing.assert_array_equal(found, x[:, 1:])


def test_an_operator_that_openvino_lacks_is_a_backend_error(tmp_path: Path) -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 23, "nobody.knows": 1]>
        odd (float[batch, 6] x) => (float[batch, 6] y) { y = nobody.knows.Operator(x) }
    """)
    with pytest.raises(BackendError, match=r"odd\.xml refused by openvino .*Operator"):
        backend.compile_segments(tmp_path, {"odd.xml": model}, FP32, tmp_path, silent)


def test_a_blobs_name_says_what_it_was_made_by_and_for() -> None:
    class Core:
        def __init__(self, **changed: object) -> None:
            self.facts = {
                "FULL_DEVICE_NAME": "one",
                "DEVICE_ARCHITECTURE": "intel64",
                "OPTIMIZATION_CAPABILITIES": ["FP32", "BF16"],
            } | changed

        def get_property(self, device: str, name: str) -> object:
            assert device == "CPU"
            return self.facts[name]

    class Library:
        def __init__(self, version: str) -> None:
            self.get_version = lambda: version

    def name(core: Core, version: str = "2026.1") -> str:
        return runtime.blob_name(Library(version), core, "segment-00.xml")

    names = [
        name(Core()),
        name(Core(), "2026.2"),
        name(Core(FULL_DEVICE_NAME="other")),
        name(Core(DEVICE_ARCHITECTURE="arm64")),
        name(Core(OPTIMIZATION_CAPABILITIES=["FP32"])),
    ]
    assert len(set(names)) == len(names)
    assert name(Core(OPTIMIZATION_CAPABILITIES=["BF16", "FP32"])) == names[0]


def resign(folder: Path) -> None:
    """Record the files as they are now."""
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=EngineManifest)
    write_manifest(folder, msgspec.structs.replace(manifest, files=records(folder)))


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        (
            {"options": {"NUM_STREAMS": 2}},
            r"NUM_STREAMS = 2 for openvino; .*fixed_batches \(bool\)",
        ),
        ({"options": {"fixed_batches": 2}}, "fixed_batches"),
        ({"keep_fp32": ("head",)}, "keep_fp32"),
    ],
)
def test_a_target_that_it_does_not_know_is_refused(
    bundle: Path, tmp_path: Path, changed: dict[str, Any], found: str
) -> None:
    wanted = msgspec.structs.replace(FP32, **changed)
    with pytest.raises(BackendError, match=found):
        engine_set_from_bundle(bundle, wanted, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Plain:
    """A processor without BF16."""

    def get_property(self, device: str, name: str) -> Any:
        return {"OPTIMIZATION_CAPABILITIES": ["FP32"], "FULL_DEVICE_NAME": "Some CPU"}[name]


def test_bf16_without_its_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = runtime.import_openvino()
    monkeypatch.setattr(library, "Core", Plain)
    backend.check(FP32)
    with pytest.raises(BackendError, match=r"without BF16 \(Some CPU\).*cpu-openvino\.toml"):
        backend.check(BF16)


@needs_bf16
def test_bf16_engines_do_not_open_without_its_instructions(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build("bf16")
    monkeypatch.setattr(runtime.import_openvino(), "Core", Plain)
    with pytest.raises(BackendError, match="without BF16"):
        open_engine(folder)


def test_without_openvino_the_extra_is_named(bundle: Path, build: Build, tmp_path: Path) -> None:
    code = without("openvino") + (
        "from pathlib import Path\n"
        "from eecompile.errors import BackendError\n"
        "from eecompile.compiler.build import engine_set_from_bundle\n"
        "from eecompile.runtime.opening import open_engine\n"
        "bundle, target, output, engines = map(Path, sys.argv[1:])\n"
        "for action in (lambda: engine_set_from_bundle(bundle, target, output),\n"
        "               lambda: open_engine(engines)):\n"
        "    try:\n"
        "        action()\n"
        "    except BackendError as error:\n"
        "        print(error.remedy)\n"
    )
    toml = ROOT / "engines" / "cpu-openvino.toml"
    output = run(code, *map(str, (bundle, toml, tmp_path / "out", build())))
    assert output.splitlines() == ["pip install 'eecompile[openvino]'"] * 2


def test_sampling_needs_no_compiler_and_sends_no_telemetry(build: Build) -> None:
    code = without(*COMPILE_TIME, *COMMAND_LINE, "onnxruntime") + (
        "import eecompile\n"
        "assert 'openvino' not in sys.modules\n"
        "with eecompile.Sampler.open(sys.argv[1]) as sampler:\n"
        "    print(sampler.sample(3, steps=2).shape)\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])\n"
        "import openvino_telemetry\n"
    )
    assert run(code, str(build())).splitlines() == ["(3, 1, 28, 28)", "[]"]
