"""Ready-made ONNX files, one per exit, in the form of a traced network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common

from eecompile.arrays import Array, Inputs
from eecompile.compiler.graph.clean import clean
from eecompile.compiler.graph.merge import joined
from eecompile.compiler.graph.numbering import NumberValues
from eecompile.compiler.graph.operators import check_operators
from eecompile.compiler.sessions import run_session, session_from_graph
from eecompile.compiler.verify import Evaluate, Outputs
from eecompile.errors import EecompileError, TraceError
from eecompile.programs.interface import Interface
from eecompile.recipe import NetworkRecipe
from eecompile.store.files import is_file
from eecompile.store.manifest import output_names

_NUMBERS: dict[str, type[np.generic]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_TYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}


def graph_from_files(recipe: NetworkRecipe, folder: Path, interface: Interface) -> ir.Model:
    """One graph of all files, whose inputs are ``x``, ``t`` and the conditions.

    What the files share, by content, is one node or one weight; they may share nothing.
    A timestep that a file takes as integers is converted in the graph. The files are relative to
    ``folder``.

    Raises:
        TraceError: a file is missing, no ONNX model, has other inputs or outputs than
            the interface, or an operator that cannot be compiled.
    """
    models = []
    for depth, name in zip(interface.exits, recipe.files, strict=True):
        model = _load(folder / name)
        check_operators(model, name)
        _check_weights(model, name)
        _fit_inputs(model, name, recipe.arguments, interface)
        _fit_outputs(model, name, output_names(interface, depth), interface)
        clean(model)
        models.append((name, model))
    _check_opsets(models)
    model = joined(models)
    NumberValues()(model)
    common.ShapeInferencePass(strict_mode=False)(model)  # segments' inputs need types
    return model


def evaluate_files(recipe: NetworkRecipe, folder: Path, interface: Interface) -> Evaluate:
    """The files as they are, in ONNX Runtime: what the bundle is verified against."""
    sessions = [session_from_graph(folder / name) for name in recipe.files]

    def evaluate(point: Inputs) -> Outputs:
        return {
            depth: _run(session, recipe.arguments, point, len(interface.outputs))
            for depth, session in zip(interface.exits, sessions, strict=True)
        }

    return evaluate


def _run(
    session: onnxruntime.InferenceSession, names: Mapping[str, str], point: Inputs, parts: int
) -> Sequence[Array]:
    feeds = {names.get(name, name): value for name, value in point.items()}
    wanted = {value.name: value.type for value in session.get_inputs()}
    given = {
        name: feeds[name].astype(_NUMBERS.get(kind, np.float32)) for name, kind in wanted.items()
    }
    results = run_session(session, given, [value.name for value in session.get_outputs()])
    return np.split(results[0], parts, axis=1) if len(results) < parts else results[:parts]


def _load(path: Path) -> ir.Model:
    if not is_file(path):
        raise TraceError(
            found=f"no ONNX file at {path}",
            expected="the files that network.files names, relative to the recipe",
            remedy="fix the path",
        )
    try:
        onnx.checker.check_model(path)
        model = ir.load(path)
        common.InlinePass()(model)  # operators that the file defines by others
        _check_data(model, path)
        return model
    except EecompileError:
        raise
    except Exception as error:  # protobuf, onnx and onnx-ir raise several kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TraceError(
            found=f"{path}, which is no valid ONNX model ({lines[0]})",
            expected="an ONNX file, with its external data beside it",
            remedy="export it again, or copy its data file too",
        ) from error


def external_files(path: Path) -> list[Path]:
    """The files beside an ONNX model that hold its weights."""
    model = onnx.load(path, load_external_data=False)
    places = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path.parent / place for place in sorted(places)]


def _check_data(model: ir.Model, path: Path) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            if tensor is not None:
                tensor.numpy()  # raises where there are not as many values as the shape says
            continue
        place = path.parent / tensor.location
        size, wanted = place.stat().st_size, (tensor.offset or 0) + tensor.nbytes
        if size < wanted:
            raise TraceError(
                found=f"{place}, which has {size} bytes",
                expected=f"at least {wanted}, for weight {value.name!r} of {path.name}",
                remedy="copy it again: it is cut off, or belongs to another model",
            )


def _check_weights(model: ir.Model, name: str) -> None:
    for value in model.graph.initializers.values():
        if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            raise TraceError(
                found=f"weight {value.name!r} of type {value.dtype.name} in {name}",
                expected="a network in float32: the target chooses the precision",
                remedy="export it in float32",
            )


def _fit_inputs(
    model: ir.Model, name: str, arguments: Mapping[str, str], interface: Interface
) -> None:
    """Rename and convert the inputs to ours, in our order."""
    graph = model.graph
    shapes: dict[str, tuple[int, ...]] = {"x": interface.state.shape, "t": ()}
    shapes |= {key: spec.shape for key, spec in interface.conditions.items()}
    kinds = {key: spec.dtype for key, spec in interface.conditions.items()}
    found = {value.name: value for value in graph.inputs if not value.is_initializer()}
    wanted = {key: arguments.get(key, key) for key in shapes}
    if set(found) != set(wanted.values()):
        raise TraceError(
            found=f"inputs {sorted(map(str, found))} of {name}",
            expected=f"inputs {sorted(wanted.values())}",
            remedy="name them in [network.arguments], and list its conditions",
        )
    free, inputs = interface.state.resizable, []
    for key, theirs in wanted.items():
        _check_shape(found[theirs], shapes[key], name)
        axes = free.axes if free and key == "x" else ()
        lengths = [f"axis{i}" if i in axes else length for i, length in enumerate(shapes[key])]
        kind = ir.TensorType(_TYPES[kinds.get(key, "float32")])
        inputs.append(ir.Value(name=key, shape=ir.Shape(["batch", *lengths]), type=kind))
        _replace(graph, found[theirs], inputs[-1], name)
    graph.inputs.clear()
    graph.inputs.extend(inputs)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value, name: str) -> None:
    """Put our input in place of theirs, converted where only the type of number differs."""
    if old.dtype == new.dtype:
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        return
    if new.name != "t" or old.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        raise TraceError(
            found=f"input {old.name!r} of type {old.dtype and old.dtype.name} in {name}",
            expected=f"{new.dtype and new.dtype.name}",
            remedy="export it with that type, or fix the condition's dtype",
        )
    assert old.dtype is not None
    cast = ir.Node("", "Cast", [new], [ir.AttrInt64("to", old.dtype.value)])
    cast.outputs[0].dtype, cast.outputs[0].shape = old.dtype, new.shape
    ir.convenience.replace_all_uses_with(old, cast.outputs[0])
    graph.insert_before(graph[0], cast)


def _check_shape(value: ir.Value, shape: tuple[int, ...], name: str) -> None:
    if value.shape is None:
        return
    batch, *lengths = value.shape.dims or (1,)
    pairs = zip(lengths, shape, strict=False)
    fits = len(lengths) == len(shape) and not isinstance(batch, int)
    if not fits or any(isinstance(found, int) and found != length for found, length in pairs):
        raise TraceError(
            found=f"input {value.name!r} of shape {[str(d) for d in value.shape]} in {name}",
            expected=f"a free batch axis, then {list(shape)}",
            remedy="export it with a dynamic batch, or fix the recipe's shapes",
        )


def _fit_outputs(model: ir.Model, name: str, wanted: tuple[str, ...], interface: Interface) -> None:
    """Keep the prediction (and the variance), under our names."""
    graph = model.graph
    if len(graph.outputs) < len(wanted) and len(graph.outputs) == 1:
        attributes = [ir.AttrInt64("axis", 1)]
        if model.graph.opset_imports.get("", 1) >= 18:
            attributes.append(ir.AttrInt64("num_outputs", len(wanted)))
        split = ir.Node("", "Split", graph.outputs[:1], attributes, num_outputs=len(wanted))
        graph.append(split)
        graph.outputs.clear()
        graph.outputs.extend(split.outputs)
    if len(graph.outputs) < len(wanted):
        raise TraceError(
            found=f"{len(graph.outputs)} outputs in {name}",
            expected=f"{list(interface.outputs)}",
            remedy="fix process.variance, or export the outputs",
        )
    del graph.outputs[len(wanted) :]
    for index, key in enumerate(wanted):
        value = graph.outputs[index]
        if value in list(graph.outputs)[:index]:
            raise TraceError(
                found=f"one value as {' and '.join(interface.outputs)} in {name}",
                expected="outputs of their own",
                remedy="fix process.variance, or export the variance as well",
            )
        if value.producer() is None or value.dtype not in (None, ir.DataType.FLOAT):
            raise TraceError(
                found=f"output {value.name!r} of type {value.dtype and value.dtype.name} in {name}",
                expected="a computed FLOAT prediction",
                remedy="export it in float32",
            )
        value.name = key
        value.dtype, value.shape = ir.DataType.FLOAT, graph.inputs[0].shape


def _check_opsets(models: Sequence[tuple[str, ir.Model]]) -> None:
    newest = max(model.graph.opset_imports.get("", 1) for _, model in models)
    for name, model in models:
        opset = model.graph.opset_imports.get("", 1)
        if opset != newest:
            raise TraceError(
                found=f"opset {opset} in {name}, and {newest} in another file",
                expected="one opset in all files",
                remedy="export them alike, or convert with onnx.version_converter",
            )
        model.graph.opset_imports.clear()
        model.graph.opset_imports[""] = newest
