from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir import passes

from eecompile.compiler.graph.numbering import NumberValues

KIND = ir.TensorType(ir.DataType.FLOAT)


def weight(name: str, values: list[float]) -> ir.Value:
    tensor = ir.tensor(np.array(values, np.float32), name=name)
    return ir.Value(name=name, shape=ir.Shape([len(values)]), type=KIND, const_value=tensor)


def node(name: str, operator: str, *reads: ir.Value, **attributes: int) -> ir.Node:
    made = ir.Node("", operator, list(reads), [ir.AttrInt64(k, v) for k, v in attributes.items()])
    value = made.outputs[0]
    value.name, value.type, value.shape = name, KIND, ir.Shape([2])
    return made


def model(
    nodes: list[ir.Node], outputs: list[ir.Value], x: ir.Value, *weights: ir.Value
) -> ir.Model:
    graph = ir.Graph(
        [x], outputs, nodes=nodes, initializers=list(weights), opset_imports={"": 20}, name="g"
    )
    return ir.Model(graph, ir_version=10)


@pytest.fixture
def x() -> ir.Value:
    return ir.Value(name="x", shape=ir.Shape([2]), type=KIND)


def test_equal_nodes_become_one_and_different_ones_stay(x: ir.Value) -> None:
    first, twin = node("a", "Tanh", x), node("b", "Tanh", x)
    other, axis = node("c", "Softmax", x, axis=0), node("d", "Softmax", x, axis=-1)
    total = node("e", "Sum", *(n.outputs[0] for n in (first, twin, other, axis)))
    made = model([first, twin, other, axis, total], [total.outputs[0]], x)
    assert NumberValues()(made).modified
    assert [n.op_type for n in made.graph] == ["Tanh", "Softmax", "Softmax", "Sum"]
    reads = [value.name for value in total.inputs if value]
    assert reads == ["a", "a", "c", "d"]
    assert not NumberValues()(made).modified


def test_weights_of_equal_content_become_one(x: ir.Value) -> None:
    weights = [weight("u", [1, 2]), weight("v", [1, 2]), weight("w", [1, 3])]
    nodes = [node(f"n{i}", "Add", x, value) for i, value in enumerate(weights)]
    total = node("s", "Sum", *(n.outputs[0] for n in nodes))
    made = model([*nodes, total], [total.outputs[0]], x, *weights)
    NumberValues()(made)
    assert list(made.graph.initializers) == ["u", "w"]
    assert len(made.graph) == 3


def test_equal_outputs_keep_their_names(x: ir.Value) -> None:
    first, twin = node("a", "Tanh", x), node("b", "Tanh", x)
    made = model([first, twin], [first.outputs[0], twin.outputs[0], x], x)
    NumberValues()(made)
    assert [value.name for value in made.graph.outputs] == ["a", "b", "x"]
    assert [n.op_type for n in made.graph] == ["Tanh", "Identity", "Identity"]


def test_disorder_and_control_flow_are_refused(x: ir.Value) -> None:
    first = node("a", "Tanh", x)
    second = node("b", "Neg", first.outputs[0])
    with pytest.raises(passes.PreconditionError, match="reads what is made later"):
        NumberValues()(model([second, first], [second.outputs[0]], x))
    branch = ir.Graph([], [], nodes=[], name="then")
    flow = ir.Node("", "If", [x], [ir.AttrGraph("then_branch", branch)])
    flow.outputs[0].name = "c"
    y = ir.Value(name="x", shape=ir.Shape([2]), type=KIND)
    flow.replace_input_with(0, y)
    with pytest.raises(passes.PreconditionError, match="If holds a graph"):
        NumberValues()(model([flow], [flow.outputs[0]], y))


def test_a_key_that_confuses_weights_is_noticed(x: ir.Value) -> None:
    """The pass is as right as its key: a constant key merges all weights."""
    weights = [weight("u", [1, 2]), weight("w", [1, 3])]
    nodes = [node(f"n{i}", "Add", x, value) for i, value in enumerate(weights)]
    made = model(nodes, [n.outputs[0] for n in nodes], x, *weights)
    NumberValues(lambda _: "same")(made)
    assert [n.op_type for n in made.graph] == ["Add", "Identity"]
