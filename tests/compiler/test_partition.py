"""Random multi-exit graphs: chained, per exit, and torch agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from onnx_ir import passes

from eecompile.compiler.graph.merge import joined
from eecompile.compiler.graph.numbering import NumberValues
from eecompile.compiler.graph.partition import (
    ExitOutputs,
    Part,
    chained_parts,
    check_nested,
    check_parts,
    constant_nodes,
    extract,
    per_exit_parts,
    signatures,
)
from eecompile.compiler.trace import graph_from_network
from eecompile.errors import BundleError, TraceError
from eecompile.programs.interface import Interface, State

WIDTH = 4
Spec = list[tuple[str, tuple[int, ...]]]  # operator, and the earlier values that it reads

UNARY = {"Tanh": torch.tanh, "Neg": torch.neg, "Sigmoid": torch.sigmoid}
BINARY = {"Add": torch.add, "Mul": torch.mul, "Sub": torch.sub}


@st.composite
def specs(draw: st.DrawFn) -> tuple[Spec, dict[int, int]]:
    """Nodes over values 0 and 1 (inputs) and 2 (a weight); and each exit's value."""
    nodes: Spec = []
    for index in range(draw(st.integers(2, 20))):
        value = st.integers(0, 2 + index)
        if draw(st.booleans()):
            nodes.append((draw(st.sampled_from(sorted(BINARY))), (draw(value), draw(value))))
        elif draw(st.booleans()):
            nodes.append((draw(st.sampled_from(sorted(UNARY))), (draw(value),)))
        else:
            nodes.append(("MatMul", (draw(value), 2)))
    outputs = draw(st.lists(st.integers(3, 2 + len(nodes)), min_size=1, max_size=4, unique=True))
    return nodes, {3 * (i + 1): value for i, value in enumerate(sorted(outputs))}


def in_torch(spec: Spec, x: np.ndarray, t: np.ndarray, weight: np.ndarray) -> list[torch.Tensor]:
    values = [torch.from_numpy(array).double() for array in (x, t, weight)]
    for operator, reads in spec:
        read = [values[i] for i in reads]
        if operator == "MatMul":
            values.append(read[0] @ read[1])
        else:
            values.append((UNARY | BINARY)[operator](*read))
    return values


def graph_of(spec: Spec, outputs: dict[int, int], weight: np.ndarray) -> ir.Model:
    shape, kind = ir.Shape([WIDTH, WIDTH]), ir.TensorType(ir.DataType.FLOAT)
    values = [ir.Value(name=name, shape=shape, type=kind) for name in ("x", "t")]
    constant = ir.Value(name="w", shape=shape, type=kind, const_value=ir.tensor(weight, name="w"))
    inputs = list(values)
    values.append(constant)
    nodes = []
    for index, (operator, reads) in enumerate(spec):
        node = ir.Node("", operator, [values[i] for i in reads])
        node.outputs[0].name = f"n{index}"
        node.outputs[0].type, node.outputs[0].shape = kind, shape
        nodes.append(node)
        values.append(node.outputs[0])
    graph = ir.Graph(
        inputs,
        [values[i] for i in outputs.values()],
        nodes=nodes,
        initializers=[constant],
        opset_imports={"": 20},
        name="g",
    )
    return ir.Model(graph, ir_version=10)


def evaluate(
    model: ir.Model, parts: list[Part], depth: int, output: str, feeds: dict[str, np.ndarray]
) -> np.ndarray:
    """Run the parts that a depth needs, in order."""
    values = dict(feeds)
    for part in parts:
        if depth in part.exits:
            data = ir.to_proto(extract(model, part.inputs, part.outputs)).SerializeToString()
            session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            results = session.run(list(part.outputs), {n: values[n] for n in part.inputs})
            values |= dict(zip(part.outputs, results, strict=True))
    return values[output]


@settings(max_examples=60)
@given(case=specs(), seed=st.integers(0, 99))
def test_chained_per_exit_and_torch_agree(case: tuple[Spec, dict[int, int]], seed: int) -> None:
    spec, outputs = case
    draws = np.random.default_rng(seed)
    x, t, weight = (draws.uniform(-1, 1, (WIDTH, WIDTH)).astype(np.float32) for _ in range(3))
    model = graph_of(spec, outputs, weight)
    predictions = by_exit(model, outputs)
    chained = chained_parts(model.graph, predictions)
    apart = per_exit_parts(model.graph, predictions)
    expected = in_torch(spec, x, t, weight)
    feeds = {"x": x, "t": t}
    for depth, index in outputs.items():
        name = predictions[depth][0].name
        assert name
        right = expected[index].numpy()
        for parts in (chained, apart):
            check_parts(model.graph, predictions, parts)
            found = evaluate(model, parts, depth, name, feeds)
            np.testing.assert_allclose(
                found, right, rtol=1e-3, atol=1e-4 * (1 + np.abs(right).max())
            )


@given(case=specs())
def test_every_needed_node_is_in_exactly_one_segment(case: tuple[Spec, dict[int, int]]) -> None:
    spec, outputs = case
    model = graph_of(spec, outputs, np.zeros((WIDTH, WIDTH), np.float32))
    predictions = by_exit(model, outputs)
    found = signatures(model.graph, predictions)
    parts = chained_parts(model.graph, predictions)
    # What reads weights only goes with each part that reads it.
    repeated = constant_nodes(model.graph)
    names = {node.outputs[0].name for node in found if node not in repeated}
    made = [
        node.outputs[0].name
        for part in parts
        for node in extract(model, part.inputs, part.outputs).graph
    ]
    assert sorted(name for name in made if name in names) == sorted(names)
    assert len({part.exits for part in parts}) == len(parts)
    known = {"x", "t"}
    for part in parts:
        assert set(part.inputs) <= known
        known |= set(part.outputs)


@given(case=specs())
def test_merging_the_exits_finds_again_what_they_share(case: tuple[Spec, dict[int, int]]) -> None:
    spec, outputs = case
    weight = np.eye(WIDTH, dtype=np.float32)
    model = graph_of(spec, outputs, weight)
    predictions = by_exit(model, outputs)
    needed = len(signatures(model.graph, predictions))
    apart = [
        (f"p{depth}", extract(model, ("x", "t"), (value.name or "",)))
        for depth, (value,) in predictions.items()
    ]
    names = [value.name for value in model.graph.outputs]
    together = joined(apart)
    NumberValues()(together)
    assert [value.name for value in together.graph.outputs] == names
    # Never more nodes than the original has; equal expressions may even become one (an
    # Identity stands for an output that another output equals).
    identities = sum(node.op_type == "Identity" for node in together.graph)
    assert len(together.graph) - identities <= needed


class Blocks(NamedTuple):
    """A generated network, as people build them.

    Attributes:
        weights: of each block; equal numbers are one weight.
        skips: for each block, an earlier value that it adds, or none.
        exits: the depths that predict.
        heads: the weight of each exit's head; negative numbers are heads' own.
    """

    weights: tuple[int, ...]
    skips: tuple[int | None, ...]
    exits: tuple[int, ...]
    heads: tuple[int, ...]


@st.composite
def blocks(draw: st.DrawFn) -> Blocks:
    depth = draw(st.integers(2, 7))
    tied = draw(st.booleans())
    weights = tuple(draw(st.integers(0, 2)) if tied else index for index in range(depth))
    skips = tuple(draw(st.none() | st.integers(0, index)) for index in range(depth))
    exits = draw(st.sets(st.integers(1, depth - 1), max_size=4)) | {depth}
    own = draw(st.booleans())
    heads = tuple(-1 - index * own for index in range(len(exits)))
    return Blocks(weights, skips, tuple(sorted(exits)), heads)


def weight_of(number: int) -> np.ndarray:
    return np.random.default_rng(number + 100).uniform(-1, 1, (WIDTH, WIDTH)).astype(np.float32)


def predictions_of(network: Blocks, x: np.ndarray, t: np.ndarray) -> dict[int, np.ndarray]:
    """In torch: the reference."""
    values = [torch.from_numpy(x)]
    for number, skip in zip(network.weights, network.skips, strict=True):
        value = torch.tanh(values[-1] @ torch.from_numpy(weight_of(number))) + torch.from_numpy(t)
        values.append(value if skip is None else value + values[skip])
    return {
        depth: (values[depth] @ torch.from_numpy(weight_of(head))).numpy()
        for depth, head in zip(network.exits, network.heads, strict=True)
    }


def file_of(network: Blocks, depth: int, head: int) -> ir.Model:
    """One exit's graph, with weights of its own and names of its own, as files have them."""
    shape, kind = ir.Shape([WIDTH, WIDTH]), ir.TensorType(ir.DataType.FLOAT)
    inputs = [ir.Value(name=name, shape=shape, type=kind) for name in ("x", "t")]
    weights: list[ir.Value] = []
    nodes: list[ir.Node] = []

    def weight(number: int) -> ir.Value:
        name = f"w{depth}_{len(weights)}"
        tensor = ir.tensor(weight_of(number), name=name)
        weights.append(ir.Value(name=name, shape=shape, type=kind, const_value=tensor))
        return weights[-1]

    def made(operator: str, *reads: ir.Value) -> ir.Value:
        node = ir.Node("", operator, list(reads))
        value = node.outputs[0]
        value.name, value.type, value.shape = f"n{depth}_{len(nodes)}", kind, shape
        nodes.append(node)
        return value

    values = [inputs[0]]
    for number, skip in list(zip(network.weights, network.skips, strict=True))[:depth]:
        value = made("Add", made("Tanh", made("MatMul", values[-1], weight(number))), inputs[1])
        values.append(value if skip is None else made("Add", value, values[skip]))
    output = made("MatMul", values[-1], weight(head))
    output.name = f"prediction_{depth:03d}"
    graph = ir.Graph(
        inputs, [output], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def merged(network: Blocks) -> tuple[ir.Model, ExitOutputs]:
    pairs = zip(network.exits, network.heads, strict=True)
    model = joined([(f"{depth}.onnx", file_of(network, depth, head)) for depth, head in pairs])
    NumberValues()(model)
    return model, by_exit(model, dict.fromkeys(network.exits, 0))


def by_exit(model: ir.Model, exits: Iterable[int]) -> dict[int, list[ir.Value]]:
    return {d: [value] for d, value in zip(exits, model.graph.outputs, strict=True)}


@settings(max_examples=60)
@given(network=blocks(), seed=st.integers(0, 99))
def test_files_of_a_network_merge_into_it(network: Blocks, seed: int) -> None:
    draws = np.random.default_rng(seed)
    x, t = (draws.uniform(-1, 1, (WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
    expected = predictions_of(network, x, t)
    model, outputs = merged(network)
    # Each block once, whatever the number of exits; each distinct weight once.
    assert sum(node.op_type == "Tanh" for node in model.graph) == len(network.weights)
    assert len(model.graph.initializers) == len({*network.weights, *network.heads})
    check_nested(model.graph, outputs)
    for parts in (chained_parts(model.graph, outputs), per_exit_parts(model.graph, outputs)):
        check_parts(model.graph, outputs, parts)
        for depth, right in expected.items():
            name = f"prediction_{depth:03d}"
            found = evaluate(model, parts, depth, name, {"x": x, "t": t})
            np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def test_parts_that_do_not_make_an_exit_are_noticed() -> None:
    model, outputs = merged(Blocks((0, 1), (None, None), (1, 2), (-1, -1)))
    parts = chained_parts(model.graph, outputs)
    with pytest.raises(passes.PostconditionError, match="no part makes exit 2"):
        check_parts(model.graph, outputs, parts[:-1])
    with pytest.raises(passes.PostconditionError, match="too early"):
        check_parts(model.graph, outputs, parts[::-1])


def test_exits_that_share_no_trunk_do_not_nest() -> None:
    files = [file_of(Blocks((i, i + 1), (None, None), (2,), (-1,)), 2, -1) for i in (0, 5)]
    files[0].graph.outputs[0].name = "prediction_001"
    model = joined([("a", files[0]), ("b", files[1])])
    NumberValues()(model)
    with pytest.raises(TraceError, match=r"exits 1 and 2 that do not nest: they share 0"):
        check_nested(model.graph, by_exit(model, (1, 2)))


def test_a_deeper_exit_that_computes_less_does_not_nest() -> None:
    model, _ = merged(Blocks((0, 1, 2), (None, None, None), (1, 3), (-1, -1)))
    swapped = {1: [model.graph.outputs[1]], 3: [model.graph.outputs[0]]}
    with pytest.raises(TraceError, match="of 4 and 2"):
        check_nested(model.graph, swapped)


def test_graphs_with_other_inputs_cannot_be_joined() -> None:
    one, other = (file_of(Blocks((0,), (None,), (1,), (-1,)), 1, -1) for _ in range(2))
    other.graph.inputs[1].name = "time"
    with pytest.raises(BundleError, match=r"b\.onnx with inputs x .* time .* as in a\.onnx"):
        joined([("a.onnx", one), ("b.onnx", other)])


def test_what_is_no_weight_is_no_trunk() -> None:
    """Exits that share the timestep's scale only; and a deeper one without weights of its own."""
    for fault in ("unrelated", "no more"):
        network: Any = Shallow(fault)
        interface = Interface(name="shallow", exits=(1, 2), state=State(shape=(3,)))
        model = graph_from_network(network, interface)
        with pytest.raises(TraceError, match="exits 1 and 2 that do not nest"):
            check_nested(model.graph, by_exit(model, (1, 2)))


class Shallow(torch.nn.Module):
    exits = (1, 2)

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.layers[0](x) + t[:, None] / 1000
        if self.fault == "no more":
            return first, first * 2
        return first, self.layers[2](self.layers[1](x)) + t[:, None] / 1000


def test_weights_keep_their_order_so_that_exports_are_the_same_to_the_byte() -> None:
    weights = [
        ir.Value(name=f"w{i:02}", const_value=ir.tensor(np.float32([i]), name=f"w{i:02}"))
        for i in range(50)
    ]
    last = x = ir.Value(name="x", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = []
    for index, weight in enumerate(weights):
        nodes.append(ir.node("Add", [last, weight], name=f"add{index}"))
        (last,) = nodes[-1].outputs
        last.name = f"sum{index}"
    graph = ir.Graph([x], [last], nodes=nodes, initializers=weights, opset_imports={"": 20})
    model = ir.Model(graph, ir_version=10)
    assert list(extract(model, ["x"], ["sum39"]).graph.initializers) == [
        weight.name for weight in weights[:40]
    ]
