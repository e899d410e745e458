"""One weights file for several graphs, every tensor once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save_file

from eecompile.bundle import WEIGHTS
from eecompile.errors import BundleError

__all__ = ["WeightStore", "load_graph", "weight_sizes"]

INLINE_BYTES = 256  # smaller tensors, such as shapes, stay in the graph


class WeightStore:
    """Collects the weights of several graphs, and points the graphs at one file.

    A tensor is known by its content: dtype, shape and bytes.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._arrays: dict[str, NDArray[np.generic]] = {}
        self._digests: dict[int, tuple[ir.TensorProtocol, str]] = {}  # by the tensor's identity

    def add(self, model: ir.Model) -> None:
        """Take the weights of ``model``."""
        for value in _weights(model):
            digest = self._digest(value)
            if digest not in self._names:
                base = name = value.name or "weight"
                count = 1
                while name in self._arrays:
                    count += 1
                    name = f"{base}#{count}"
                self._names[digest] = name
                self._arrays[name] = np.ascontiguousarray(_array(value))

    def save(self, folder: Path, models: dict[str, ir.Model]) -> None:
        """Write the weights file, then each model under its name, pointing into it.

        The models' weights are replaced by references to the file.
        """
        places = self._write(folder / WEIGHTS)
        for name, model in models.items():
            for value in _weights(model):
                key = self._names[self._digest(value)]
                tensor = value.const_value
                assert tensor is not None
                offset, length = places[key]
                value.const_value = ir.ExternalTensor(
                    WEIGHTS,
                    offset,
                    length,
                    tensor.dtype,
                    shape=ir.Shape(tensor.numpy().shape),
                    name=value.name or key,
                    base_dir=folder,
                )
            ir.save(model, folder / name)

    def _digest(self, value: ir.Value) -> str:
        """SHA-256 of a weight's dtype, shape and bytes; hashed once for graphs that share it."""
        tensor = value.const_value
        assert tensor is not None
        if id(tensor) not in self._digests:
            digest = hashlib.sha256(f"{tensor.dtype.name}{tuple(tensor.shape)}".encode())
            digest.update(_array(value).tobytes())
            self._digests[id(tensor)] = tensor, digest.hexdigest()
        return self._digests[id(tensor)][1]

    def _write(self, path: Path) -> dict[str, tuple[int, int]]:
        """Write the file; returns offset and length of each tensor, in bytes."""
        save_file(self._arrays, path)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        return {
            name: (
                8 + size + entry["data_offsets"][0],
                int(np.subtract(*entry["data_offsets"][::-1])),
            )
            for name, entry in header.items()
        }


def load_graph(folder: Path, name: str) -> ir.Model:
    """A graph of a bundle, its weights mapped from the weights file.

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
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and str(tensor.location) != WEIGHTS:
            raise BundleError(
                found=f"weights of {name} at {tensor.location!r}",
                expected=WEIGHTS,
                remedy="export the bundle again",
            )
    return model


def weight_sizes(model: ir.Model) -> dict[str, int]:
    """Bytes of each weight that lies in the weights file, by offset in it."""
    sizes = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            sizes[str(tensor.offset)] = tensor.nbytes
    return sizes


def _weights(model: ir.Model) -> list[ir.Value]:
    values = model.graph.initializers.values()
    return [v for v in values if v.const_value is not None and v.const_value.nbytes >= INLINE_BYTES]


def _array(value: ir.Value) -> NDArray[np.generic]:
    assert value.const_value is not None
    return value.const_value.numpy()
