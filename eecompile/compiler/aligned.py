"""Write safetensors files whose tensors begin at aligned offsets, one tensor at a time.

The library's own writer holds a second copy of everything in memory and packs tensors
without gaps. Here large tensors begin on a page and small ones on a cache line, so that
a runtime can map the file and compute on it in place. Gaps are not allowed in the
format; what fills them are tensors of bytes, named ``_padding.N``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

PAGE = 4096
LINE = 64
LARGE = 1 << 20  # bytes from which a tensor begins on a page

_TYPES = {
    ir.DataType.BOOL: "BOOL",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
    ir.DataType.INT16: "I16",
    ir.DataType.UINT16: "U16",
    ir.DataType.INT32: "I32",
    ir.DataType.UINT32: "U32",
    ir.DataType.INT64: "I64",
    ir.DataType.UINT64: "U64",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT: "F32",
    ir.DataType.DOUBLE: "F64",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
    ir.DataType.FLOAT8E5M2: "F8_E5M2",
}


class Place(NamedTuple):
    """Where a tensor lies in a file, in bytes."""

    offset: int
    length: int


def write_safetensors(path: Path, tensors: Mapping[str, ir.TensorProtocol]) -> dict[str, Place]:
    """Write ``tensors`` to ``path``, largest first.

    Types that safetensors does not know are written as bytes.

    Returns:
        Where each tensor lies in the file.
    """
    header: dict[str, dict[str, object]] = {}
    order = sorted(tensors, key=lambda name: (-tensors[name].nbytes, name))
    places, end = {}, 0
    for name in order:
        tensor = tensors[name]
        step = PAGE if tensor.nbytes >= LARGE else LINE
        start = -(-end // step) * step
        if start > end:
            header[f"_padding.{len(header)}"] = _entry("U8", [start - end], end, start)
        end = start + tensor.nbytes
        kind = _TYPES.get(tensor.dtype)
        shape = list(tensor.shape.numpy()) if kind else [tensor.nbytes]
        header[name] = _entry(kind or "U8", shape, start, end)
        places[name] = Place(start, tensor.nbytes)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    begin = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(b"\0" * (begin + places[name].offset - file.tell()))
            file.write(as_bytes(tensors[name]))
    return {name: Place(begin + place.offset, place.length) for name, place in places.items()}


def as_bytes(tensor: ir.TensorProtocol) -> memoryview | bytes:
    """A tensor's bytes, without a copy where it has them."""
    array = tensor.numpy()
    if array.nbytes != tensor.nbytes:  # two elements in a byte
        return tensor.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _entry(kind: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
