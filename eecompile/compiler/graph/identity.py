"""Names of values by what they compute, the same in every graph that computes it."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from eecompile.compiler.graph.numbering import operator_key
from eecompile.compiler.weights import content_key

_KEY = "eecompile.computation"
_DIGITS = 16


def name_by_content(model: ir.Model) -> None:
    """Give every value inside the graph a name that says what it computes.

    The name is a digest of the operator, its attributes, and the digests of what it reads,
    down to the graph's inputs (by name) and weights (by content). An engine's inputs and
    outputs thereby keep their names when exits are added or removed, and two segments
    with equal outputs are equal. The graph's own inputs and outputs keep their names.
    """
    graph = model.graph
    kept = {*graph.inputs, *graph.outputs}
    for value in graph.inputs:
        value.meta[_KEY] = hashlib.sha256(f"input {value.name}".encode()).hexdigest()
    for value in graph.initializers.values():
        assert value.const_value is not None
        value.meta[_KEY] = content_key(value.const_value)
    for node in graph:
        reads = [value and computation(value) for value in node.inputs]
        whole = repr((operator_key(node), reads, len(node.outputs)))
        for index, value in enumerate(node.outputs):
            digest = hashlib.sha256(f"{index} {whole}".encode()).hexdigest()
            value.meta[_KEY] = digest
            if value not in kept:
                value.name = f"v{digest[:_DIGITS]}"


def computation(value: ir.Value) -> str:
    """Digest of what a value computes, in hex, once :func:`name_by_content` has run."""
    found: str = value.meta[_KEY]
    return found
