"""OpenVINO: a graph a segment in its own format (IR), sharing one weights file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir

from eecompile.compiler.progress import Report
from eecompile.compiler.segments import check_options
from eecompile.errors import BackendError
from eecompile.runtime.engines.openvino import (
    WEIGHTS,
    blob_name,
    blob_options,
    check_precision,
    import_openvino,
    model_options,
)
from eecompile.store.target import Target
from eecompile.system import work_folder

SUFFIX = "xml"
_ALIGNMENT = 64
_BATCH = "batch"  # the axis, in exported graphs
_FIXED = "fixed_batches"  # the option


def runs(target: Target) -> bool:
    """Whether engines can be run here."""
    return True


def portable(target: Target) -> bool:
    """Whether engines built here may be meant for other machines: not with this precision."""
    return False


def precision_in_graph(target: Target) -> bool:
    """Whether the precision lies in the graph: it is a hint to the library."""
    return False


def prepare(model: ir.Model, target: Target) -> None:
    """Nothing: graphs are taken as they are."""


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the engines."""
    return {"openvino": import_openvino().get_version().partition("-")[0]}


def check(target: Target) -> None:
    """Pass when engines for this target can be built here.

    Raises:
        BackendError: openvino is missing, the processor has no instructions for the
            precision, or an option is none of this backend's.
    """
    core = import_openvino().Core()
    check_options(target, {_FIXED: bool})
    if target.keep_fp32:
        raise BackendError(
            found=f"keep_fp32 = {list(target.keep_fp32)} for openvino",
            expected="no such key: OpenVINO chooses itself what it lowers",
            remedy="remove it from the target, or choose another backend",
        )
    check_precision(core, target.precision)


def compile_segments(
    folder: Path, models: Mapping[str, ir.Model], target: Target, work: Path, report: Report
) -> None:
    """Write each model as IR to ``folder``, their weights in one file, and their blobs.

    A blob is what OpenVINO makes of a graph for one version of itself and one kind of
    processor. It opens faster; elsewhere the graph is opened instead. There is one for all
    batch sizes, and, where every input has the batch first, one each for the profile's
    smallest and best sizes, unless the option ``fixed_batches`` is false: with all shapes
    known, OpenVINO fuses more, and the models take memory of their own.

    Raises:
        BackendError: OpenVINO refuses a model.
    """
    runtime = import_openvino()
    core = runtime.Core()
    with (folder / WEIGHTS).open("wb") as file:
        weights = _Weights(file)
        for index, (name, model) in enumerate(models.items()):
            report(f"converting {name}", index, len(models))
            with work_folder(work) as place:
                path = place / name
                _write_graph(runtime, core, model, target, path)
                weights.move(path, folder / name)
    options = model_options(target.precision, 0) | blob_options(folder)
    for index, (name, model) in enumerate(models.items()):
        report(f"compiling {name}", index, len(models))
        wanted = bool(target.options.get(_FIXED, True)) and _batch_first(model)
        sizes = {target.batch.min, target.batch.opt} if wanted else ()
        for batch in (0, *sorted(sizes)):
            blob = BytesIO()
            with _blaming(name, runtime):
                graph = core.read_model(folder / name, folder / WEIGHTS)
                if batch:
                    graph.reshape(_with_batch(graph, batch))
                core.compile_model(graph, "CPU", options).export_model(blob)
            (folder / blob_name(runtime, core, name, batch)).write_bytes(blob.getvalue())


def build_companion(
    model: ir.Model, folder: Path, name: str, target: Target, work: Path
) -> tuple[str, str]:
    """Write the graph of a companion as IR to ``folder``, its weights beside it."""
    runtime = import_openvino()
    files = f"{name}.{SUFFIX}", f"{name}.bin"
    with work_folder(work) as place:
        _write_graph(runtime, runtime.Core(), model, target, place / files[0])
        for file in files:
            (place / file).replace(folder / file)
    return files


def _batch_first(model: ir.Model) -> bool:
    """Whether the first axis of every input is the batch, or has a length of its own."""
    shapes = [value.shape for value in model.graph.inputs]
    return all(
        shape is not None and len(shape) and (isinstance(shape[0], int) or str(shape[0]) == _BATCH)
        for shape in shapes
    )


def _with_batch(graph: Any, batch: int) -> dict[Any, Any]:
    shapes = {}
    for place in graph.inputs:
        shape = place.get_partial_shape()
        if shape[0].is_dynamic:
            shape[0] = batch
        shapes[place] = shape
    return shapes


def _write_graph(runtime: Any, core: Any, model: ir.Model, target: Target, path: Path) -> None:
    """Write a model as IR to ``path``, and its weights, FP32, beside it."""
    plain = path.with_suffix(".onnx")
    ir.save(model, plain, external_data=f"{plain.stem}.data")
    with _blaming(path.name, runtime):
        graph = core.read_model(plain)
    if target.precision == "bf16":
        _keep_angles(graph)
    with _blaming(path.name, runtime):
        runtime.save_model(graph, path, compress_to_fp16=False)


@contextmanager
def _blaming(name: str, runtime: Any) -> Iterator[None]:
    """What OpenVINO raises becomes an error that names the segment."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BackendError(
            found=f"{name} refused by openvino {runtime.get_version()} ({reason})",
            expected="operators that it knows",
            remedy="pip install --upgrade openvino, or choose another backend in the target",
        ) from error


def _keep_angles(graph: Any) -> None:
    """Keep sines and cosines, and what they are taken of, in FP32.

    Timesteps have no place in BF16: above 512 it has multiples of 4 only. OpenVINO lowers no
    operator between an output and the matrix products before it, so each sine becomes an
    output, which nobody reads.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() in ("Sin", "Cos"):
            readers = (place.get_node() for place in node.output(0).get_target_inputs())
            if all(reader.get_type_name() != "Result" for reader in readers):
                graph.add_outputs(node.output(0))


class _Weights:
    """Moves the weights of graphs into one file, every tensor once, by content."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[bytes, int] = {}

    def move(self, source: Path, output: Path) -> None:
        """Write the graph at ``source`` to ``output``, its weights in this file."""
        tree = ElementTree.parse(source)
        with source.with_suffix(".bin").open("rb") as given:
            for layer in tree.iter("layer"):
                place = layer.find("data")
                if layer.get("type") == "Const" and place is not None:
                    given.seek(int(place.attrib["offset"]))
                    content = given.read(int(place.attrib["size"]))
                    if place.get("element_type") == "i64":
                        content = _clamped(content)
                    place.set("offset", str(self._add(content)))
        tree.write(output)

    def _add(self, content: bytes) -> int:
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
            self._places[key] = self._file.tell()
            self._file.write(content)
        return self._places[key]


def _clamped(content: bytes) -> bytes:
    """64-bit integers within 32 bits, which is what OpenVINO computes in on a CPU.

    It clamps them itself when it opens a graph. With a blob it cuts them off instead: the
    end of a slice, 2**63 - 1, would become -1.
    """
    limits = np.iinfo(np.int32)
    clamped: bytes = np.clip(np.frombuffer(content, "<i8"), limits.min, limits.max).tobytes()
    return clamped
