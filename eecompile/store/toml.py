"""Typed TOML: recipes and targets. Unknown keys are errors; nothing is inherited or executed."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from eecompile.decoding import MalformedError, from_toml
from eecompile.errors import RecipeError

Form = TypeVar("Form", bound=msgspec.Struct)


def read_toml(path: Path, kind: type[Form], *, example: str) -> Form:
    """A typed TOML file; messages name ``example``, the path of such a file.

    Raises:
        RecipeError: the file is missing, is no TOML, has unknown keys, or does not fit.
    """
    try:
        data = from_toml(path.read_bytes())
    except OSError as error:
        raise RecipeError(
            found=f"no readable file at {path} ({type(error).__name__})",
            expected="a TOML recipe",
            remedy=f"give the path of a file such as {example}",
        ) from error
    except MalformedError as error:
        raise RecipeError(
            found=f"{path}, which is not TOML ({error})",
            expected="a TOML recipe",
            remedy="fix that line",
        ) from error
    for key, value in _numbers(data):
        if not math.isfinite(value):
            raise RecipeError(
                found=f"{key} = {value} in {path}",
                expected="a finite number",
                remedy="fix it, or leave the key out",
            )
    for key, known in _unknown_keys(data, msgspec.inspect.type_info(kind)):
        near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1, cutoff=0.0)
        raise RecipeError(
            found=f"unknown key {key!r} in {path}",
            expected=f"one of {sorted(known)}",
            remedy=f"did you mean {near[0]!r}? Rename or remove it" if near else "remove it",
        )
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise RecipeError(
            found=f"a wrong value in {path}: {error}",
            expected=_expected(str(error), msgspec.inspect.type_info(kind)),
            remedy="fix that key",
        ) from error


def _expected(message: str, kind: msgspec.inspect.Type) -> str:
    """What belongs at the place that msgspec names; the words where only some are allowed."""
    place = re.search(r"`\$\.([\w.]+)`$", message)
    found: msgspec.inspect.Type | None = kind
    for key in place[1].split(".") if place else ():
        if not isinstance(found, msgspec.inspect.StructType):
            break
        fields = {field.encode_name: field.type for field in found.fields}
        found = fields.get(key)
    kinds = found.types if isinstance(found, msgspec.inspect.UnionType) else (found,)
    for each in kinds:
        if isinstance(each, msgspec.inspect.LiteralType):
            return f"one of {list(each.values)}"
    return "the type that the message names"


def _numbers(data: object, place: str = "") -> Iterator[tuple[str, float]]:
    """Every floating point number in ``data``, with its place."""
    if isinstance(data, float):
        yield place, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _numbers(value, f"{place}.{key}" if place else str(key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _numbers(value, f"{place}[{index}]")


def _unknown_keys(
    data: Mapping[str, Any], kind: msgspec.inspect.Type, prefix: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Every key of ``data`` that ``kind`` does not have, with the keys that it has."""
    if isinstance(kind, msgspec.inspect.StructType):
        fields = {field.encode_name: field.type for field in kind.fields}
        for key, value in data.items():
            if key not in fields:
                yield f"{prefix}{key}", list(fields)
            elif isinstance(value, Mapping):
                yield from _unknown_keys(value, fields[key], f"{prefix}{key}.")
    elif isinstance(kind, msgspec.inspect.DictType):
        for key, value in data.items():
            if isinstance(value, Mapping):
                yield from _unknown_keys(value, kind.value_type, f"{prefix}{key}.")
    elif isinstance(kind, msgspec.inspect.UnionType):
        for member in kind.types:
            if isinstance(member, msgspec.inspect.StructType):
                yield from _unknown_keys(data, member, prefix)
