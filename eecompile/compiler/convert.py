"""Convert a torch module, traced by torch.export, to one ONNX graph."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnxscript import opset23
from torch import Tensor, nn
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from eecompile.compiler.constants import fold_constants
from eecompile.compiler.graph.operators import check_operators
from eecompile.compiler.graph.optimise import optimise
from eecompile.compiler.refusals import explained
from eecompile.interrupt import check
from eecompile.programs.interface import Resizable

OPSET = 23  # the first with an Attention operator
_LARGEST_BATCH = 2**16


class Traced(NamedTuple):
    """A graph, and the program in torch's operators that it was converted from."""

    model: ir.Model
    program: torch.export.ExportedProgram


def converted(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    shapes: Mapping[str, dict[int, Any]],
    outputs: Sequence[str],
    free: Resizable | None,
    source: str,
) -> Traced:
    """One graph of a module that takes ``inputs`` by position and returns a tuple of tensors.

    Args:
        module: in evaluation mode.
        inputs: to trace with, by the names that the graph has for them.
        shapes: symbolic axes of each input.
        outputs: the graph's names for what the module returns.
        free: symbolic axes beside the batch, for messages.
        source: what the module is, for messages.

    Raises:
        TraceError: it cannot be traced, or holds an operator that cannot be compiled.
    """
    program = None
    try:
        with _quiet():
            program = _program(module, inputs, shapes)
            fold_constants(program)
            found = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(tuple(shapes.values()),),
                input_names=list(inputs),
                output_names=list(outputs),
                custom_translation_table={torch.ops.aten.squeeze.dim: _squeeze},
                optimize=False,
                verbose=False,
            )
            assert found is not None
            assert found.exported_program is not None
            model: ir.Model = found.model
            optimise(model)
    except (Exception, SystemExit) as error:  # torch.export raises many kinds
        check()
        raise explained(error, free, program) from error
    check_operators(model, source)
    return Traced(model, found.exported_program)


def batch_first(names: Iterable[str]) -> dict[str, dict[int, Any]]:
    """Symbolic axes of inputs that have the batch first."""
    # From 2, or networks that ask whether the batch is 1 are refused; both are verified.
    batch = torch.export.Dim("batch", min=2, max=_LARGEST_BATCH)
    return {name: {0: batch} for name in names}


def free_axes(free: Resizable | None) -> dict[int, Any]:
    """Symbolic axes of a batch of samples, beside the batch, by index."""
    if free is None:
        return {}
    low, high = free.min // free.multiple, free.max // free.multiple
    dim = torch.export.Dim
    return {axis + 1: free.multiple * dim(f"axis{axis}", min=low, max=high) for axis in free.axes}


class FourAxes(TorchFunctionMode):
    """Attention without an axis of heads, as attention with one head.

    The exporter (onnxscript 0.7) takes queries of four axes only.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not scaled_dot_product_attention:
            return function(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask")
        given = {**dict(zip((*names, "dropout_p", "is_causal"), args, strict=False)), **kwargs}
        if given["query"].ndim != 3:
            return function(*args, **kwargs)
        for name in names:
            if isinstance(given.get(name), Tensor) and given[name].ndim == 3:
                given[name] = given[name].unsqueeze(1)
        return function(**given).squeeze(1)


def _program(
    module: nn.Module, inputs: Mapping[str, Tensor], by_input: Mapping[str, dict[int, Any]]
) -> torch.export.ExportedProgram:
    shapes: Any = (tuple(by_input.values()),)

    def exported(dynamic_shapes: Any) -> torch.export.ExportedProgram:
        return torch.export.export(
            module,
            tuple(inputs.values()),
            dynamic_shapes=dynamic_shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )

    # As torch.onnx does, so that a batch of one is no case of its own.
    config: Any = torch.fx.experimental._config
    with config.patch(backed_size_oblivious=True):
        try:
            return exported(shapes)
        except torch._dynamo.exc.UserError as error:
            # Diffusers' U-Nets lay batches from 64 out anew: torch asks for a batch below it.
            try:
                narrower = refine_dynamic_shapes_from_suggested_fixes(error.msg, shapes)
            except Exception:  # it finds no fix to suggest, or none that it can read
                raise error from None
            return exported(narrower)


def _squeeze(self: Any, dim: int) -> Any:
    """Torch's squeeze: an axis that is longer than one stays.

    The exporter's own translation (onnxscript 0.7) squeezes whatever the length.
    """
    length = self.shape[dim] if self.shape else 1
    if isinstance(length, int) and length != 1:
        return opset23.Identity(self)
    squeeze: Any = opset23.Squeeze  # typed for arrays, called with values of a graph
    return squeeze(self, [dim])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, and without the graph that it prints where it fails."""
    names = ("torch.onnx", "torch.fx.experimental.symbolic_shapes")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
        sys.stderr.write(printed.getvalue())  # the network's own
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
