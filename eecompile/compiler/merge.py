"""Join a bundle's graphs, one per exit, into one graph with all exits as outputs.

By value numbering: two values are the same when they are made by the same operator,
with the same attributes, from the same values; weights are the same when they are the
same bytes of the weights file. What the exits share is thereby found, never assumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from eecompile.bundle import BundleManifest
from eecompile.compiler.names import output_name
from eecompile.compiler.weights import load_graph
from eecompile.errors import BundleError

__all__ = ["merged", "merged_exits"]


def merged_exits(folder: Path, manifest: BundleManifest) -> ir.Model:
    """The graph of all exits of a bundle."""
    return merged(
        (output_name(exit_.depth), load_graph(folder, exit_.graph)) for exit_ in manifest.exits
    )


def merged(models: Iterable[tuple[str, ir.Model]]) -> ir.Model:
    """One model from several that take the same inputs and give one output each.

    Args:
        models: each output's name in the result, and the model that makes it.

    Raises:
        BundleError: the models' inputs or opsets differ, or one has control flow.
    """
    merger: _Merger | None = None
    for name, model in models:
        merger = merger or _Merger(model)
        merger.add(name, model)
    assert merger, "at least one model"
    return merger.finish()


class _Merger:
    """Values by number: what makes them, as a key."""

    def __init__(self, first: ir.Model) -> None:
        self.first = first
        self.inputs = {
            value.name: ir.Value(name=value.name, shape=value.shape, type=value.type)
            for value in first.graph.inputs
        }
        self.by_key: dict[tuple[object, ...], tuple[ir.Value, ...]] = {}
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, ir.Value] = {}
        self.outputs: list[ir.Value] = []

    def add(self, name: str, model: ir.Model) -> None:
        inputs = [(v.name, v.dtype, v.shape) for v in model.graph.inputs]
        expected = [(v.name, v.dtype, v.shape) for v in self.inputs.values()]
        if inputs != expected or model.opset_imports != self.first.opset_imports:
            raise BundleError(
                found=f"a graph for {name} with inputs {inputs} and opsets {model.opset_imports}",
                expected=f"inputs {expected} and opsets {self.first.opset_imports}, as the others",
                remedy="export the bundle again",
            )
        known: dict[ir.Value, ir.Value] = {
            value: self.inputs[value.name] for value in model.graph.inputs
        }
        for value in model.graph.initializers.values():
            known[value] = self._weight(value)
        for node in model.graph:
            known.update(zip(node.outputs, self._node(node, known), strict=True))
        (output,) = model.graph.outputs
        self.outputs.append(self._named(known[output], name))

    def finish(self) -> ir.Model:
        graph = ir.Graph(
            list(self.inputs.values()),
            self.outputs,
            nodes=self.nodes,
            initializers=list(self.weights.values()),
            opset_imports=dict(self.first.opset_imports),
            name="exits",
        )
        return ir.Model(graph, ir_version=self.first.ir_version, producer_name="eecompile")

    def _weight(self, value: ir.Value) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None
        key: tuple[object, ...]
        if isinstance(tensor, ir.ExternalTensor):
            key = "weight", tensor.offset, tensor.dtype, tuple(tensor.shape)
        else:
            key = "constant", tensor.dtype, tuple(tensor.shape), tensor.tobytes()
        if key not in self.by_key:
            name = f"w{len(self.weights)}"
            made = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
            self.weights[name] = made
            self.by_key[key] = (made,)
        return self.by_key[key][0]

    def _node(self, node: ir.Node, known: dict[ir.Value, ir.Value]) -> tuple[ir.Value, ...]:
        inputs = [None if value is None else known[value] for value in node.inputs]
        attributes = tuple(sorted((a.name, _attribute_key(a)) for a in node.attributes.values()))
        operator = node.domain, node.op_type, node.overload
        key = (*operator, tuple(id(value) for value in inputs), attributes, len(node.outputs))
        if key not in self.by_key:
            made = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
            )
            for index, (new, old) in enumerate(zip(made.outputs, node.outputs, strict=True)):
                new.name = f"v{len(self.nodes)}" + (f".{index}" if index else "")
                new.type, new.shape = old.type, old.shape
            self.nodes.append(made)
            self.by_key[key] = tuple(made.outputs)
        return self.by_key[key]

    def _named(self, value: ir.Value, name: str) -> ir.Value:
        """``value`` under ``name``, through an Identity where it is named or fed already."""
        if value.producer() is not None and value not in self.outputs:
            value.name = name
            return value
        node = ir.Node("", "Identity", [value])
        node.outputs[0].name = name
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        self.nodes.append(node)
        return node.outputs[0]


def _attribute_key(attribute: ir.Attr) -> str:
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        raise BundleError(
            found=f"control flow (attribute {attribute.name!r} holds a graph)",
            expected="a network without If, Loop or Scan",
            remedy="make the network's forward free of data-dependent control flow",
        )
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return repr((tensor.dtype, tuple(tensor.shape), tensor.tobytes()))
    return repr((attribute.type, attribute.value))
