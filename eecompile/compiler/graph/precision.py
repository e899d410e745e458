"""Lower the precision of a graph: half precision where it is safe, as the graph's own types.

TensorRT 11 and TensorRT-RTX take strongly typed networks: the precision is what the graph
says. NVIDIA ModelOpt's AutoCast decides node by node. It is applied once, to the graph of
all exits joined, before that graph is cut: a node that exits share has one precision.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from eecompile.arrays import Inputs
from eecompile.compiler.graph.clean import clean
from eecompile.compiler.graph.cuts import carry_marks
from eecompile.compiler.graph.numbering import NumberValues
from eecompile.compiler.sessions import run_session, session_from_graph
from eecompile.compiler.verify import calibration_inputs
from eecompile.errors import BackendError
from eecompile.programs.interface import Interface
from eecompile.store.target import Target
from eecompile.system import check_docstrings


def lowered(
    model: ir.Model,
    interface: Interface,
    target: Target,
    work: Path,
    calibration: Path | None = None,
) -> ir.Model:
    """The graph of all exits in the target's precision; its inputs and outputs stay FP32.

    ``work`` is for intermediate files. Ranges of values are taken from the inputs in the .npz
    ``calibration``, or from noise where there is no such file.

    Raises:
        BackendError: nvidia-modelopt is missing, or a pattern matches nothing.
    """
    check_docstrings("nvidia-modelopt")
    try:
        with _quiet():
            from modelopt.onnx.autocast import convert_to_mixed_precision
    except ImportError as error:
        raise BackendError(
            found=f"no usable package nvidia-modelopt ({str(error).splitlines()[0]})",
            expected="it, to lower the precision of a graph",
            remedy="pip install 'eecompile[precision]'",
        ) from error
    _name_nodes(model)
    keep = kept_nodes(model, target.keep_fp32)
    plain, data = work / "plain.onnx", calibration
    ir.save(model, plain, external_data="plain.data")
    if data is None:
        data = work / "noise.npz"
        np.savez(data, allow_pickle=False, **calibration_inputs(interface))
    with _quiet():
        converted = convert_to_mixed_precision(
            str(plain),
            low_precision_type=target.precision,
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in keep],
            keep_io_types=True,
            calibration_data=str(data),
        )
    # Through a file, so that weights are mapped from there on.
    path = work / "lowered.onnx"
    onnx.save(converted, path, save_as_external_data=True, location="lowered.data")
    made = ir.load(path)
    clean(made)
    _check_signature(model, made)
    carry_marks(model.graph, made.graph)
    NumberValues()(made)
    return made


def kept_nodes(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """Names of the nodes that stay FP32: the timestep's embedding, and what the target says.

    The embedding is whatever leads to a sine or cosine: its argument, t times a frequency,
    is off by up to a quarter radian in FP16 at t near 1000. A pattern is a regular
    expression that is searched for in a node's operator, and in the names of its weights.

    Raises:
        BackendError: a pattern matches no node.
    """
    keep: dict[str, None] = {}
    pending = [node for node in model.graph if node.op_type in ("Sin", "Cos")]
    while pending:
        node = pending.pop()
        if node.name and node.name not in keep:
            keep[node.name] = None
            producers = (value.producer() for value in node.inputs if value is not None)
            pending += [producer for producer in producers if producer is not None]
    for pattern in patterns:
        found = [node.name for node in model.graph if re.search(pattern, _described(node))]
        if not found:
            raise BackendError(
                found=f"keep_fp32 = {pattern!r} in the target, which matches no node",
                expected="part of an operator's or a weight's name",
                remedy="fix or remove it",
            )
        keep |= dict.fromkeys(name for name in found if name)
    return list(keep)


def first_non_finite(path: Path, points: Sequence[Inputs], work: Path) -> str:
    """The first tensor of a graph that is not finite at one of the points, in words.

    ``work`` is for the graph with all its tensors as outputs.
    """
    model = ir.load(path)
    floating = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    made = {
        value.name or "": node
        for node in model.graph
        for value in node.outputs
        if value.dtype in floating
    }
    outputs = {value.name for value in model.graph.outputs}
    values = [v for node in made.values() for v in node.outputs if v.name not in outputs]
    model.graph.outputs.extend(dict.fromkeys(values))
    shown = work / "shown.onnx"
    ir.save(model, shown, external_data="shown.data")
    session = session_from_graph(shown)
    for point in points:
        for name, value in zip(made, run_session(session, point, list(made)), strict=True):
            if not np.isfinite(value).all():
                node = made[name]
                weights = [v.name for v in node.inputs if v is not None and v.is_initializer()]
                after = f" of weight {weights[0]!r}" if weights else ""
                return f"the output of {node.op_type}{after} (tensor {name!r})"
    return "an output of the whole"


def _described(node: ir.Node) -> str:
    weights = (value.name for value in node.inputs if value is not None and value.is_initializer())
    return " ".join([node.op_type, *(name for name in weights if name)])


def _name_nodes(model: ir.Model) -> None:
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"


def _check_signature(before: ir.Model, after: ir.Model) -> None:
    """Pass when the tool kept the graph's inputs and outputs, by name and type."""
    one, other = (
        [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
        for model in (before, after)
    )
    if one != other:
        raise BackendError(
            found=f"a converted graph with inputs and outputs {other}",
            expected=f"{one}",
            remedy="install the version of nvidia-modelopt in constraints.txt",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tool's log lines; it reports through exceptions what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
