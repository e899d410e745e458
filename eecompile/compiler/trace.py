"""Trace a multi-exit network to one ONNX graph with all exits as outputs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor

from eecompile.compiler.names import output_name
from eecompile.compiler.verify import random_inputs
from eecompile.errors import TraceError
from eecompile.networks.base import MultiExitNetwork
from eecompile.runtime.interface import Interface

__all__ = ["OPSET", "graph_from_network"]

OPSET = 23  # the first with an Attention operator


def graph_from_network(network: MultiExitNetwork, interface: Interface) -> ir.Model:
    """One graph whose inputs are ``x``, ``t`` and the conditions, with an output an exit.

    The batch axis is symbolic. Common subexpressions are merged, so what the exits
    share is one node; metadata of the trace is removed.

    Raises:
        TraceError: the network's outputs do not fit its exits, or it cannot be traced.
    """
    arrays = random_inputs(interface, batch=2, timestep=interface.process.timesteps / 2, seed=0)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    outputs = [output_name(depth) for depth in interface.exits]
    _check_outputs(network, inputs, len(outputs))
    batch = torch.export.Dim("batch", min=1, max=2**16)
    try:
        with _quiet():
            traced = torch.onnx.export(
                network,  # type: ignore[arg-type]
                kwargs=inputs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={name: {0: batch} for name in inputs},
                input_names=list(inputs),
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # torch.export raises many kinds
        raise TraceError(
            found=f"a network that torch.onnx.export cannot trace ({_first_line(error)})",
            expected="a module without data-dependent control flow, for any batch size",
            remedy="make its forward traceable by torch.export",
        ) from error
    if traced is None:
        raise TraceError(
            found="no graph from torch.onnx.export", expected="one", remedy="report this"
        )
    model: ir.Model = traced.model
    for transform in (
        common.ClearMetadataAndDocStringPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=False),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        transform(model)
    _check_graph(model, list(inputs), outputs)
    return model


def _check_outputs(network: MultiExitNetwork, inputs: dict[str, Tensor], count: int) -> None:
    with torch.no_grad():
        predictions = network(**inputs)
    shapes = [tuple(p.shape) for p in predictions] if isinstance(predictions, tuple) else None
    expected = [tuple(inputs["x"].shape)] * count
    if shapes != expected:
        raise TraceError(
            found=f"outputs of shapes {shapes or type(predictions).__name__}",
            expected=f"a tuple of {count} predictions, one an exit, of shape {expected[0]}",
            remedy="check the recipe's exits and state.shape against the network",
        )


def _check_graph(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    found = [value.name for value in model.graph.inputs], [v.name for v in model.graph.outputs]
    opset = model.opset_imports.get("")
    values = [*model.graph.inputs, *model.graph.outputs]
    flow = [node.op_type for node in model.graph if _has_subgraph(node)]
    if flow:
        raise TraceError(
            found=f"control flow in the graph ({', '.join(sorted(set(flow)))})",
            expected="a network that computes the same whatever its inputs hold",
            remedy="replace branches and loops over data in the network's forward",
        )
    fixed = [v.name for v in values if v.shape is None or isinstance(v.shape[0], int)]
    if fixed:
        raise TraceError(
            found=f"a graph in which the batch size of {fixed} is fixed",
            expected="any batch size",
            remedy="derive sizes in the network's forward from its inputs, for example with -1",
        )
    if found != (list(inputs), list(outputs)) or opset != OPSET:
        raise TraceError(
            found=f"a graph of opset {opset} with inputs {found[0]} and outputs {found[1]}",
            expected=f"opset {OPSET}, inputs {list(inputs)}, outputs {list(outputs)}",
            remedy="use every input in the network's forward, and install the pinned torch",
        )


def _has_subgraph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about packages that the network does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
