"""Single files: written whole or not at all, and read back with their format checked.

Files that are used again by their names, such as caches, are used only if nobody else can have
written them.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from eecompile.decoding import MalformedError, from_json
from eecompile.errors import FormatError, UsageError

Form = TypeVar("Form")
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # no pipe is waited for; Windows has none
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | _AT_ONCE


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """An empty file beside ``path``, to be written; it takes the path's place if all goes well."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL, 0o666))  # nobody's, and no link to another
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def file_bytes(path: Path) -> bytes:
    """What a file holds.

    Raises:
        OSError: it is missing, or none: a folder, or a pipe, from which nothing might come.
    """
    data = _read(path, _AT_ONCE, lambda found: True)
    if data is None:
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return data


def is_private(path: Path) -> bool:
    """Whether nobody but this user, or the system's, can write what is there.

    False for a link, where nothing is, and for what a group may write. Windows keeps users' files
    apart by other means, and all are taken for private there.
    """
    try:
        return _private(path.lstat())
    except OSError:
        return False


def read_private(path: Path) -> bytes | None:
    """What a file holds; None where there is none, or one that is not private.

    See :func:`is_private`; what is checked is what is read, whoever renames files meanwhile.
    """
    try:
        return _read(path, _NO_LINK, _private)
    except OSError:
        return None


def _read(path: Path, how: int, fits: Callable[[os.stat_result], bool]) -> bytes | None:
    """What a file holds that fits; None where there is none, or something else."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | how)
    found = os.fstat(file)
    if not (stat.S_ISREG(found.st_mode) and fits(found)):
        os.close(file)
        return None
    with os.fdopen(file, "rb") as opened:
        return opened.read()


def _private(found: os.stat_result) -> bool:
    if stat.S_ISLNK(found.st_mode):
        return False
    if sys.platform == "win32":
        return True
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return not others and found.st_uid in (0, os.getuid())


class _Header(msgspec.Struct):
    format: int


def form_bytes(form: object) -> bytes:
    """A form as JSON, which :func:`read_form` reads."""
    return msgspec.json.format(msgspec.json.encode(form), indent=1) + b"\n"


def outline(path: Path, kind: type[Form]) -> Form | None:
    """What a file of JSON says of itself, even if text in it is damaged; None if it does not."""
    try:
        return from_json(file_bytes(path).decode(errors="replace"), kind)
    except (OSError, MalformedError):
        return None


def read_form(path: Path, kind: type[Form], known: int, *, what: str, command: str) -> Form:
    """What a command wrote as JSON, of a type with a field ``format``, which must be ``known``.

    Messages say ``what`` it is called, and the ``command`` that writes it.

    Raises:
        UsageError: it is not there, or something else.
        FormatError: it is of another format.
    """
    try:
        data = file_bytes(path)
        found = from_json(data, _Header).format
        if found != known:
            raise FormatError(
                found=f"a {what} of format {found} at {path}",
                expected=f"format {known}",
                remedy=f"{command} again with this version",
            )
        return from_json(data, kind)
    except (OSError, MalformedError) as error:
        raise UsageError(
            found=f"no {what} at {path} ({error})",
            expected=f"a {what}.json that 'eecompile {command}' wrote",
            remedy="check the path",
        ) from error
