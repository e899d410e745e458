"""Ready-made ONNX files, one per exit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.errors import BackendError, RecipeError, TraceError, VerificationError
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_bundle
from tests.conftest import TARGETS

RECIPE = """
name = "two"
[network]
files = ["small.onnx", "large.onnx"]
exits = [1, 2]
costs = [2.5, 10]
[network.arguments]
x = "sample"
t = "timestep"
[state]
shape = [8]
[schedules]
stitch = [2, 1]
[sampling]
schedule = "stitch"
steps = 4
"""


def weights(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((8, 8)) / 3).astype(np.float32)


def network(
    blocks: list[int],
    *,
    time: int = TensorProto.FLOAT,
    batch: str | int = "N",
    width: int = 8,
    last: str = "Identity",
    domain: str = "",
    opset: int = 20,
    copies: int = 1,
) -> onnx.ModelProto:
    """Blocks of a product and a tanh, then the timestep added; weights by their seeds."""
    nodes = [helper.make_node("Cast", ["timestep"], ["time"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Unsqueeze", ["time", "one"], ["column"]))
    initializers = [numpy_helper.from_array(np.array([1]), "one")]
    value = "sample"
    for index, seed in enumerate(blocks):
        initializers.append(numpy_helper.from_array(weights(seed)[:width, :width], f"w{index}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Tanh", [f"m{index}"], [f"h{index}"]))
        value = f"h{index}"
    nodes.append(helper.make_node("Add", [value, "column"], ["sum"]))
    nodes.append(helper.make_node(last, ["sum"], ["out0"], domain=domain))
    outputs = [helper.make_tensor_value_info("out0", TensorProto.FLOAT, [batch, width])]
    if copies == 2:
        nodes.append(helper.make_node("Concat", ["out0", "out0"], ["twice"], axis=1))
        outputs = [helper.make_tensor_value_info("twice", TensorProto.FLOAT, [batch, 2 * width])]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, [batch, width]),
            helper.make_tensor_value_info("timestep", time, [batch]),
        ],
        outputs,
        initializers,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes the recipe and its files; returns the recipe."""

    def written(small: onnx.ModelProto, large: onnx.ModelProto, recipe: str = RECIPE) -> Path:
        onnx.save(small, tmp_path / "small.onnx")
        onnx.save(large, tmp_path / "large.onnx")
        (tmp_path / "recipe.toml").write_text(recipe)
        return tmp_path / "recipe.toml"

    return written


def test_files_that_share_a_trunk_share_it_in_the_bundle(write: Callable[..., Path]) -> None:
    path = write(network([1, 2]), network([1, 2, 3, 4]))
    manifest = bundle_from_recipe(path, path.parent / "bundle")
    assert manifest.reference == "the ONNX files"
    assert set(manifest.sources) == {"small.onnx", "large.onnx"}
    shared = {entry.exits: entry for entry in manifest.sharing}
    assert shared[1, 2].bytes == 2 * 256
    assert shared[1, 2].nodes == 6  # two blocks, and the timestep's Cast and Unsqueeze
    assert all(exit_.worst_error < 1e-6 for exit_ in manifest.exits)


def test_unrelated_networks_are_switched_by_the_schedule(write: Callable[..., Path]) -> None:
    path = write(network([1]), network([5, 6, 7, 8]))
    manifest = bundle_from_recipe(path, path.parent / "bundle")
    weighty = [entry.exits for entry in manifest.sharing if entry.bytes]
    assert sorted(weighty) == [(1,), (2,)]
    assert manifest.interface.share(manifest.interface.schedules["stitch"]) == 0.625
    for layout, target in TARGETS.items():
        engine_set_from_bundle(path.parent / "bundle", target, path.parent / layout)
    with (
        Sampler.open(path.parent / "chained") as chained,
        Sampler.open(path.parent / "per_exit") as apart,
    ):
        results = list(chained.steps(3))
        assert [result.choice.blocks for result in results] == [1, 1, 2, 2]
        np.testing.assert_allclose(results[-1].state, apart.sample(3), atol=1e-6)


def test_the_bundle_computes_what_the_files_do(write: Callable[..., Path]) -> None:
    path = write(network([1], time=TensorProto.INT64), network([1, 2], time=TensorProto.INT64))
    bundle_from_recipe(path, path.parent / "bundle")
    x = np.random.default_rng(0).standard_normal((5, 8), np.float32)
    for name, exit_ in zip(
        ("small", "large"), open_bundle(path.parent / "bundle").exits, strict=True
    ):
        theirs = onnxruntime.InferenceSession(path.parent / f"{name}.onnx")
        ours = onnxruntime.InferenceSession(path.parent / "bundle" / exit_.graph)
        (expected,) = theirs.run(None, {"sample": x, "timestep": np.full(5, 7)})
        (found,) = ours.run(None, {"x": x, "t": np.full(5, 7, np.float32)})
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_external_data_is_found_beside_the_file(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(network([1]), network([1, 2]))
    large = onnx.load(tmp_path / "large.onnx")
    onnx.save(
        large,
        tmp_path / "large.onnx",
        save_as_external_data=True,
        location="large.data",
        size_threshold=64,
    )
    manifest = bundle_from_recipe(path, tmp_path / "bundle")
    assert manifest.exits[1].unique_bytes == 256
    (tmp_path / "large.data").unlink()
    with pytest.raises(TraceError, match=r"large\.onnx, which is no valid ONNX model"):
        bundle_from_recipe(path, tmp_path / "other")


def test_a_learned_variance_is_split_off(write: Callable[..., Path], tmp_path: Path) -> None:
    recipe = RECIPE + '[process]\nvariance = "learned_range"\n'
    path = write(network([1], copies=2), network([1, 2], copies=2), recipe)
    manifest = bundle_from_recipe(path, tmp_path / "bundle")
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / manifest.exits[0].graph)
    assert [value.name for value in session.get_outputs()] == ["prediction_001", "variance_001"]


@pytest.mark.parametrize(
    ("large", "words"),
    [
        ({"batch": 2}, r"'sample' of shape \['2', '8'\] in large\.onnx.*free batch axis"),
        ({"width": 4}, r"'sample' of shape \['N', '4'\] in large\.onnx.*then \[8\]"),
        ({"time": TensorProto.DOUBLE}, r"'timestep' of type DOUBLE in large\.onnx"),
        ({"opset": 17}, r"opset 17 in large\.onnx, and 20 in another"),
        ({"last": "Gelu", "domain": "com.microsoft"}, r"com\.microsoft::Gelu in large\.onnx"),
        ({"last": "RandomNormalLike"}, r"RandomNormalLike in large\.onnx.*random numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    write: Callable[..., Path], large: dict[str, Any], words: str
) -> None:
    path = write(network([1]), network([1, 2], **large))
    with pytest.raises(TraceError, match=words):
        bundle_from_recipe(path, path.parent / "bundle")
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "large.onnx",
        "recipe.toml",
        "small.onnx",
    ]


def test_inputs_are_named_by_the_recipe(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(network([1]), network([1, 2]), RECIPE.replace('t = "timestep"', 't = "time"'))
    with pytest.raises(
        TraceError, match=r"\['sample', 'timestep'\] of small\.onnx; .*\['sample', 'time'\]"
    ):
        bundle_from_recipe(path, tmp_path / "bundle")


def test_half_precision_is_the_targets_business(write: Callable[..., Path], tmp_path: Path) -> None:
    small = network([1])
    nodes = [n for n in small.graph.node if n.op_type != "MatMul"]
    small.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float16(weights(1)), "w0"))
    cast = helper.make_node("Cast", ["w0"], ["wide"], to=TensorProto.FLOAT)
    product = helper.make_node("MatMul", ["sample", "wide"], ["m0"])
    del small.graph.node[:]
    small.graph.node.extend([*nodes[:2], cast, product, *nodes[2:]])
    path = write(small, network([1, 2]))
    with pytest.raises(TraceError, match=r"'w0' of type FLOAT16 in small\.onnx"):
        bundle_from_recipe(path, tmp_path / "bundle")


def test_a_missing_or_broken_file_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(network([1]), network([1, 2]))
    (tmp_path / "small.onnx").write_bytes(b"nothing")
    with pytest.raises(TraceError, match=r"small\.onnx, which is no valid ONNX model"):
        bundle_from_recipe(path, tmp_path / "bundle")
    (tmp_path / "small.onnx").unlink()
    with pytest.raises(TraceError, match="no ONNX file at"):
        bundle_from_recipe(path, tmp_path / "bundle")


def test_a_weight_with_more_bytes_than_its_shape_has_is_refused(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    small = network([1])
    small.graph.initializer[1].data_type = TensorProto.INT8  # a byte each, where four are
    path = write(small, network([1, 2]))
    with pytest.raises(TraceError, match=r"small\.onnx, which is no valid ONNX model.*size 256"):
        bundle_from_recipe(path, tmp_path / "bundle")


def test_an_operator_that_fails_where_it_runs_is_told(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    small = network([1])
    small.graph.initializer.append(numpy_helper.from_array(np.array([1 << 40, -1]), "lengths"))
    (last,) = (node for node in small.graph.node if node.output[0] == small.graph.output[0].name)
    name = last.output[0]
    last.output[0] = "before"
    for reads, lengths, gives in (("before", "lengths", "wide"), ("wide", "back", name)):
        small.graph.node.append(helper.make_node("Reshape", [reads, lengths], [gives]))
    small.graph.initializer.append(numpy_helper.from_array(np.array([-1, 8]), "back"))
    path = write(small, network([1, 2]))
    with pytest.raises(BackendError, match=r"an evaluation refused by ONNX Runtime .*Reshape"):
        bundle_from_recipe(path, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('files = ["small.onnx", "large.onnx"]', 'files = ["small.onnx"]', "1 network.files"),
        ("costs = [2.5, 10]", "costs = [10, 2.5]", "ascend"),
        ("costs = [2.5, 10]", "costs = [1]", "1 network.costs for 2 exits"),
        ("costs = [2.5, 10]", 'factory = "a:b"', "factory, files"),
    ],
)
def test_a_wrong_list_of_files_is_refused(
    write: Callable[..., Path], old: str, new: str, words: str
) -> None:
    path = write(network([1]), network([1, 2]), RECIPE.replace(old, new))
    with pytest.raises(RecipeError, match=words):
        bundle_from_recipe(path, path.parent / "bundle")


def test_files_cannot_have_other_exits(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(network([1]), network([1, 2]))
    with pytest.raises(RecipeError, match=r"network\.files"):
        bundle_from_recipe(path, tmp_path / "bundle", exits=(2,))


@pytest.mark.parametrize("time", [TensorProto.INT64, TensorProto.INT32])
def test_a_timestep_of_integers_is_converted(write: Callable[..., Path], time: int) -> None:
    path = write(network([1], time=time), network([1, 2], time=time))
    manifest = bundle_from_recipe(path, path.parent / "bundle")
    assert all(exit_.worst_error < 1e-6 for exit_ in manifest.exits)


def test_functions_of_a_file_are_inlined(write: Callable[..., Path]) -> None:
    model = network([1], last="Twice", domain="own")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    imports = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], body, imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    path = write(model, network([1, 2]))
    bundle = path.parent / "bundle"
    bundle_from_recipe(path, bundle)
    nodes = onnx.load(bundle / "exit-001.onnx").graph.node
    assert {node.domain for node in nodes} == {""}


def scalar_time(model: onnx.ModelProto) -> None:
    del model.graph.input[1].type.tensor_type.shape.dim[:]


def sequence(model: onnx.ModelProto) -> None:
    last = model.graph.node[-1]
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node("SequenceConstruct", ["sum"], ["all"])
    )
    model.graph.node.insert(
        len(model.graph.node) - 1,
        helper.make_node("ConcatFromSequence", ["all"], ["again"], axis=0),
    )
    last.input[0] = "again"


@pytest.mark.parametrize(
    ("change", "words"),
    [(scalar_time, r"'timestep' of shape \[\]"), (sequence, "SequenceConstruct .* sequence")],
)
def test_what_cannot_be_joined_is_refused(
    write: Callable[..., Path], change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    model = network([1])
    change(model)
    path = write(model, network([1, 2]))
    with pytest.raises(TraceError, match=words):
        bundle_from_recipe(path, path.parent / "bundle")


def test_external_data_that_is_cut_off_is_refused(write: Callable[..., Path]) -> None:
    path = write(network([1]), network([1, 2]))
    model = onnx.load(path.parent / "large.onnx")
    onnx.save(
        model,
        path.parent / "large.onnx",
        save_as_external_data=True,
        location="large.bin",
        size_threshold=100,
    )
    data = path.parent / "large.bin"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(TraceError, match=r"large\.bin, which has \d+ bytes"):
        bundle_from_recipe(path, path.parent / "bundle")


def test_the_manifest_has_the_digest_of_every_source(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(network([1]), network([1, 2]))
    (tmp_path / "deep").mkdir()
    (tmp_path / "large.onnx").rename(tmp_path / "deep" / "small.onnx")
    path.write_text(RECIPE.replace("large.onnx", "deep/small.onnx"))
    model = onnx.load(tmp_path / "deep" / "small.onnx")
    onnx.save(
        model,
        tmp_path / "deep" / "small.onnx",
        save_as_external_data=True,
        location="large.bin",
        size_threshold=100,
    )
    manifest = bundle_from_recipe(path, tmp_path / "bundle")
    assert set(manifest.sources) == {"small.onnx", "deep/small.onnx", "deep/large.bin"}


def test_an_output_of_another_shape_than_the_state_is_refused(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(network([1], copies=2), network([1, 2], copies=2))
    with pytest.raises(VerificationError, match=r"shape \[1, 16\] at exit 1; .* \[1, 8\]"):
        bundle_from_recipe(path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
