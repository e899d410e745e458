"""Random multi-exit graphs: chained, per exit, and torch agree."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from hypothesis import given, settings

from eecompile.compiler.merge import merged
from eecompile.compiler.partition import Part, chained_parts, extract, per_exit_parts, signatures

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


@settings(max_examples=60, deadline=None)
@given(case=specs(), seed=st.integers(0, 99))
def test_chained_per_exit_and_torch_agree(case: tuple[Spec, dict[int, int]], seed: int) -> None:
    spec, outputs = case
    draws = np.random.default_rng(seed)
    x, t, weight = (draws.uniform(-1, 1, (WIDTH, WIDTH)).astype(np.float32) for _ in range(3))
    model = graph_of(spec, outputs, weight)
    predictions = dict(zip(outputs, model.graph.outputs, strict=True))
    chained = chained_parts(model.graph, predictions)
    apart = per_exit_parts(model.graph, predictions)
    expected = in_torch(spec, x, t, weight)
    feeds = {"x": x, "t": t}
    for depth, index in outputs.items():
        name = predictions[depth].name
        assert name
        right = expected[index].numpy()
        for parts in (chained, apart):
            found = evaluate(model, parts, depth, name, feeds)
            np.testing.assert_allclose(
                found, right, rtol=1e-3, atol=1e-4 * (1 + np.abs(right).max())
            )


@given(case=specs())
def test_every_needed_node_is_in_exactly_one_segment(case: tuple[Spec, dict[int, int]]) -> None:
    spec, outputs = case
    model = graph_of(spec, outputs, np.zeros((WIDTH, WIDTH), np.float32))
    predictions = dict(zip(outputs, model.graph.outputs, strict=True))
    found = signatures(model.graph, predictions)
    parts = chained_parts(model.graph, predictions)
    counts = [len(extract(model, part.inputs, part.outputs).graph) for part in parts]
    assert sum(counts) == len(found)
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
    predictions = dict(zip(outputs, model.graph.outputs, strict=True))
    apart = [
        (f"p{depth}", extract(model, ("x", "t"), (value.name or "",)))
        for depth, value in predictions.items()
    ]
    joined = merged(apart)
    assert [value.name for value in joined.graph.outputs] == [name for name, _ in apart]
    # Never more nodes than the original has; equal expressions may even become one (an
    # Identity stands for an output that another output equals).
    needed = len(signatures(model.graph, predictions))
    identities = sum(node.op_type == "Identity" for node in joined.graph)
    assert len(joined.graph) - identities <= needed
