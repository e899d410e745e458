"""Arrays that are kept in a folder by name, so that none is made twice."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from eecompile.arrays import Array
from eecompile.store.files import file_bytes, written


def keep(folder: Path, name: str, array: Array) -> None:
    """Keep an array; the digest of its file is in the file's name."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    folder.mkdir(parents=True, exist_ok=True)
    with written(folder / _file(name, buffer.getvalue())) as partial:
        partial.write_bytes(buffer.getvalue())


def kept(folder: Path, name: str) -> Array | None:
    """The array that was kept under a name; None without one, or where it is damaged."""
    for path in folder.glob(f"{name}.*.npy"):
        try:
            data = file_bytes(path)
        except OSError:
            continue
        if path.name == _file(name, data):
            array: Array = np.load(io.BytesIO(data), allow_pickle=False)
            return array
    return None


def _file(name: str, data: bytes) -> str:
    return f"{name}.{hashlib.sha256(data).hexdigest()[:32]}.npy"
