"""Where the blocks of a network end in its graph.

A node whose outputs a block returns bears a mark, which says of which block; block 0 stands for
what goes into the first. From the marks, every node has a *level*: the first of the cuts by
which it must have run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from eecompile.errors import BackendError

MARK = "eecompile.blocks"
"""Key of a mark in a node's metadata: pairs such as ``6:0``, of block 6 the first tensor."""
HEAD = 1 << 30
"""Level of what runs after the last cut."""


class Group(NamedTuple):
    """What the nodes of a segment have in common: the exits that need them, and their level."""

    exits: frozenset[int]
    level: int = 0


def mark(block: int, index: int, value: ir.Value) -> None:
    """Say that ``value`` is tensor ``index`` of what a block returns; inputs cannot be marked."""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is not None:
        known = node.metadata_props.get(MARK, "")
        node.metadata_props[MARK] = f"{known} {block}:{index}".strip()


def carry_marks(before: ir.Graph, after: ir.Graph) -> None:
    """Mark the nodes that bear the names of marked ones in another form of the graph.

    Raises:
        BackendError: there are not as many.
    """
    known = {node.name: node.metadata_props[MARK] for node in before if MARK in node.metadata_props}
    named = [node for node in after if node.name in known]
    if len(named) != len(known):
        raise BackendError(
            found=f"a converted graph with {len(named)} of the {len(known)} ends of blocks",
            expected="all of them",
            remedy="install the version of nvidia-modelopt in constraints.txt, or export without "
            "cuts: network.cuts = []",
        )
    for node in named:
        node.metadata_props[MARK] = known[node.name]


def marks(node: ir.Node) -> list[tuple[int, int]]:
    """The blocks that return outputs of a node, each with the tensor's index."""
    pairs = (pair.split(":") for pair in node.metadata_props.get(MARK, "").split())
    return [(int(block), int(index)) for block, index in pairs]


def levels(graph: ir.Graph, cuts: Sequence[int]) -> dict[ir.Node, int]:
    """The first of the cuts by which each node must have run; :data:`HEAD` for the others."""
    found: dict[ir.Node, int] = {}
    for node in reversed(list(graph)):
        own = min((block for block, _ in marks(node)), default=HEAD)
        level = next((cut for cut in cuts if own <= cut), HEAD)
        readers = (use.node for value in node.outputs for use in value.uses())
        found[node] = min([level, *(found.get(reader, HEAD) for reader in readers)])
    return found


def depends_on_state(graph: ir.Graph) -> set[ir.Node]:
    """The nodes whose results change with ``x``, of which a shape does not."""
    found: set[ir.Node] = set()
    for node in graph:
        values = [value for value in node.inputs if value is not None]
        if node.op_type in ("Shape", "Size") and values[0].is_graph_input():
            continue
        if any(value.producer() in found or value.name == "x" for value in values):
            found.add(node)
    return found


def grouped(
    graph: ir.Graph, needed: Mapping[ir.Node, frozenset[int]], cuts: Sequence[int]
) -> dict[ir.Node, Group]:
    """The group of each node that an exit needs, by the exits in ``needed``.

    What does not depend on the state, such as an embedding of the timestep, belongs to what reads
    it, or, where several groups do, to the first of all: whatever is skipped, it is there.
    """
    if not cuts:
        return {node: Group(exits) for node, exits in needed.items()}
    level, dependent = levels(graph, cuts), depends_on_state(graph)
    first = Group(frozenset().union(*needed.values()), cuts[0])
    found: dict[ir.Node, Group] = {}
    for node in reversed(list(graph)):
        if node not in needed:
            continue
        found[node] = Group(needed[node], level[node])
        readers = {found[use.node] for v in node.outputs for use in v.uses() if use.node in found}
        if node not in dependent and readers:
            found[node] = readers.pop() if len(readers) == 1 else first
    return found


def separate_heads(
    graph: ir.Graph, needed: Mapping[ir.Node, frozenset[int]], cuts: Sequence[int]
) -> None:
    """Give exits nodes of their own for what they share with blocks. In place.

    What follows a cut may be the same in an exit and in the next block, such as a normalisation,
    which would be a segment of its own: exits that do not need the block get copies, for which no
    evaluation computes more. Where a block returns a prediction, the exit hands it on.
    """
    if not cuts:
        return
    level, exits = levels(graph, cuts), dict(needed)
    for index, value in enumerate(graph.outputs):
        producer = value.producer()
        if producer is None or level[producer] == HEAD:
            continue
        node = ir.Node("", "Identity", [value])
        made = node.outputs[0]
        made.type, made.shape, made.name = value.type, value.shape, value.name
        value.name = f"{value.name}_block"
        graph.append(node)
        graph.outputs[index] = made
        level[node], exits[node] = HEAD, exits[producer]
    for node in reversed(list(graph)):
        if node not in needed or level[node] == HEAD:
            continue
        uses = [use for value in node.outputs for use in value.uses() if use.node in exits]
        apart = [use for use in uses if max(exits[use.node]) < level[node]]
        if not apart:
            continue
        copy = ir.Node(
            node.domain,
            node.op_type,
            node.inputs,
            node.attributes.values(),
            overload=node.overload,
            num_outputs=len(node.outputs),
        )
        for mine, theirs in zip(copy.outputs, node.outputs, strict=True):
            mine.name, mine.type, mine.shape = f"{theirs.name}_exit", theirs.type, theirs.shape
        graph.insert_after(node, copy)
        readers = {(use.node, use.idx) for use in apart}
        for reader, index in readers:
            read = reader.inputs[index]
            assert read is not None
            reader.replace_input_with(index, copy.outputs[read.index() or 0])
        exits[copy] = frozenset().union(*(exits[reader] for reader, _ in readers))
