"""Value numbering: what is computed the same way becomes one value.

Two values are the same when they are made by the same operator, with the same
attributes, from the same values; weights are the same when their dtype, shape and
bytes are. What several exits share is thereby found, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir import passes

from eecompile.compiler.weights import content_key

Key = tuple[object, ...]
TensorKey = Callable[[ir.TensorProtocol], str]


class NumberValues(passes.InPlacePass):
    """Merges equal weights and equal nodes.

    Before: nodes are in topological order, and none has a graph as an attribute or
    draws random numbers. After: no two nodes and no two weights are equal, and the
    graph's inputs and outputs have the names and the order that they had.

    Args:
        tensor_key: what a weight is known by; its content, unless something cheaper is
            known to be equivalent.
    """

    def __init__(self, tensor_key: TensorKey = content_key) -> None:
        super().__init__()
        self._tensor_key = tensor_key
        self._signature: list[str | None] = []

    def requires(self, model: ir.Model) -> None:
        """Check what holds before."""
        known = {*model.graph.inputs, *model.graph.initializers.values()}
        for node in model.graph:
            if any(_holds_graph(attribute) for attribute in node.attributes.values()):
                raise passes.PreconditionError(f"{node.op_type} holds a graph")
            if any(value is not None and value not in known for value in node.inputs):
                raise passes.PreconditionError(f"{node.op_type} reads what is made later")
            known.update(node.outputs)
        self._signature = _signature(model)

    def call(self, model: ir.Model) -> passes.PassResult:
        """Merge, in place."""
        graph = model.graph
        names = [value.name for value in graph.outputs]
        before = len(graph), len(graph.initializers)
        self._merge_weights(graph)
        _merge_nodes(graph)
        _separate_outputs(graph, names)
        return passes.PassResult(model, (len(graph), len(graph.initializers)) != before)

    def ensures(self, model: ir.Model) -> None:
        """Check what holds afterwards."""
        keys = [_node_key(node) for node in model.graph]
        if len(set(keys)) < len(keys):
            raise passes.PostconditionError("equal nodes are left")
        if _signature(model) != self._signature:
            raise passes.PostconditionError("inputs or outputs have changed")

    def _merge_weights(self, graph: ir.Graph) -> None:
        kept: dict[str, ir.Value] = {}
        for name, value in list(graph.initializers.items()):
            assert value.const_value is not None
            first = kept.setdefault(self._tensor_key(value.const_value), value)
            if first is not value:
                ir.convenience.replace_all_uses_with(value, first, replace_graph_outputs=True)
                del graph.initializers[name]


def _merge_nodes(graph: ir.Graph) -> None:
    kept: dict[Key, ir.Node] = {}
    for node in list(graph):
        first = kept.setdefault(_node_key(node), node)
        if first is not node:
            ir.convenience.replace_all_uses_with(
                node.outputs, first.outputs, replace_graph_outputs=True
            )
            graph.remove(node)


def _separate_outputs(graph: ir.Graph, names: list[str | None]) -> None:
    """Give every output its own value and its name again."""
    taken: set[ir.Value] = set()
    for index, name in enumerate(names):
        value = graph.outputs[index]
        if value.producer() is None or value in taken:
            node = ir.Node("", "Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            graph.outputs[index] = value = node.outputs[0]
        taken.add(value)
        value.name = name


def operator_key(node: ir.Node) -> Key:
    """What a node does, whatever it reads: its operator and attributes."""
    attributes = tuple(sorted((a.name, _attribute_key(a)) for a in node.attributes.values()))
    return node.domain, node.op_type, node.overload, attributes


def _node_key(node: ir.Node) -> Key:
    inputs = tuple(None if value is None else id(value) for value in node.inputs)
    output = tuple(value.name for value in node.outputs) if node.op_type == "Identity" else ()
    return *operator_key(node), inputs, len(node.outputs), output


def _attribute_key(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return content_key(attribute.as_tensor())
    return repr((attribute.type, attribute.value))


def _holds_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _signature(model: ir.Model) -> list[str | None]:
    return [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
