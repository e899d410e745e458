"""Attention masks as ONNX Runtime takes them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import passes
from onnx_ir.tape import Tape


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
    rows, tape = query.shape[-2], Tape()
    if isinstance(rows, int):
        shape = tape.initializer(ir.tensor([rows, 1], name=f"{node.name}.rows"))
    else:
        count = tape.op("Shape", [query], {"start": -2, "end": -1})
        one = tape.initializer(ir.tensor([1], name=f"{node.name}.one"))
        shape = tape.op("Concat", [count, one], {"axis": 0})
    widened = ir.Shape([*mask.shape[:-2], rows, mask.shape[-1]])
    expanded = ir.Value(type=mask.type, shape=widened)
    tape.op("Expand", [mask, shape], output=expanded)
    for weight in tape.initializers:
        graph.register_initializer(weight)
    graph.insert_before(node, tape.nodes)
    node.replace_input_with(3, expanded)
