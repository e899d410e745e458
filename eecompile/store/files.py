"""Single files: written whole or not at all, and read back with their format checked.

Files that are used again by their names, such as caches, are used only if nobody else can have
written them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from eecompile.decoding import MalformedError, from_json
from eecompile.errors import FormatError, UsageError
from eecompile.system import needing_room

Form = TypeVar("Form")
_LONGEST = 255  # bytes of a file's name, on all usual file systems
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # no pipe is waited for; Windows has none
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | _AT_ONCE
_TOKEN = 4  # bytes that tell partial files of one path apart


def is_file(path: Path) -> bool:
    """Whether a file is there; False for a name that no file can have, as in Python 3.14."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False as in :func:`is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def in_utf8(path: Path) -> str:
    """A path as libraries take it that know no other encoding of names, whatever the locale.

    Raises:
        UsageError: the path is no UTF-8.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            found=f"the path {str(path)!a}, which is no UTF-8",
            expected="a path that the libraries of engines can open",
            remedy="rename the folder, or choose another place",
        ) from error


def beside(path: Path, ending: str) -> Path:
    """A hidden path beside another, for what is to become it: ``.NAME.ENDING``.

    A name that is too long for that is cut, and a digest of it takes the place of the rest.
    """
    name = os.fsencode(path.name)
    room = _LONGEST - len(os.fsencode(f"..{ending}"))
    if len(name) > room:
        digest = hashlib.sha256(name).hexdigest()[:16]
        name = name[: room - len(digest)].decode(errors="ignore").encode() + digest.encode()
    return path.with_name(f".{os.fsdecode(name)}.{ending}")


def lock(file: int) -> bool:
    """Whether this process has the lock of an open file from now on, until it is closed.

    The system drops it when the process ends. Where files have no locks, all have it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """An empty file beside ``path``, to be written; it takes the path's place if all goes well.

    What a writer of the same path left that was killed is removed.

    Raises:
        DiskFullError: there is no room for it.
    """
    _remove_leftovers(path)
    partial = beside(path, f"{secrets.token_hex(_TOKEN)}.partial")
    # Nobody's, and no link to another.
    number = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        lock(number)
        with needing_room(partial, path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        os.close(number)


def _remove_leftovers(path: Path) -> None:
    """Remove the partial files of ``path`` that no living process writes."""
    if sys.platform == "win32":  # without locks, nobody knows which these are
        return
    start, _, end = beside(path, f"{'?' * 2 * _TOKEN}.partial").name.partition("?" * 2 * _TOKEN)
    wanted = re.compile(f"{re.escape(start)}[0-9a-f]{{{2 * _TOKEN}}}{re.escape(end)}")
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            if not wanted.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(OSError):
                number = os.open(entry.path, os.O_RDONLY | _NO_LINK)
                try:
                    if lock(number):
                        Path(entry.path).unlink()
                finally:
                    os.close(number)


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
