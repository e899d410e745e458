"""What crosses the ends of spans, found from the graph.

A network may hand on several tensors from block to block, and some past many blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

import onnx_ir as ir

from eecompile.compiler.graph.cuts import marks, separate_heads
from eecompile.compiler.graph.merge import exit_outputs
from eecompile.compiler.graph.partition import Part, chained_parts, check_parts, signatures
from eecompile.errors import TraceError
from eecompile.programs.interface import Interface
from eecompile.store.manifest import SpanPlan, SpanTensor

_BATCH = "batch"  # the axis, in exported graphs
_TYPES: dict[ir.DataType, Literal["float32", "float16", "bfloat16"]] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}


def cut_parts(model: ir.Model, interface: Interface, cuts: Sequence[int]) -> list[Part]:
    """The segments of all exits, which end at cuts, too.

    The graph is changed in place; see :func:`.cuts.separate_heads`.
    """
    needed = signatures(model.graph, exit_outputs(model, interface))
    separate_heads(model.graph, needed, cuts)
    outputs = exit_outputs(model, interface)
    parts = chained_parts(model.graph, outputs, cuts)
    check_parts(model.graph, outputs, parts)
    return parts


def span_plans(graph: ir.Graph, parts: Sequence[Part], cuts: Sequence[int]) -> tuple[SpanPlan, ...]:
    """What leaves each span between two cuts, and what of it enters in the same shape.

    Raises:
        TraceError: there is nothing between two cuts, or what leaves cannot be extrapolated.
    """
    values = {value.name: value for node in graph for value in node.outputs}
    plans = []
    for start, stop in combinations(cuts, 2):
        tensors = tuple(_tensors(values, parts, start, stop))
        taken = sum(tensor.bytes for tensor in tensors)
        plans.append(SpanPlan(start=start, stop=stop, tensors=tensors, bytes=taken))
    return tuple(plans)


def _tensors(
    values: Mapping[str | None, ir.Value], parts: Sequence[Part], start: int, stop: int
) -> Iterator[SpanTensor]:
    skipped = [part for part in parts if start < part.level <= stop]
    readers = (part for part in parts if part.level > stop and part.exits[-1] >= stop)
    after = {name for part in readers for name in part.inputs}
    made = [name for part in skipped for name in part.outputs]
    inner = set(made)
    entering = list(
        dict.fromkeys(n for part in skipped for n in part.inputs if n in values and n not in inner)
    )
    leaving = [name for name in made if name in after]
    if not leaving:
        raise _unusable(start, stop, "nothing that is read after them", "other cuts")
    for name in leaving:
        value = values[name]
        shape, kind = _shape(value), _TYPES.get(value.dtype) if value.dtype else None
        if shape is None or kind is None:
            what = f"a tensor of type {value.dtype and value.dtype.name}, shape {value.shape}"
            raise _unusable(
                start, stop, what, "floating-point tensors of one shape for every sample"
            )
        alike = [n for n in entering if _alike(values[n], value)]
        alike.sort(key=lambda n: _distance(values[n], start, value))
        enters = alike[0] if alike else None
        yield SpanTensor(leaves=name, enters=enters, shape=shape, dtype=kind)


def _unusable(start: int, stop: int, found: str, expected: str) -> TraceError:
    return TraceError(
        found=f"{found} from blocks {start + 1} to {stop}, between cuts {start} and {stop}",
        expected=expected,
        remedy="choose other network.cuts in the recipe, or none: network.cuts = []",
    )


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    """Of one sample; None where the first axis is not the batch, or another is free."""
    if value.shape is None or not len(value.shape) or str(value.shape[0]) != _BATCH:
        return None
    lengths = tuple(length for length in value.shape.dims[1:] if isinstance(length, int))
    return lengths if len(lengths) == len(value.shape) - 1 else None


def _alike(one: ir.Value, other: ir.Value) -> bool:
    return one.dtype == other.dtype and _shape(one) == _shape(other)


def _distance(enters: ir.Value, start: int, leaves: ir.Value) -> float:
    """How far apart two tensors are in what blocks return; those that cut ``start`` marks first."""
    here = [index for block, index in _marks_of(enters) if block == start]
    there = [index for _, index in _marks_of(leaves)]
    return min((abs(i - j) for i in here for j in there), default=math.inf)


def _marks_of(value: ir.Value) -> list[tuple[int, int]]:
    node = value.producer()
    return [] if node is None else marks(node)
