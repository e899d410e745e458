"""Trace a multi-exit network to one ONNX graph with all exits as outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from eecompile.compiler.convert import (
    OPSET,
    FourAxes,
    Traced,
    batch_first,
    converted,
    free_axes,
)
from eecompile.compiler.graph.clean import clean
from eecompile.compiler.graph.cuts import mark
from eecompile.compiler.graph.masks import ExpandMasks
from eecompile.compiler.graph.numbering import NumberValues
from eecompile.compiler.graph.operators import place_of
from eecompile.compiler.hints import remedy_of_call
from eecompile.compiler.refusals import one_size, place_in_network
from eecompile.compiler.verify import random_inputs, traced_shape
from eecompile.errors import EecompileError, TraceError, summary
from eecompile.interrupt import check
from eecompile.networks.base import MultiExitNetwork
from eecompile.programs.interface import Interface
from eecompile.store.manifest import output_names


class Exits(nn.Module):
    """A network's outputs in the interface's terms: a flat tuple, exit by exit.

    Where the variance is learned, an exit's output is cut along its first axis after
    the batch into prediction and variance.
    """

    def __init__(self, network: MultiExitNetwork, interface: Interface) -> None:
        super().__init__()
        self.network = network
        self.names = ("x", "t", *interface.conditions)
        self.parts = len(interface.outputs)
        self.blocks = BlockRecorder(blocks_of(network))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All exits' outputs, in the order of the exits and of the interface's outputs.

        What the blocks return follows, in the order of :attr:`BlockRecorder.found`.

        Args:
            inputs: ``x``, ``t``, and the conditions in the interface's order.
        """
        for value in inputs:  # else each input's batch would be a size of its own
            torch._check(value.shape[0] == inputs[0].shape[0])  # type: ignore[no-untyped-call]
        with FourAxes(), self.blocks.recording():
            predictions = self.network(**dict(zip(self.names, inputs, strict=True)))
        returned = self.blocks.found.values()
        if self.parts == 1:
            return (*predictions, *returned)
        parts = (part for whole in predictions for part in whole.chunk(self.parts, dim=1))
        return (*parts, *returned)


def blocks_of(network: MultiExitNetwork) -> list[nn.Module]:
    """A network's blocks, in the order in which they run; none where it does not say."""
    blocks = getattr(network, "blocks", ())
    listed = list(blocks) if isinstance(blocks, Sequence | nn.ModuleList | nn.Sequential) else []
    known = len(listed) == network.exits[-1] and all(isinstance(b, nn.Module) for b in listed)
    return listed if known else []


class BlockRecorder:
    """Takes down what blocks return, the first time that each runs.

    Attributes:
        found: by block, from 1, and index within what it returned; block 0 stands for what goes
            into block 1.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self.found: dict[tuple[int, int], Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Take down what is returned within."""
        self.found = {}
        handles = [
            block.register_forward_hook(self._hook(index), with_kwargs=True)
            for index, block in enumerate(self._blocks, 1)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, block: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if any(known == block for known, _ in self.found):
                return
            if block == 1:
                self._add(0, (args, kwargs))
            self._add(block, output)

        return hook

    def _add(self, block: int, tensors: Any) -> None:
        for index, value in enumerate(tree_leaves(tensors)):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.found[block, index] = value.clone()


def graph_from_network(network: MultiExitNetwork, interface: Interface) -> ir.Model:
    """The graph alone; see :func:`traced_network`."""
    return traced_network(network, interface).model


def traced_network(network: MultiExitNetwork, interface: Interface) -> Traced:
    """One graph whose inputs are ``x``, ``t`` and the conditions, with the exits' outputs.

    The batch axis is symbolic, as are the axes of a sample that the state leaves free.
    What the exits share is one node.

    Raises:
        TraceError: the network's outputs do not fit its exits, or it cannot be traced.
    """
    timestep = interface.process.timesteps / 2
    arrays = random_inputs(interface, 2, timestep, seed=0, shape=traced_shape(interface.state))
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    exits = Exits(network, interface).eval()
    outputs = [name for depth in interface.exits for name in output_names(interface, depth)]
    _check_outputs(network, inputs, interface)
    with torch.no_grad():
        exits(*inputs.values())
    returned = {f"block_{block}_{index}": (block, index) for block, index in exits.blocks.found}
    free = interface.state.resizable
    shapes = _dynamic_shapes(inputs, interface)
    traced = converted(exits, inputs, shapes, [*outputs, *returned], free, "the network")
    model = traced.model
    _check_free_axes(model, interface)
    clean(model)
    ExpandMasks()(model)
    _plain_names(model)
    NumberValues()(model)
    _mark_blocks(model, outputs, tuple(returned.values()))
    _check_graph(model, list(inputs), outputs)
    return traced


def _mark_blocks(
    model: ir.Model, outputs: Sequence[str], returned: Sequence[tuple[int, int]]
) -> None:
    """Mark what makes the outputs behind the predictions, which are then outputs no more.

    They go by their places: one value may be several of them.
    """
    values, count = list(model.graph.outputs), len(outputs)
    for block, value in zip(returned, values[count:], strict=True):
        mark(*block, value)
    for name, value in zip(outputs, values, strict=False):
        value.name = name
    model.graph.outputs[:] = values[:count]
    common.RemoveUnusedNodesPass()(model)


def _plain_names(model: ir.Model) -> None:
    """Name the weights as the network does, not as what wraps it."""
    made = [value for node in model.graph for value in node.outputs]
    taken = {value.name for value in (*model.graph.inputs, *made)} | set(model.graph.initializers)
    for value in list(model.graph.initializers.values()):
        name = (value.name or "").removeprefix("network.").removeprefix("network.")
        if name not in taken:
            value.name = name
            taken.add(name)


def _dynamic_shapes(inputs: Mapping[str, Tensor], interface: Interface) -> dict[str, Any]:
    shapes = batch_first(inputs)
    shapes["x"] |= free_axes(interface.state.resizable)
    return shapes


def _check_outputs(
    network: MultiExitNetwork, inputs: dict[str, Tensor], interface: Interface
) -> None:
    try:
        with torch.no_grad():
            predictions = network(**inputs)
    except EecompileError:
        raise
    except (Exception, SystemExit) as error:  # the network's own
        check()
        raise TraceError(
            found=f"a network that fails on {_shapes(inputs)} ({summary(error)})"
            f"{place_in_network(error)}",
            expected="a prediction per exit from these inputs",
            remedy=remedy_of_call(
                error, "check state, conditions and network.arguments against its forward"
            ),
        ) from error
    shapes = (
        [tuple(p.shape) for p in predictions]
        if isinstance(predictions, tuple) and all(isinstance(p, Tensor) for p in predictions)
        else None
    )
    batch, channels, *rest = inputs["x"].shape
    one = (batch, channels * len(interface.outputs), *rest)
    expected = [one] * len(interface.exits)
    if shapes != expected:
        learned = ", twice the channels for a learned variance" * (len(interface.outputs) - 1)
        raise TraceError(
            found=f"outputs of shapes {shapes or type(predictions).__name__}",
            expected=f"a tuple of {len(expected)} predictions, one an exit, shaped {one}{learned}",
            remedy="check exits, state.shape and process.variance against the network",
        )


def _check_graph(model: ir.Model, inputs: list[str], outputs: list[str]) -> None:
    found = [value.name for value in model.graph.inputs], [v.name for v in model.graph.outputs]
    opset = model.opset_imports.get("")
    values = [*model.graph.inputs, *model.graph.outputs]
    fixed = [v.name for v in values if v.shape is None or isinstance(v.shape[0], int)]
    if fixed:
        raise TraceError(
            found=f"a graph in which the batch size of {fixed} is fixed",
            expected="any batch size",
            remedy="derive sizes in the network's forward from its inputs, for example with -1",
        )
    if found != (inputs, outputs) or opset != OPSET:
        raise TraceError(
            found=f"a graph of opset {opset} with inputs {found[0]} and outputs {found[1]}",
            expected=f"opset {OPSET}, inputs {inputs}, outputs {outputs}",
            remedy="use every input in the network's forward, and install the pinned torch",
        )


def _check_free_axes(model: ir.Model, interface: Interface) -> None:
    """Pass when the outputs' free axes follow the input's.

    The exporter may settle for a network of one size without an error.
    """
    free = interface.state.resizable
    for axis in free.axes if free else ():
        name = f"axis{axis}"
        predictions = model.graph.outputs[: len(interface.exits) * len(interface.outputs)]
        if all(value.shape and name in str(value.shape[axis + 1]) for value in predictions):
            continue
        for node in model.graph:
            reads = any(name in str(value.shape) for value in node.inputs if value is not None)
            if reads and not any(name in str(value.shape) for value in node.outputs):
                raise one_size(f" ({node.op_type}{place_of(node)})", free)
        raise one_size("", free)


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
