"""Cut a graph with several exits into graphs per exit, or into segments that exits share.

Each node's *signature* is the set of exits that need it. A node's inputs are needed by
every exit that needs the node, so along every edge the signature can only shrink; nodes
with one signature therefore form a segment, and the segments have no cycle. A network
whose exits are prefixes of one another gives a chain of trunk segments with a head an
exit; other shapes of sharing fall out of the same rule. Graphs with control flow are
refused before they come here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import onnx_ir as ir

__all__ = ["Part", "chained_parts", "extract", "per_exit_parts", "signatures"]


class Part(msgspec.Struct, frozen=True):
    """A part of a graph, by the names of its values.

    Attributes:
        exits: depths that need it, ascending.
        inputs: values that it reads: graph inputs, or outputs of other parts.
        outputs: values that it makes for other parts or as predictions.
    """

    exits: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def signatures(graph: ir.Graph, outputs: Mapping[int, ir.Value]) -> dict[ir.Node, frozenset[int]]:
    """The exits that need each node; nodes that no exit needs are left out.

    Args:
        graph: topologically sorted.
        outputs: the prediction of each exit, by depth.
    """
    needed: dict[ir.Value, set[int]] = {}
    for depth, value in outputs.items():
        needed.setdefault(value, set()).add(depth)
    found = {}
    for node in reversed(list(graph)):
        exits = frozenset(depth for value in node.outputs for depth in needed.get(value, ()))
        if not exits:
            continue
        found[node] = exits
        for value in _reads(node):
            needed.setdefault(value, set()).update(exits)
    return found


def per_exit_parts(graph: ir.Graph, outputs: Mapping[int, ir.Value]) -> list[Part]:
    """One part an exit, each computing everything from the graph's inputs."""
    parts = []
    for depth, value in outputs.items():
        found = signatures(graph, {depth: value})
        reads = {read for node in found for read in _reads(node)} | {value}
        inputs = tuple(_name(v) for v in graph.inputs if v in reads)
        parts.append(Part((depth,), inputs, (_name(value),)))
    return parts


def chained_parts(graph: ir.Graph, outputs: Mapping[int, ir.Value]) -> list[Part]:
    """The segments, in an order in which they can run.

    Every node that an exit needs is in exactly one part. A prediction that no node makes
    (an input handed through) belongs to no part.
    """
    found = signatures(graph, outputs)
    groups: dict[frozenset[int], list[ir.Node]] = {}
    for node in graph:
        if node in found:
            groups.setdefault(found[node], []).append(node)
    predictions = set(outputs.values())
    parts = []
    # A part can only read from parts whose signature contains its own.
    for exits in sorted(groups, key=lambda group: (-len(group), sorted(group))):
        members = set(groups[exits])
        reads = dict.fromkeys(v for node in groups[exits] for v in _reads(node))
        made = dict.fromkeys(v for node in groups[exits] for v in node.outputs)
        inputs = tuple(
            _name(v) for v in reads if v.producer() not in members and not v.is_initializer()
        )
        outside = (
            v
            for v in made
            if v in predictions
            or any(use.node in found and use.node not in members for use in v.uses())
        )
        parts.append(Part(tuple(sorted(exits)), inputs, tuple(_name(v) for v in outside)))
    return parts


def extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """A model of the nodes between ``inputs`` and ``outputs``; weights are not copied."""
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    return ir.Model(graph, ir_version=model.ir_version, producer_name="eecompile")


def _reads(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _name(value: ir.Value) -> str:
    assert value.name, "values of a traced graph are named"
    return value.name
