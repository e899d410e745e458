"""What exits have in common."""

from __future__ import annotations

import onnx_ir as ir

from eecompile.compiler.graph.partition import ExitOutputs, signatures
from eecompile.compiler.weights import INLINE_BYTES
from eecompile.store.manifest import Sharing


def sharing(graph: ir.Graph, outputs: ExitOutputs) -> tuple[Sharing, ...]:
    """For each set of exits that have anything in common, what exactly they all need.

    A node counts for the exits that need it; a weight for those that have a node that
    reads it, so a head that all exits share counts as theirs although each has its own
    nodes for it.
    """
    nodes: dict[frozenset[int], int] = {}
    readers: dict[ir.Value, set[int]] = {}
    for node, exits in signatures(graph, outputs).items():
        nodes[exits] = nodes.get(exits, 0) + 1
        for value in node.inputs:
            if value is not None and value.is_initializer() and _counts(value):
                readers.setdefault(value, set()).update(exits)
    sizes: dict[frozenset[int], int] = {}
    for value, found in readers.items():
        assert value.const_value is not None
        key = frozenset(found)
        sizes[key] = sizes.get(key, 0) + value.const_value.nbytes
    return tuple(
        Sharing(exits=tuple(sorted(key)), nodes=nodes.get(key, 0), bytes=sizes.get(key, 0))
        for key in sorted({*nodes, *sizes}, key=lambda key: (-len(key), sorted(key)))
    )


def exit_weights(model: ir.Model) -> dict[int | None, ir.ExternalTensor]:
    """The weights of a bundle's graph, by their offset in the weights file."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return {tensor.offset: tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def _counts(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes >= INLINE_BYTES
