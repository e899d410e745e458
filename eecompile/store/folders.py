"""Writing a folder whole or not at all.

A writer fills a temporary sibling, then one rename puts it in place; where a folder is
replaced, the two are exchanged atomically (Linux; elsewhere by two renames). A lock
beside the folder keeps a second writer out; the kernel drops it when a process dies.
Nothing is ever removed that eecompile did not write.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eecompile.errors import (
    BackendError,
    BundleError,
    BusyError,
    FormatError,
    OutputExistsError,
)
from eecompile.interrupt import deferred
from eecompile.store.bundle import file_names, peek


@contextmanager
def new_folder(path: Path, *, replaces: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends without an error.

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
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link at its end stays one
    _check_place(path)
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
        _restore(path)
        check_replaceable(path, replaces)
        _remove(partial)  # what a killed writer left
        partial.mkdir()
        yield partial
        _sync(partial)
        with deferred():
            check_replaceable(path, replaces)
            _put(partial, path)
    finally:
        with deferred():
            _remove(partial)
            with suppress(OSError):  # filelock refuses a lock on an unlinked file: this is safe
                Path(lock.lock_file).unlink()
            lock.release()
            for parent in made:  # only those still empty
                with suppress(OSError):
                    parent.rmdir()


def _check_place(path: Path) -> None:
    here = Path.cwd()
    if here.is_relative_to(path):
        raise OutputExistsError(
            found=f"{path} as the output folder, in which this command runs",
            expected="a folder of its own",
            remedy="name one, such as out/bundle",
        )


def _make_parents(parent: Path) -> list[Path]:
    """Create missing parents; returns those created, deepest first."""
    missing = []
    for folder in (parent, *parent.parents):
        if folder.exists():
            break
        missing.append(folder)
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def check_replaceable(path: Path, replaces: bool) -> None:
    """Pass when a folder may be written at ``path``, which may replace one of ours or none.

    Raises:
        OutputExistsError: it may not, or holds what eecompile did not write.
    """
    empty = path.is_dir() and not any(path.iterdir())
    occupied = path.is_symlink() or (path.exists() and not empty)
    if occupied and not replaces:
        raise OutputExistsError(
            found=f"{path}, which exists",
            expected="no such folder, or an older version of the same",
            remedy="choose another output folder, or pass --force to replace it",
        )
    if not occupied:
        return
    ours = path.is_dir() and not path.is_symlink() and _is_ours(path)
    if ours and (others := sorted({p.name for p in path.iterdir()} - set(file_names(path)))):
        raise OutputExistsError(
            found=f"{path}, which also holds {', '.join(others[:3])}"
            + (", ..." if len(others) > 3 else ""),
            expected="only what eecompile wrote there, to replace it",
            remedy="move that elsewhere, or choose another output folder",
        )
    if not ours:
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


def _put(partial: Path, path: Path) -> None:
    """Move ``partial`` to ``path``; an existing folder there is removed afterwards."""
    if not path.exists():
        partial.rename(path)
    elif not _exchange(partial, path):
        previous = _previous(path)
        path.rename(previous)
        try:
            partial.rename(path)
        except BaseException:
            previous.rename(path)
            raise
        _remove(previous)


def _restore(path: Path) -> None:
    """Put right what a writer left that was killed between two renames."""
    previous = _previous(path)
    if previous.exists() and path.exists():
        _remove(previous)
    elif previous.exists():
        previous.rename(path)


def _previous(path: Path) -> Path:
    """Where the folder that is replaced lies for a moment."""
    return path.with_name(f".{path.name}.previous")


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
