"""BF16 graphs as FP32 graphs that round alike, for runtimes without kernels in BF16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def widen_bfloat16(model: ir.Model) -> None:
    """Compute in FP32 what the graph computes in BF16, without rounding. In place."""
    _widen_weights(model.graph)
    made = (value for node in model.graph for value in node.outputs)
    for value in (*model.graph.inputs, *made):
        if value.dtype == _NARROW:
            value.dtype = _WIDE
    for node in model.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _NARROW.value:
            node.attributes["to"] = ir.AttrInt64("to", _WIDE.value)


def emulate_bfloat16(model: ir.Model) -> None:
    """Compute in FP32 what the graph computes in BF16, and round every result to BF16.

    In place. This is what hardware does that accumulates in FP32; ONNX Runtime's CPU
    provider has hardly any operator in BF16, but its Cast rounds.
    """
    graph = model.graph
    _widen_weights(graph)
    for node in list(graph):
        narrow = [value for value in node.outputs if value.dtype == _NARROW]
        for value in narrow:
            readers = [(use.node, use.idx) for use in value.uses()]
            if node.op_type == "Cast":
                made = [_cast(value, _WIDE)]
            else:
                value.dtype = _WIDE
                made = [rounded := _cast(value, _NARROW), _cast(rounded.outputs[0], _WIDE)]
            graph.insert_after(node, made)
            for reader, index in readers:
                reader.replace_input_with(index, made[-1].outputs[0])


def _widen_weights(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == _NARROW:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.dtype = _WIDE


def _cast(value: ir.Value, kind: ir.DataType) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", kind.value)])
    node.outputs[0].dtype, node.outputs[0].shape = kind, value.shape
    return node
