"""Refuse graphs that hold what cannot be compiled, naming the operator and its place."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from eecompile.errors import TraceError
from eecompile.networks import truncated

_SIZES = "the size of its result depends on data"
_RANDOM = "it draws random numbers"
_SEQUENCE = "it works on a sequence of tensors"
_BY_REASON = {
    "control flow, whose course depends on data": ("If", "Loop", "Scan"),
    _SIZES: ("Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"),
    _SEQUENCE: (
        *("ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement"),
        *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
        *("SequenceLength", "SequenceMap", "SplitToSequence"),
    ),
    _RANDOM: (
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
        "RandomUniformLike",
    ),
}
_REFUSED = {operator: reason for reason, each in _BY_REASON.items() for operator in each}
_REMEDIES = {
    _RANDOM: "pass the numbers as a condition",
    _SEQUENCE: "replace it in the network's forward by Split and Concat",
}
# What stands between a network's lines and torch's.
_OURS = {str(Path(__file__).parents[1] / "trace.py"), truncated.__file__}
_FROM_DATA = re.compile(r"\bz?u[f]?\d+\b")  # torch's names for sizes that it read from data


def check_operators(model: ir.Model, source: str) -> None:
    """Pass over ``model``, from ``source``, when every operator in it can be compiled.

    Raises:
        TraceError: control flow, a size that depends on data, random numbers, or an
            operator that is not of the ONNX standard.
    """
    for node in model.graph:
        reason = _REFUSED.get(node.op_type) if node.domain == "" else None
        if node.domain != "":
            raise TraceError(
                found=f"operator {node.domain}::{node.op_type} in {source}{place_of(node)}",
                expected="operators of the ONNX standard",
                remedy="export the network without that runtime's own operators",
            )
        if reason is None and any(_FROM_DATA.search(str(value.shape)) for value in node.outputs):
            reason = _SIZES
        if reason is not None:
            elsewhere = "replace it in the network's forward, for example by torch.where"
            raise TraceError(
                found=f"operator {node.op_type} in {source}{place_of(node)}: {reason}",
                expected="a network that does the same steps whatever its inputs hold",
                remedy=_REMEDIES.get(reason, elsewhere),
            )


def place_of(node: ir.Node) -> str:
    """Where the operator comes from: the line of the network's code, or the node's name."""
    line = network_line(node.metadata_props.get("pkg.torch.onnx.stack_trace", ""))
    return line or (f", node {node.name!r}" if node.name else "")


def network_line(trace: str) -> str:
    """The innermost line of the network's code in a stack trace: ``, from FILE, line N``."""
    lines = re.findall(r'File "([^<"][^"]*)", line (\d+)', trace)
    lines = [line for line in lines if line[0] not in _OURS] or lines
    return f", from {lines[-1][0]}, line {lines[-1][1]}" if lines else ""
