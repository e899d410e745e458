"""One weights file for several graphs, every tensor once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from eecompile.compiler.aligned import as_bytes, write_safetensors
from eecompile.errors import BundleError, one_line
from eecompile.store.bundle import WEIGHTS

INLINE_BYTES = 256  # smaller tensors, such as shapes, stay in the graph


_KEY = "eecompile.content"  # under which a tensor remembers its content's digest


def content_key(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes, in hex; computed once a tensor."""
    if _KEY not in tensor.meta:
        digest = hashlib.sha256(f"{tensor.dtype.name}{list(tensor.shape)}".encode())
        digest.update(as_bytes(tensor))
        tensor.meta[_KEY] = digest.hexdigest()
    found: str = tensor.meta[_KEY]
    return found


class WeightStore:
    """Collects the weights of several graphs, and points the graphs at one file.

    A tensor is known by its content: dtype, shape and bytes.

    Args:
        file: name of the weights file.
    """

    def __init__(self, file: str = WEIGHTS) -> None:
        self.file = file
        self._names: dict[str, str] = {}
        self._tensors: dict[str, ir.TensorProtocol] = {}

    def add(self, model: ir.Model) -> None:
        """Take the weights of ``model``."""
        for value, tensor in _weights(model):
            key = content_key(tensor)
            if key not in self._names:
                base = name = value.name or "weight"
                count = 1
                while name in self._tensors:
                    count += 1
                    name = f"{base}#{count}"
                self._names[key] = name
                self._tensors[name] = tensor

    def save(self, folder: Path, models: Mapping[str, ir.Model]) -> None:
        """Write the weights file, then each model under its name, pointing into it.

        The models' weights are replaced by references to the file.
        """
        places = write_safetensors(folder / self.file, self._tensors)
        for name, model in models.items():
            for value, tensor in _weights(model):
                place = places[self._names[content_key(tensor)]]
                value.const_value = ir.ExternalTensor(
                    self.file,
                    place.offset,
                    place.length,
                    tensor.dtype,
                    shape=ir.Shape(tensor.shape.numpy()),
                    name=value.name or "weight",
                    base_dir=folder,
                )
            ir.save(model, folder / name)


def load_graph(folder: Path, name: str, file: str = WEIGHTS) -> ir.Model:
    """A graph of a bundle, its weights mapped from the weights file of that name.

    Raises:
        BundleError: the graph is malformed, or points outside the folder.
    """
    try:
        model = ir.load(folder / name)
    except Exception as error:  # protobuf and onnx-ir raise several kinds
        raise BundleError(
            found=f"{folder / name}, which is no ONNX graph ({error})",
            expected="a graph that eecompile export wrote",
            remedy="export the bundle again",
        ) from error
    size = (folder / file).stat().st_size
    for key, value in model.graph.initializers.items():
        if problem := _problem(value.const_value, file, size):
            raise BundleError(
                found=f"{problem}, which {name} calls {key!r}, in {folder}",
                expected=f"weights with a type and a shape, as large as they say, in {file}",
                remedy="export the bundle again",
            )
    return model


def _problem(tensor: ir.TensorProtocol | None, file: str, size: int) -> str:
    """What is wrong with a weight, if the weights ``file`` has ``size`` bytes; "" for nothing."""
    if tensor is None:
        return "a weight without values"
    try:
        lengths, needed = tensor.shape.numpy(), tensor.nbytes
        if not isinstance(tensor, ir.ExternalTensor):
            tensor.numpy()
            return ""
    except Exception as error:  # onnx-ir and numpy raise several kinds
        return f"a weight that cannot be read ({one_line(error)})"
    if str(tensor.location) != file:
        return f"weights at {str(tensor.location)!r}"
    start, length = tensor.offset or 0, tensor.length
    inside = start >= 0 and start + needed <= size and length in (None, needed)
    if not inside or any(axis < 0 for axis in lengths):
        return f"{length} bytes at {start} of {size} for a weight of shape {list(lengths)}"
    return ""


def _weights(model: ir.Model) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    return [
        (value, value.const_value)
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= INLINE_BYTES
    ]
