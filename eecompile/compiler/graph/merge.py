"""Join graphs, one per exit, into one graph with all exits as outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from eecompile.compiler.graph.numbering import NumberValues
from eecompile.compiler.weights import content_key, load_graph
from eecompile.errors import BundleError, EecompileError, one_line, summary
from eecompile.programs.interface import Interface
from eecompile.store.manifest import exit_graph_name, output_names


def exit_outputs(model: ir.Model, interface: Interface) -> dict[int, list[ir.Value]]:
    """What each exit gives, by depth, in a graph with all exits as outputs.

    Raises:
        BundleError: an output is missing.
    """
    values = {value.name: value for value in model.graph.outputs}
    wanted = [name for depth in interface.exits for name in output_names(interface, depth)]
    if missing := sorted(set(wanted) - set(values)):
        raise BundleError(
            found=f"graphs with the outputs {list(values)}",
            expected=f"{missing[0]!r} among them",
            remedy="export the bundle again",
        )
    return {
        depth: [values[name] for name in output_names(interface, depth)]
        for depth in interface.exits
    }


def merged_exits(folder: Path, exits: Sequence[int]) -> ir.Model:
    """The graph of all exits of a bundle, whose outputs keep their names.

    Raises:
        BundleError: the graphs are malformed, or do not fit together.
    """
    names = [exit_graph_name(depth) for depth in exits]
    try:
        model = joined([(name, load_graph(folder, name)) for name in names])
        NumberValues(_place_key)(model)
        ir.to_proto(model)  # attributes of no type can be read, but not written
    except EecompileError:
        raise
    except Exception as error:  # onnx-ir's, of graphs that export does not write
        raise BundleError(
            found=f"graphs in {folder} that cannot be joined ({one_line(summary(error))})",
            expected="the graphs that eecompile export wrote",
            remedy="export the bundle again",
        ) from error
    return model


def joined(models: Sequence[tuple[str, ir.Model]]) -> ir.Model:
    """One model from several that take the same inputs; the outputs follow one another.

    Nodes and weights are taken over, not copied, and none is merged with another: that is
    what :class:`eecompile.compiler.graph.numbering.NumberValues` does.

    Args:
        models: each with its name for messages; empty afterwards. Their outputs have
            distinct names.

    Raises:
        BundleError: the models' inputs or opsets differ.
    """
    first = models[0][1]
    expected = _signature(first)
    inputs = list(first.graph.inputs)
    outputs: list[ir.Value] = []
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []
    opsets = dict(first.graph.opset_imports)
    for name, model in models:
        if _signature(model) != expected:
            raise BundleError(
                found=f"{name} with {_signature(model)}",
                expected=f"{expected}, as in {models[0][0]}",
                remedy="export all exits in the same way, with the same inputs",
            )
        graph = model.graph
        renamed = dict(zip(graph.inputs, inputs, strict=True))
        outputs += [renamed.get(value, value) for value in graph.outputs]
        graph.outputs.clear()
        for value, ours in renamed.items():
            if value is not ours:
                ir.convenience.replace_all_uses_with(value, ours)
        taken = list(graph)
        graph.remove(taken)
        nodes += taken
        for value in list(graph.initializers.values()):
            del graph.initializers[value.name or ""]
            weights.append(value)
    first.graph.inputs.clear()
    _rename(inputs, nodes, weights, outputs)
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=weights, opset_imports=opsets, name="exits"
    )
    return ir.Model(graph, ir_version=first.ir_version, producer_name="eecompile")


def _rename(
    inputs: list[ir.Value], nodes: list[ir.Node], weights: list[ir.Value], outputs: list[ir.Value]
) -> None:
    """Names that are distinct over all models; inputs and outputs keep theirs."""
    kept, taken = set(outputs), {value.name for value in (*inputs, *outputs)}
    for index, value in enumerate(weights):
        if value.name in taken:
            value.name = f"{value.name}#{index}"
        taken.add(value.name)
    for index, node in enumerate(nodes):
        node.name = f"n{index}"
        for position, value in enumerate(node.outputs):
            if value not in kept:
                name = f"v{index}" + (f".{position}" if position else "")
                value.name = f"{name}#" if name in taken else name


def _signature(model: ir.Model) -> str:
    inputs = ", ".join(
        f"{value.name} {value.dtype and value.dtype.name}[{', '.join(map(str, value.shape or ()))}]"
        for value in model.graph.inputs
    )
    opsets = ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in model.opset_imports.items())
    return f"inputs {inputs}; opset {opsets}"


def _place_key(tensor: ir.TensorProtocol) -> str:
    """By its place in the bundle's weights file, which holds every content once."""
    if isinstance(tensor, ir.ExternalTensor):
        return f"{tensor.offset} {tensor.dtype.name} {list(tensor.shape)}"
    return content_key(tensor)
