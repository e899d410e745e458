"""Write Attention out as products and a softmax, where a backend has no kernel for it."""

from __future__ import annotations

import math
from collections.abc import Container

import numpy as np
import onnx_ir as ir
from onnx_ir import passes
from onnx_ir.tape import Tape

from eecompile.errors import BackendError

_PLAIN = {"is_causal": 0, "softcap": 0.0, "qk_matmul_output_mode": 0, "softmax_precision": 0}


class DecomposeAttention(passes.InPlacePass):
    """Replaces Attention (opset 23) over [B, heads, length, width] by what it means.

    softmax(query key^T scale + mask) value, the scale shared between query and key as in
    the standard. Before: no caches, causal masks or caps in what is replaced. After: no
    Attention but those to keep.

    Args:
        keep: widths of a head for which the backend has a kernel.
    """

    def __init__(self, keep: Container[int] = ()) -> None:
        super().__init__()
        self._keep = keep

    def requires(self, model: ir.Model) -> None:
        """Check what holds before."""
        for node in model.graph:
            if node.op_type != "Attention" or node.domain:
                continue
            odd = [
                a.name for a in node.attributes.values() if a.value != _PLAIN.get(a.name, a.value)
            ]
            extra = [value for value in node.inputs[4:] if value is not None]
            query = node.inputs[0]
            four = query is not None and query.shape is not None and len(query.shape) == 4
            mask = node.inputs[3] if len(node.inputs) > 3 else None
            if mask is not None and mask.dtype == ir.DataType.BOOL:
                odd.append("a mask of truth values")
            if odd or extra or not four or len(node.outputs) > 1:
                raise BackendError(
                    found=f"an Attention with {odd or 'caches or three axes'}",
                    expected="one over [B, heads, length, width], without cap or causal mask",
                    remedy="write the attention out in the network's forward",
                )

    def call(self, model: ir.Model) -> passes.PassResult:
        """Replace, in place."""
        found = self._found(model)
        for index, node in enumerate(found):
            _replace(model.graph, node, f"attention{index}")
        return passes.PassResult(model, bool(found))

    def ensures(self, model: ir.Model) -> None:
        """Check what holds afterwards."""
        if self._found(model):
            raise passes.PostconditionError("an Attention is left")

    def _found(self, model: ir.Model) -> list[ir.Node]:
        nodes = [n for n in model.graph if n.op_type == "Attention" and not n.domain]
        return [node for node in nodes if _width(node) not in self._keep]


def _width(node: ir.Node) -> int:
    """Features of a head; 0 where it is not known."""
    query = node.inputs[0]
    width = query.shape[-1] if query is not None and query.shape is not None else 0
    return width if isinstance(width, int) else 0


def _replace(graph: ir.Graph, node: ir.Node, name: str) -> None:
    query, key, value, *rest = node.inputs
    assert query is not None
    assert query.dtype is not None
    stated = node.attributes.get("scale")
    scale = stated.as_float() if stated else 1 / math.sqrt(_width(node))
    tape = Tape()
    root = np.array(math.sqrt(scale), query.dtype.numpy())
    weight = tape.initializer(ir.tensor(root, name=f"{name}.scale"))

    def apply(operator: str, *reads: ir.Value | None, **attributes: int | list[int]) -> ir.Value:
        return tape.op(operator, reads, attributes, output=ir.Value(type=query.type))

    turned = apply("Transpose", key, perm=[0, 1, 3, 2])
    scores = apply("MatMul", apply("Mul", query, weight), apply("Mul", turned, weight))
    if rest and rest[0] is not None:
        scores = apply("Add", scores, rest[0])
    mixed = apply("MatMul", apply("Softmax", scores, axis=-1), value)
    mixed.shape = node.outputs[0].shape
    mixed.name = node.outputs[0].name
    graph.register_initializer(weight)
    graph.insert_before(node, tape.nodes)
    ir.convenience.replace_all_uses_with(node.outputs[0], mixed, replace_graph_outputs=True)
    graph.remove(node)
