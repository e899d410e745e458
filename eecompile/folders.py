"""Writing a folder whole or not at all.

A writer fills a temporary sibling, then one rename puts it in place; where a folder is
replaced, the two are exchanged atomically (Linux; elsewhere by two renames). A lock
beside the folder keeps a second writer out; the kernel drops it when a process dies.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eecompile.bundle import peek
from eecompile.errors import (
    BackendError,
    BundleError,
    BusyError,
    FormatError,
    OutputExistsError,
)

__all__ = ["new_folder"]


@contextmanager
def new_folder(path: Path, *, replaces: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends without an error.

    Args:
        path: where the folder will be.
        replaces: whether an existing folder at ``path`` may be replaced.

    Raises:
        BusyError: another process is writing ``path``.
        OutputExistsError: ``path`` exists and may not be replaced.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise BackendError(
            found="no package filelock",
            expected="it, to write bundles and engine sets",
            remedy="pip install 'eecompile[build]'",
        ) from error
    path = path.absolute()
    made = _make_parents(path.parent)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError(
            found=f"another process that is writing {path}",
            expected="one writer at a time",
            remedy="wait for it, or choose another output folder",
        ) from error
    partial = path.with_name(f".{path.name}.partial")
    try:
        _refuse(path, replaces)
        _remove(partial)  # what a killed writer left
        partial.mkdir()
        yield partial
        _refuse(path, replaces)
        _put(partial, path)
    finally:
        _remove(partial)
        with suppress(OSError):  # filelock refuses a lock on an unlinked file, so this is safe
            Path(lock.lock_file).unlink()
        lock.release()
        for parent in made:  # only those still empty
            with suppress(OSError):
                parent.rmdir()


def _make_parents(parent: Path) -> list[Path]:
    """Create missing parents; returns those created, deepest first."""
    missing = []
    for folder in (parent, *parent.parents):
        if folder.exists():
            break
        missing.append(folder)
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def _refuse(path: Path, replaces: bool) -> None:
    occupied = path.is_symlink() or (path.exists() and not _is_empty(path))
    if occupied and not replaces:
        raise OutputExistsError(
            found=f"{path}, which exists",
            expected="no such folder, or an older version of the same",
            remedy="choose another output folder, or pass --force to replace it",
        )
    ours = path.is_dir() and not path.is_symlink() and _is_ours(path)
    if occupied and not ours:
        raise OutputExistsError(
            found=f"{path}, which is no folder that eecompile wrote",
            expected="a bundle or an engine set to replace",
            remedy="choose another output folder, or remove it yourself",
        )


def _is_ours(path: Path) -> bool:
    """Whether the manifest is eecompile's: other programs have files of that name too."""
    try:
        return peek(path) in ("bundle", "engine-set")
    except FormatError:
        return True  # of another version of eecompile
    except BundleError:
        return False


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _put(partial: Path, path: Path) -> None:
    """Move ``partial`` to ``path``; an existing folder there is removed afterwards."""
    _sync(partial)
    if not path.exists():
        partial.rename(path)
    elif not _exchange(partial, path):
        previous = path.with_name(f".{path.name}.previous")
        _remove(previous)
        path.rename(previous)
        partial.rename(path)
        _remove(previous)


def _sync(folder: Path) -> None:
    """Flush the files to the disk, so that a power cut cannot leave them empty."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
