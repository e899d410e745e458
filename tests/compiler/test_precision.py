"""What AutoCast makes of a network: one precision for a node, whoever shares it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.graph.merge import exit_outputs, merged_exits
from eecompile.compiler.graph.partition import chained_parts, extract
from eecompile.compiler.graph.precision import kept_nodes, lowered
from eecompile.compiler.verify import calibration_inputs
from eecompile.errors import RecipeError
from eecompile.store.bundle import CALIBRATION, open_bundle
from eecompile.store.target import Target, load_target
from tests.conftest import ROOT

autocast: Any = pytest.importorskip("modelopt.onnx.autocast")
TARGET = load_target(ROOT / "engines" / "rtx-fp16.toml")


@pytest.fixture(scope="module")
def half(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    manifest = open_bundle(bundle)
    work = tmp_path_factory.mktemp("precision")
    return lowered(merged_exits(bundle, manifest.interface.exits), manifest.interface, TARGET, work)


def kinds(value: ir.Value) -> ir.DataType | None:
    return value.dtype


def test_inputs_and_outputs_stay_fp32(half: ir.Model, bundle: Path) -> None:
    before = merged_exits(bundle, open_bundle(bundle).interface.exits)
    for one, other in ((half, before),):
        signature = [(v.name, v.dtype) for v in (*one.graph.inputs, *one.graph.outputs)]
        assert signature == [(v.name, v.dtype) for v in (*other.graph.inputs, *other.graph.outputs)]


def test_the_blocks_are_half_and_the_timestep_is_not(half: ir.Model) -> None:
    half_types = (ir.DataType.FLOAT16,)
    for node in half.graph:
        read = [v.dtype for v in node.inputs if v is not None and v.dtype is not None]
        if node.op_type in ("Sin", "Cos"):
            assert node.inputs[0] is not None
            assert _origin(node.inputs[0]) == ir.DataType.FLOAT
        if node.op_type == "MatMul":
            assert set(read) <= set(half_types)
    weights = [v.const_value for v in half.graph.initializers.values() if v.const_value]
    large = [tensor.dtype for tensor in weights if tensor.size > 1000]
    assert set(large) == {ir.DataType.FLOAT16}


def _origin(value: ir.Value) -> ir.DataType:
    """The type in which a value is computed: that of the timestep, unless something casts."""
    producer = value.producer()
    while producer is not None:
        assert producer.op_type != "Cast", "the timestep's embedding is cast"
        sources = [v for v in producer.inputs if v is not None and not v.is_initializer()]
        value, producer = sources[0], sources[0].producer()
    assert value.name == "t"
    assert value.dtype is not None
    return value.dtype


def test_shared_tensors_are_the_same_in_every_segment(half: ir.Model, bundle: Path) -> None:
    outputs = exit_outputs(half, open_bundle(bundle).interface)
    parts = chained_parts(half.graph, outputs)
    made: dict[str, ir.DataType | None] = {}
    seen: dict[str, bytes] = {}
    for part in parts:
        graph = extract(half, part.inputs, part.outputs).graph
        for value in graph.inputs:
            if value.name in made:
                assert value.dtype == made[value.name]
        made |= {value.name: value.dtype for value in graph.outputs if value.name}
        for name, value in graph.initializers.items():
            assert value.const_value is not None
            data = value.const_value.tobytes()
            assert seen.setdefault(name, data) == data


def test_patterns_keep_nodes_in_fp32(bundle: Path, tmp_path: Path) -> None:
    manifest = open_bundle(bundle)
    model = merged_exits(bundle, manifest.interface.exits)
    wanted = Target(
        name="x", backend="tensorrt-rtx", precision="fp16", keep_fp32=(r"LayerNorm", r"refine")
    )
    made = lowered(model, manifest.interface, wanted, tmp_path)
    normalised = [n for n in made.graph if n.op_type == "LayerNormalization"]
    assert normalised
    assert all(
        n.inputs[0] is not None and n.inputs[0].dtype == ir.DataType.FLOAT for n in normalised
    )
    weights = {
        name: value.dtype for name, value in made.graph.initializers.items() if "refine" in name
    }
    assert weights
    assert set(weights.values()) == {ir.DataType.FLOAT}


def test_the_embedding_is_what_leads_to_sine_and_cosine(bundle: Path) -> None:
    model = merged_exits(bundle, open_bundle(bundle).interface.exits)
    for index, node in enumerate(model.graph):
        node.name = str(index)
    kept = {model.graph[int(name)].op_type for name in kept_nodes(model, ())}
    assert {"Sin", "Cos", "Mul"} <= kept
    assert not kept & {"MatMul", "Gemm", "Attention"}


def test_calibration_covers_all_timesteps(bundle: Path) -> None:
    points = calibration_inputs(open_bundle(bundle).interface)
    assert set(points) == {"x", "t", "label"}
    assert {0.0, 999.0} <= set(points["t"].tolist())
    assert len(set(points["t"].tolist())) == 5
    assert len(points["x"]) == len(points["t"]) == len(points["label"])


def test_data_is_noised_as_the_process_says(bundle: Path) -> None:
    interface = open_bundle(bundle).interface
    data = np.stack([np.full((1, 28, 28), value, np.float32) for value in (-0.5, 0.75, 1.0)])
    noise, points = calibration_inputs(interface), calibration_inputs(interface, data)
    bars = interface.process.alpha_bar()
    for index, timestep in enumerate(points["t"].astype(int)):
        bar = bars[timestep]
        expected = np.sqrt(bar) * data[index % 3] + np.sqrt(1 - bar) * noise["x"][index]
        np.testing.assert_allclose(points["x"][index], expected, atol=1e-6)
    assert points["x"].dtype == np.float32


DATA = np.random.default_rng(0).uniform(-1, 1, (4, 1, 28, 28)).astype(np.float32)


@pytest.fixture
def calibrated(small_recipe: Path, tmp_path: Path) -> Path:
    """The small network's recipe with data for calibration."""
    np.save(tmp_path / "data.npy", DATA)
    weights = small_recipe.with_suffix(".safetensors")
    text = re.sub('checkpoint = ".*"', f'checkpoint = "{weights}"', small_recipe.read_text())
    (tmp_path / "recipe.toml").write_text('calibration = "data.npy"\n' + text)
    return tmp_path / "recipe.toml"


def test_a_recipes_data_calibrates_what_is_built(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle_from_recipe(calibrated, tmp_path / "bundle")
    manifest = open_bundle(tmp_path / "bundle")
    assert CALIBRATION in {record.name for record in manifest.files}
    expected = calibration_inputs(manifest.interface, DATA)
    used: dict[str, np.ndarray] = {}
    convert = autocast.convert_to_mixed_precision

    def spy(*args: Any, **kwargs: Any) -> Any:
        used.update(np.load(kwargs["calibration_data"]))
        return convert(*args, **kwargs)

    monkeypatch.setattr(autocast, "convert_to_mixed_precision", spy)
    engine_set_from_bundle(tmp_path / "bundle", ROOT / "engines/cuda-fp16.toml", tmp_path / "set")
    for name, value in expected.items():
        np.testing.assert_array_equal(used[name], value)


def test_data_that_cannot_calibrate_is_refused(calibrated: Path, tmp_path: Path) -> None:
    for bad in (DATA[:, :, :27], DATA * np.nan, DATA[:0], DATA.astype(np.int64)):
        np.save(tmp_path / "data.npy", bad)
        with pytest.raises(RecipeError, match="for calibration; expected finite samples"):
            bundle_from_recipe(calibrated, tmp_path / "other")
    (tmp_path / "data.npy").write_bytes(b"no array")
    with pytest.raises(RecipeError, match="no array"):
        bundle_from_recipe(calibrated, tmp_path / "other")
    assert not (tmp_path / "other").exists()
