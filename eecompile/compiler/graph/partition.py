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
from itertools import pairwise

import msgspec
import onnx_ir as ir
from onnx_ir import passes

from eecompile.compiler.graph.cuts import Group, grouped
from eecompile.errors import TraceError

ExitOutputs = Mapping[int, Sequence[ir.Value]]  # by depth, shallowest first


class Part(msgspec.Struct, frozen=True):
    """A part of a graph, by the names of its values.

    Attributes:
        exits: depths that need it, ascending.
        inputs: values that it reads: graph inputs, or outputs of other parts.
        outputs: values that it makes for other parts or as predictions.
        level: the cut by which it must have run; see :mod:`eecompile.compiler.graph.cuts`.
    """

    exits: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    level: int = 0


def signatures(graph: ir.Graph, outputs: ExitOutputs) -> dict[ir.Node, frozenset[int]]:
    """The exits that need each node of a sorted graph; nodes that none needs are left out."""
    needed: dict[ir.Value, set[int]] = {}
    for depth, values in outputs.items():
        for value in values:
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


def per_exit_parts(graph: ir.Graph, outputs: ExitOutputs) -> list[Part]:
    """One part per exit, each computing everything from the graph's inputs."""
    parts = []
    for depth, values in outputs.items():
        found = signatures(graph, {depth: values})
        reads = {read for node in found for read in _reads(node)} | set(values)
        inputs = tuple(_name(v) for v in graph.inputs if v in reads)
        parts.append(Part((depth,), inputs, tuple(map(_name, values))))
    return parts


def chained_parts(graph: ir.Graph, outputs: ExitOutputs, cuts: Sequence[int] = ()) -> list[Part]:
    """The segments, in an order in which they can run.

    Every node that an exit needs is in exactly one part, but for those that read weights
    only (a transposed weight): they go with whatever reads them. A prediction that no node
    makes (an input handed through) belongs to no part. Parts end at ``cuts``, too.
    """
    found = signatures(graph, outputs)
    predictions = {value for values in outputs.values() for value in values}
    constant = constant_nodes(graph) - {value.producer() for value in predictions}
    placed = grouped(graph, found, cuts)
    groups: dict[Group, list[ir.Node]] = {}
    for node in graph:
        if node in found and node not in constant:
            groups.setdefault(placed[node], []).append(node)
    parts = []
    # A part can only read from parts whose signature contains its own, at its level or before.
    for group in sorted(groups, key=lambda g: (-len(g.exits), sorted(g.exits), g.level)):
        members = set(groups[group])
        reads = dict.fromkeys(
            v
            for node in groups[group]
            for v in _reads(node)
            if v.producer() not in constant and not v.is_initializer()
        )
        made = dict.fromkeys(v for node in groups[group] for v in node.outputs)
        inputs = tuple(_name(v) for v in reads if v.producer() not in members)
        outside = (
            v
            for v in made
            if v in predictions
            or any(use.node in found and use.node not in members for use in v.uses())
        )
        names = tuple(_name(v) for v in outside)
        parts.append(Part(tuple(sorted(group.exits)), inputs, names, group.level))
    return parts


def constant_nodes(graph: ir.Graph) -> set[ir.Node | None]:
    """The nodes that compute from weights alone, the same whatever the inputs."""
    found: set[ir.Node | None] = set()
    for node in graph:
        if all(v.is_initializer() or v.producer() in found for v in _reads(node)):
            found.add(node)
    return found - {None}


def check_parts(graph: ir.Graph, outputs: ExitOutputs, parts: Sequence[Part]) -> None:
    """Pass when the parts, run in order, make every exit's outputs."""
    for depth, values in outputs.items():
        made = {_name(v) for v in graph.inputs}
        for part in parts:
            if depth not in part.exits:
                continue
            if missing := set(part.inputs) - made:
                raise passes.PostconditionError(f"exit {depth} reads {missing} too early")
            made.update(part.outputs)
        if not made.issuperset(map(_name, values)):
            raise passes.PostconditionError(f"no part makes exit {depth}")


def check_nested(graph: ir.Graph, outputs: ExitOutputs) -> None:
    """Pass when each exit shares a trunk with the next deeper one, which computes more.

    Raises:
        TraceError: they do not, so that no depth can be told from the graph.
    """
    found = signatures(graph, outputs)
    weighty = [exits for node, exits in found.items() if any(map(_is_trained, _reads(node)))]
    for shallow, deep in pairwise(outputs):
        both = sum(shallow in exits and deep in exits for exits in weighty)
        alone = {depth: sum(depth in exits for exits in weighty) for depth in (shallow, deep)}
        if not both or alone[deep] <= alone[shallow]:
            raise TraceError(
                found=f"exits {shallow} and {deep} that do not nest: they share {both} operators "
                f"with weights, of {alone[shallow]} and {alone[deep]}",
                expected="a deeper exit that goes on from where the shallower one left",
                remedy="return the exits from one pass, shallowest first; to switch between "
                "unrelated networks, export each to ONNX and list the files in network.files",
            )


def _is_trained(value: ir.Value) -> bool:
    """Whether a value is a weight, not a shape, an axis or a scalar."""
    tensor = value.const_value if value.is_initializer() else None
    return tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1


def extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """A model of the nodes between ``inputs`` and ``outputs``; weights are not copied.

    The weights keep the order of ``model``: onnx-ir gathers them in sets, whose order differs
    from one process to the next.
    """
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    for name in model.graph.initializers:
        if value := graph.initializers.pop(name, None):
            graph.initializers.add(value)
    return ir.Model(graph, ir_version=model.ir_version, producer_name="eecompile")


def _reads(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _name(value: ir.Value) -> str:
    assert value.name, "values of a traced graph are named"
    return value.name
