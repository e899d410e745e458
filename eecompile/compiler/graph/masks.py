"""Attention masks as ONNX Runtime takes them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import passes


class ExpandMasks(passes.InPlacePass):
    """Gives every attention mask a row per query.

    The standard lets a mask be broadcast over the queries; ONNX Runtime's CPU kernel
    (1.31) refuses one that is. Equal masks are expanded alike, so numbering merges them.

    After: no Attention has a mask of one row for several queries.
    """

    def call(self, model: ir.Model) -> passes.PassResult:
        """Expand, in place."""
        changed = False
        for node in list(model.graph):
            if _is_short(node):
                _expand(model.graph, node)
                changed = True
        return passes.PassResult(model, changed)

    def ensures(self, model: ir.Model) -> None:
        """Check what holds afterwards."""
        if any(_is_short(node) for node in model.graph):
            raise passes.PostconditionError("a mask is still broadcast")


def _is_short(node: ir.Node) -> bool:
    if node.op_type != "Attention" or node.domain or len(node.inputs) < 4:
        return False
    query, mask = node.inputs[0], node.inputs[3]
    if query is None or mask is None or query.shape is None or mask.shape is None:
        return False
    return mask.shape[-2] == 1 and query.shape[-2] != 1


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    query, mask = node.inputs[0], node.inputs[3]
    assert query is not None
    assert mask is not None
    assert query.shape is not None
    assert mask.shape is not None
    rows = query.shape[-2]
    made: list[ir.Node] = []
    if isinstance(rows, int):
        shape = _constant(graph, f"{node.name}.rows", [rows, 1])
    else:
        count = ir.Node("", "Shape", [query], [ir.AttrInt64("start", -2), ir.AttrInt64("end", -1)])
        one = _constant(graph, f"{node.name}.one", [1])
        pair = ir.Node("", "Concat", [count.outputs[0], one], [ir.AttrInt64("axis", 0)])
        made += [count, pair]
        shape = pair.outputs[0]
    expand = ir.Node("", "Expand", [mask, shape])
    expand.outputs[0].type = mask.type
    expand.outputs[0].shape = ir.Shape([*mask.shape[:-2], rows, mask.shape[-1]])
    made.append(expand)
    graph.insert_before(node, made)
    node.replace_input_with(3, expand.outputs[0])


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    tensor = ir.tensor(np.array(values, np.int64), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape([len(values)]))
    value.type = ir.TensorType(tensor.dtype)
    graph.register_initializer(value)
    return value
