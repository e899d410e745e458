"""What has been measured so far, in a file: an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from eecompile.decoding import MalformedError, from_msgpack
from eecompile.errors import BusyError, OutputExistsError
from eecompile.handle import Handle
from eecompile.store.files import lock

_LENGTH = struct.Struct("<Q")
_NAME = "eecompile tune"
_FORMAT = f"{_NAME} 2"
_DIGEST = 16  # bytes, before each record


class Work(Handle):
    """Results by key, each written as soon as it is there.

    The file is a list of records, so that adding one costs no more than its size; what an
    interruption left of the last one is dropped, as is all from the first damaged one on. A file
    of other settings is begun anew.

    Args:
        path: the file; None keeps everything in memory.
        identity: digest of all that the results depend on.

    Raises:
        BusyError: another process is writing it.
        OutputExistsError: the file is another one.
    """

    def __init__(self, path: Path | None, identity: str = "") -> None:
        self.path = path
        self.kept: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        if path is None:
            return
        if os.path.lexists(path) and not is_work(path):
            raise OutputExistsError(
                found=f"{path}, which eecompile did not write",
                expected="nothing of that name, or what an interrupted tuning measured",
                remedy="move it elsewhere, or choose another output folder",
            )
        self._file = path.open("a+b")
        _lock(self._file, path)
        self._file.seek(0)
        end = self._read(f"{_FORMAT} {identity}")
        self._file.seek(end)
        self._file.truncate()
        if not end:
            self._write(f"{_FORMAT} {identity}", None)

    def get(self, key: str) -> Any:
        """What was put there, None without any; an array for an array."""
        found = self.kept.get(key)
        if isinstance(found, dict) and "array" in found:
            return np.frombuffer(found["array"], found["dtype"]).reshape(found["shape"]).copy()
        return found

    def recall(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was put there, or else what ``measure`` gives, which is put there."""
        if key not in self.kept:
            self.put(key, measure())
        return self.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value: an array, or what JSON can hold."""
        if isinstance(value, np.ndarray):
            value = _packed(value)
        self.kept[key] = value
        self._write(key, value)

    def remove(self) -> None:
        """Delete the file: the results are written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file, and so give up the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, key: str, value: Any) -> None:
        if self._file is not None:
            record = msgspec.msgpack.encode((key, value))
            self._file.write(_LENGTH.pack(len(record)) + _digest(record) + record)
            self._file.flush()

    def _read(self, header: str) -> int:
        """Take in the records; where the last whole one ends, 0 for a file of other settings."""
        assert self._file is not None
        end, size = 0, os.fstat(self._file.fileno()).st_size
        while len(head := self._file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            if length > size - self._file.tell():
                break
            digest, record = self._file.read(_DIGEST), self._file.read(length)
            if digest != _digest(record):
                break
            try:
                key, value = from_msgpack(record, tuple[str, Any])
            except MalformedError:
                break
            if not end and key != header:
                return 0
            if end:
                self.kept[key] = value
            end = self._file.tell()
        return end


def is_work(path: Path) -> bool:
    """Whether a file is one of :class:`Work`, or empty."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_LENGTH.size + _DIGEST + 32)  # the name is in the first record's key
    return not head or _NAME.encode() in head


def _digest(record: bytes) -> bytes:
    return hashlib.sha256(record).digest()[:_DIGEST]


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    kept = np.ascontiguousarray(array)
    return {"array": kept.tobytes(), "dtype": kept.dtype.str, "shape": list(kept.shape)}


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep a second writer out, until the file is closed or the process ends."""
    if not lock(file.fileno()):
        file.close()
        raise BusyError(
            found=f"another process that is tuning into {path.parent}",
            expected="one at a time",
            remedy="wait for it, or choose another output folder",
        )
