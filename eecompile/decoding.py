"""The one place where bytes from outside become values, with one error whatever is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar, overload

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Form = TypeVar("Form")
PlainName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=200)]
"""A name in a file of which a path may be made: it lies within the folder where it is used."""
_NPY = b"\x93NUMPY"  # how such a file begins
_DEEPEST = 100  # tables and lists of TOML within one another


class MalformedError(ValueError):
    """Bytes that are not what they should be: readers say in their own words of which file."""


@overload
def from_json(data: bytes | str, kind: type[Form]) -> Form: ...
@overload
def from_json(data: bytes | str, kind: Any) -> Any: ...
def from_json(data: bytes | str, kind: Any) -> Any:
    """JSON of a type.

    Raises:
        MalformedError: it is no UTF-8, no JSON, nested too deeply, or of another type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedError(str(error)) from error


def from_msgpack(data: bytes, kind: type[Form]) -> Form:
    """MessagePack of a type; errors are those of :func:`from_json`."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedError(str(error)) from error


def from_npy(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """The array in an .npy file, or a read-only view of the file; errors are those of JSON's.

    Raises:
        OSError: there is no such file.
    """
    with path.open("rb") as file:
        begins = file.read(len(_NPY))
    if begins != _NPY:
        raise MalformedError("it is no .npy file")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except Exception as error:  # numpy raises many kinds, and wants any memory that a header names
        raise MalformedError(str(error)) from error
    return array


def from_toml(data: bytes) -> dict[str, Any]:
    """TOML; errors are those of :func:`from_json`."""
    try:
        made = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # also of integers with too many digits
        raise MalformedError(str(error)) from error
    level: list[Any] = [made]
    for _ in range(_DEEPEST):  # dotted keys nest without recursion
        values = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for held in values for each in held if isinstance(each, dict | list)]
    if level:
        raise MalformedError(f"nested more than {_DEEPEST} deep")
    return made
