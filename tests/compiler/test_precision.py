"""What AutoCast makes of a network: one precision for a node, whoever shares it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from eecompile.bundle import open_bundle
from eecompile.compiler.merge import exit_outputs, merged_exits
from eecompile.compiler.partition import chained_parts, extract
from eecompile.compiler.precision import calibration, kept_nodes, lowered
from eecompile.recipe import Target, load_target
from tests.conftest import ROOT

pytest.importorskip("modelopt")
TARGET = load_target(ROOT / "engines" / "rtx-fp16.toml")


@pytest.fixture(scope="module")
def half(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    manifest = open_bundle(bundle)
    work = tmp_path_factory.mktemp("precision")
    return lowered(merged_exits(bundle, manifest), manifest.interface, TARGET, work)


def kinds(value: ir.Value) -> ir.DataType | None:
    return value.dtype


def test_inputs_and_outputs_stay_fp32(half: ir.Model, bundle: Path) -> None:
    before = merged_exits(bundle, open_bundle(bundle))
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
    model = merged_exits(bundle, manifest)
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
    model = merged_exits(bundle, open_bundle(bundle))
    for index, node in enumerate(model.graph):
        node.name = str(index)
    kept = {model.graph[int(name)].op_type for name in kept_nodes(model, ())}
    assert {"Sin", "Cos", "Mul"} <= kept
    assert not kept & {"MatMul", "Gemm", "Attention"}


def test_calibration_covers_all_timesteps(bundle: Path) -> None:
    points = calibration(open_bundle(bundle).interface)
    assert set(points) == {"x", "t", "label"}
    assert {0.0, 999.0} <= set(points["t"].tolist())
    assert len(set(points["t"].tolist())) == 5
    assert len(points["x"]) == len(points["t"]) == len(points["label"])
