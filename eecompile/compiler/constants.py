"""Constants in a traced network, computed by torch before the network is converted to ONNX.

The exporter (torch 2.13) writes complex numbers, which ONNX does not have, as pairs of real ones,
for some operators only; rotary tables are made by more of them. And frequencies that torch has
computed are those of the trained network to the last bit, which matters where timesteps are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

_KEPT = (InputKind.BUFFER, InputKind.PARAMETER, InputKind.CONSTANT_TENSOR)
_LARGEST = 1 << 16  # numbers in a constant that is made of no other


def fold_constants(program: torch.export.ExportedProgram) -> None:
    """Compute what depends on no input, in place.

    It must come of complex numbers, or be small and of no weight: weights stay as they are.
    """
    nodes, values = list(program.graph.nodes), _constants(program)
    weights, changed = set(values), _changed(nodes)
    complex_ = {node for node in nodes if _is_complex(node)}
    for node in nodes:
        parents = node.all_input_nodes
        known = node not in changed and all(parent in values for parent in parents)
        if not known or not _is_pure(node):
            continue
        if any(parent in complex_ for parent in parents):
            complex_.add(node)
        elif node not in complex_ and not _is_small(node):
            continue
        if any(parent in weights for parent in parents):
            weights.add(node)
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)
    for node in nodes:
        value, inner = values.get(node), all(user in values for user in node.users)
        folded = node in complex_ or node not in weights
        if node.op == "call_function" and folded and not inner and isinstance(value, Tensor):
            _replace(program, node, value)
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.unsqueeze.default and _is_complex(node):
            _view(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _is_pure(node: Node) -> bool:
    target = node.target
    drawn = isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable
    )
    return node.op == "call_function" and not drawn


def _changed(nodes: Sequence[Node]) -> set[Node]:
    """What is written to in place, and what that is a view of."""
    found: set[Node] = set()
    for node in nodes:
        target, written = node.target, node
        while isinstance(target, torch._ops.OpOverload) and node.all_input_nodes:
            if not (target._schema.is_mutable if written is node else target.is_view):
                break
            written = written.all_input_nodes[0]
            found.add(written)
            target = written.target
    return found


def _is_small(node: Node) -> bool:
    value = node.meta.get("val")
    leaves = tree_leaves(value)
    return bool(leaves) and all(
        isinstance(leaf, Tensor)
        and all(isinstance(length, int) for length in leaf.shape)
        and leaf.numel() <= _LARGEST
        for leaf in leaves
    )


def _is_complex(node: Node) -> bool:
    leaves = tree_leaves(node.meta.get("val"))
    return any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in leaves)


def _view(node: Node) -> None:
    """Make an axis that is added a view, which the exporter converts for complex numbers, too."""
    shape = [length if isinstance(length, int) else -1 for length in node.meta["val"].shape]
    if shape.count(-1) <= 1:
        node.target, node.args = torch.ops.aten.view.default, (node.args[0], shape)


def _constants(program: torch.export.ExportedProgram) -> dict[Node, Any]:
    held = {**program.state_dict, **program.constants}
    named = {
        spec.arg.name: held[spec.target]
        for spec in program.graph_signature.input_specs
        if spec.kind in _KEPT and spec.target in held
    }
    return {node: named[node.name] for node in program.graph.nodes if node.name in named}


def _replace(program: torch.export.ExportedProgram, node: Node, value: Tensor) -> None:
    """Make the program take a constant where it computed ``node``."""
    specs, graph = program.graph_signature.input_specs, program.graph
    index = next(i for i, spec in enumerate(specs) if spec.kind == InputKind.USER_INPUT)
    first = [n for n in graph.nodes if n.op == "placeholder"][index]
    name = f"folded_{node.name}"
    with graph.inserting_before(first):
        made = graph.placeholder(name)
    made.target = made.name
    mode = detect_fake_mode([n.meta.get("val") for n in graph.nodes])
    value = value.detach().clone()
    made.meta["val"] = mode.from_tensor(value, static_shapes=True) if mode else value
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(made.name), name)
    specs.insert(index, spec)
    program.constants[name] = value
    node.replace_all_uses_with(made)
