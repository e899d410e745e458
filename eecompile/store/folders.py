"""Writing a folder whole or not at all.

A writer fills a temporary folder, then one rename puts it in place; where a folder is
replaced, the two are exchanged atomically (Linux; elsewhere by two renames). A lock
beside the folder keeps a second writer out; the kernel drops it when a process dies.
Nothing is ever removed that eecompile did not write: what is replaced holds the files that
its own record names, and nothing else; temporary folders hold a mark.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from eecompile.errors import BackendError, BusyError, OutputExistsError, UsageError
from eecompile.interrupt import deferred
from eecompile.store.bundle import file_names
from eecompile.store.files import beside
from eecompile.system import needing_room

MARK = ".eecompile"  # a file in a folder that eecompile may remove
_MARK = b"eecompile may remove this folder.\n"
_NEW, _PREVIOUS = "new", "previous"  # in a temporary folder: what is written, what it replaces


class FolderKind(NamedTuple):
    """A kind of folder that may be replaced.

    Attributes:
        what: it holds, for messages.
        names: of the files there that eecompile wrote, even if they are damaged; empty for a
            folder of another kind.
    """

    what: str
    names: Callable[[Path], Collection[str]]


SETS = FolderKind("a bundle or an engine set", file_names)


@contextmanager
def new_folder(path: Path, *, replaces: bool, kind: FolderKind = SETS) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends without an error.

    Raises:
        BusyError: another process is writing ``path``.
        DiskFullError: there is no room for it.
        OutputExistsError: ``path`` exists and may not be replaced.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link at its end stays one
    partial = _partial(path)
    _check_place(path)
    made = _make_parents(path.parent)
    try:
        with alone(path):
            check_folder(path, replaces=replaces, kind=kind)
            remove_marked(partial)  # what a killed writer left
            with needing_room(partial, path):
                make_marked(partial)
                (partial / _NEW).mkdir()
                yield partial / _NEW
                _sync(partial / _NEW)
            with deferred():
                check_folder(path, replaces=replaces, kind=kind)
                _put(partial, path)
    finally:
        with deferred():
            for parent in made:  # only those still empty
                with suppress(OSError):
                    parent.rmdir()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """No other process writes ``path`` meanwhile; what one left that was killed is removed.

    Raises:
        BusyError: another process is writing it.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise BackendError(
            found="no package filelock",
            expected="it, to write folders",
            remedy="pip install filelock",
        ) from error
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link at its end stays one
    lock_file = _lock_file(path)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError(
            found=f"another process that is writing {path}",
            expected="one writer at a time",
            remedy="wait for it, or choose another output folder",
        ) from error
    try:
        _restore(path)
        yield
    finally:
        with deferred():
            remove_marked(_partial(path))
            with suppress(OSError):  # filelock refuses a lock on an unlinked file: this is safe
                lock_file.unlink()
            lock.release()


def left_over(path: Path) -> bool:
    """Whether there is what :func:`alone` removes, of a writer that was killed or is at work."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link at its end stays one
    return _is_marked(_partial(path)) or _lock_file(path).is_file()


def check_folder(path: Path, *, replaces: bool, kind: FolderKind = SETS) -> None:
    """Pass when a folder may be written at ``path``, which may replace one of its kind or none.

    Raises:
        OutputExistsError: it may not, or there is what eecompile did not write.
        UsageError: nothing can be written there.
    """
    place = Path(os.path.abspath(path))  # noqa: PTH100 - a link at its end stays one
    _check_place(place)
    _check_marked(_partial(place))
    empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if empty or not os.path.lexists(path):
        return
    held = {p.name for p in path.iterdir()} if path.is_dir() and not path.is_symlink() else set()
    ours = set(kind.names(path)) if held else set()
    if others := sorted(held - ours) if ours else []:
        raise OutputExistsError(
            found=f"{path}, which also holds {', '.join(others[:3])}"
            + (", ..." if len(others) > 3 else ""),
            expected="only what eecompile wrote there, to replace it",
            remedy="move that elsewhere, or choose another output folder",
        )
    if not ours:
        raise OutputExistsError(
            found=f"{path}, which is no folder that eecompile wrote",
            expected=f"{kind.what} to replace",
            remedy="choose another output folder, or remove it yourself",
        )
    if not replaces:
        raise OutputExistsError(
            found=f"{path}, which exists",
            expected="no such folder, or an older version of the same",
            remedy="choose another output folder, or pass --force to replace it",
        )


def make_marked(folder: Path) -> None:
    """Make a folder that eecompile may remove, of this user's alone; one that is there stays.

    Raises:
        OutputExistsError: something else is there.
    """
    _check_marked(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / MARK).write_bytes(_MARK)


def remove_marked(folder: Path) -> None:
    """Remove a folder of :func:`make_marked`; what else may be there stays."""
    if not _is_marked(folder):
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:  # the last, so that what a killed process leaves has its mark
            path.unlink()
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()


def _check_marked(folder: Path) -> None:
    if os.path.lexists(folder) and not _is_marked(folder):
        raise _strange(folder)


def _is_marked(folder: Path) -> bool:
    """Whether it holds the mark, or nothing yet."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    mark = folder / MARK
    if mark.is_file() and not mark.is_symlink():
        return _MARK.startswith(mark.read_bytes())
    return not any(folder.iterdir())


def _strange(path: Path) -> OutputExistsError:
    return OutputExistsError(
        found=f"{path}, which eecompile did not write",
        expected="nothing of that name, or what an interrupted command left",
        remedy="move it elsewhere, or choose another output folder",
    )


def _check_place(path: Path) -> None:
    place = path.parent
    while not os.path.lexists(place):
        place = place.parent
    if Path.cwd().is_relative_to(path):
        raise OutputExistsError(
            found=f"{path} as the output folder, in which this command runs",
            expected="a folder of its own",
            remedy="name one, such as out/bundle",
        )
    if not place.is_dir():
        raise OutputExistsError(
            found=f"{place}, which is no folder",
            expected="a folder, in which one can be written",
            remedy="choose another output folder",
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(
            found=f"{place}, where nothing may be written",
            expected="a place for the output folder",
            remedy="choose another",
        )
    lock = _lock_file(path)
    if os.path.lexists(lock) and (lock.is_symlink() or lock.stat().st_size):
        raise _strange(lock)


def _make_parents(parent: Path) -> list[Path]:
    """Create missing parents; returns those created, deepest first."""
    missing = []
    for folder in (parent, *parent.parents):
        if folder.exists():
            break
        missing.append(folder)
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def _put(partial: Path, path: Path) -> None:
    """Move what was written to ``path``; what was there stays in ``partial``."""
    new, previous = partial / _NEW, partial / _PREVIOUS
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        path.rename(previous)
        try:
            new.rename(path)
        except BaseException:
            previous.rename(path)
            raise


def _restore(path: Path) -> None:
    """Put right what a writer left that was killed between two renames."""
    previous = _partial(path) / _PREVIOUS
    if _is_marked(previous.parent) and previous.is_dir() and not path.exists():
        previous.rename(path)


def _lock_file(path: Path) -> Path:
    return beside(path, "lock")


def _partial(path: Path) -> Path:
    """Where a folder is written, and what it replaces lies for a moment."""
    return beside(path, "partial")


def _sync(folder: Path) -> None:
    """Flush the files to the disk, so that a power cut cannot leave them empty."""
    for path in folder.rglob("*"):
        if path.is_file():
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
