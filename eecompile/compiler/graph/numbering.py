"""Value numbering: what is computed the same way becomes one value.

Two values are the same when they are made by the same operator, with the same
attributes, from the same values; weights are the same when their dtype, shape and
bytes are. What several exits share is thereby found, never assumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import onnx_ir as ir
from onnx_ir import passes

from eecompile.compiler.weights import content_key

_DIGITS = 16
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
        numbers = value_numbers(graph, self._tensor_key)
        first: dict[str, ir.Value] = {}
        for name, value in list(graph.initializers.items()):
            kept = first.setdefault(numbers[value], value)
            if kept is not value:
                ir.convenience.replace_all_uses_with(value, kept, replace_graph_outputs=True)
                del graph.initializers[name]
        for node in list(graph):
            if node.op_type == "Identity":  # an output of the graph, which needs its own
                continue
            made = [first.setdefault(numbers[value], value) for value in node.outputs]
            if made != list(node.outputs):
                ir.convenience.replace_all_uses_with(node.outputs, made, replace_graph_outputs=True)
                graph.remove(node)
        _separate_outputs(graph, names)
        return passes.PassResult(model, (len(graph), len(graph.initializers)) != before)

    def ensures(self, model: ir.Model) -> None:
        """Check what holds afterwards."""
        numbers = value_numbers(model.graph, self._tensor_key)
        values = [v for n in model.graph if n.op_type != "Identity" for v in n.outputs]
        if len({numbers[value] for value in values}) < len(values):
            raise passes.PostconditionError("equal nodes are left")
        if _signature(model) != self._signature:
            raise passes.PostconditionError("inputs or outputs have changed")


def value_numbers(graph: ir.Graph, tensor_key: TensorKey = content_key) -> dict[ir.Value, str]:
    """What each value computes: equal strings are equal values, in whatever graph they are.

    A digest of the operator, its attributes, and the numbers of what it reads, down to the
    graph's inputs (by name) and weights (by ``tensor_key``).
    """
    numbers = {
        value: hashlib.sha256(f"input {value.name}".encode()).hexdigest() for value in graph.inputs
    }
    for value in graph.initializers.values():
        assert value.const_value is not None
        numbers[value] = tensor_key(value.const_value)
    for node in graph:
        attributes = tuple(sorted((a.name, _attribute_key(a)) for a in node.attributes.values()))
        operator = node.domain, node.op_type, node.overload, attributes
        reads = [value and numbers[value] for value in node.inputs]
        whole = repr((operator, reads, len(node.outputs)))
        for index, value in enumerate(node.outputs):
            numbers[value] = hashlib.sha256(f"{index} {whole}".encode()).hexdigest()
    return numbers


def name_by_number(model: ir.Model) -> None:
    """Give every value inside the graph a name that says what it computes.

    An engine's inputs and outputs thereby keep their names when exits are added or removed, and
    two segments with equal outputs are equal. The graph's own inputs and outputs keep theirs.
    """
    kept = {*model.graph.inputs, *model.graph.initializers.values(), *model.graph.outputs}
    for value, number in value_numbers(model.graph).items():
        if value not in kept:
            value.name = f"v{number[:_DIGITS]}"


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


def _attribute_key(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return content_key(attribute.as_tensor())
    return repr((attribute.type, attribute.value))


def _holds_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _signature(model: ir.Model) -> list[str | None]:
    return [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
