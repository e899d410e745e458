"""The operating system: what it refuses, as errors that say so; streams, folders of work.

Libraries hide a refusal: in the cause of their error, in its text, or behind something else
that they say. So both are looked through, and what is short is looked at.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from eecompile.errors import BackendError, DiskFullError, EecompileError, summary

_PROBE = 2**16  # bytes that a disk must have room for, not to be called full
_TORCH = 2**30  # bytes of addresses that torch needs to be imported and to trace something small
_SPENT = 0.9  # share of the addresses allowed that were once in use where no more can be had


class _Refusal(NamedTuple):
    """A kind of refusal: the errors' numbers, what texts of errors have, and what to do."""

    numbers: tuple[int, ...]
    texts: str
    expected: str
    remedy: str


_MEMORY = _Refusal(
    (errno.ENOMEM,),
    r"bad_alloc|failed to map segment|cannot allocate memory|can't allocate memory",
    "room for the network and its batch",
    "ask for fewer samples at a time, raise a limit of memory (ulimit -v), or use a larger machine",
)
_ROOM = _Refusal(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    r"no space left on device|disk quota exceeded|file too large|\d requested and \d+ written"
    "|iostream error",
    "room for what is written",
    "free some space, or choose another place",
)
_FILES = _Refusal(
    (errno.EMFILE, errno.ENFILE),
    "too many open files",
    "room for the files of an engine set, and of libraries",
    "raise the limit of open files (ulimit -n)",
)
_THREADS = _Refusal(
    (errno.EAGAIN,),
    "can't start new thread|pthread_create|thread constructor failed",
    "threads for libraries",
    "raise the limit of processes (ulimit -u), or set OMP_NUM_THREADS=1",
)

_PLACE = _Refusal(
    (), "", "a place that can be read and written", "check the path and its permissions"
)


def refused(error: BaseException) -> EecompileError | None:
    """What the operating system refused, as a sentence; None where something else is wrong.

    An error of the package stays what it is, unless room, memory, files or threads were short.
    """
    if isinstance(error, DiskFullError):
        return error
    chain = list(_chain(error))
    if memory := next((each for each in chain if isinstance(each, MemoryError)), None):
        return _told(_MEMORY, memory)
    for kind in (_ROOM, _FILES, _THREADS, _MEMORY):
        if found := next((each for each in chain if _is(kind, each)), None):
            return _told(kind, found)
    if not isinstance(error, EecompileError) and _addresses_spent():
        return _told(_MEMORY, error)
    if isinstance(error, OSError):
        return _told(_PLACE, error)
    return None


@contextmanager
def needing_room(place: Path, name: Path | None = None) -> Iterator[None]:
    """What fails in the block as the disk of ``place`` is full raises an error that says so.

    Args:
        place: a folder, or a file, that the block writes.
        name: of what it becomes, for the message.

    Raises:
        DiskFullError: the disk is full, or a file was to be larger than the system allows.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, DiskFullError) or any(_is(_ROOM, each) for each in _chain(error))
        if not known and not _is_full(place):
            raise
        first = (isinstance(error, DiskFullError) and error.__cause__) or error
        said = first.errno if isinstance(first, OSError) else None
        told = os.strerror(said if said in _ROOM.numbers else errno.ENOSPC)
        raise DiskFullError(
            found=f"no room to write {name or place} ({told.lower()})",
            expected=_ROOM.expected,
            remedy=_ROOM.remedy,
        ) from first


@contextmanager
def work_folder(within: Path | None = None) -> Iterator[Path]:
    """A folder for intermediate files, removed afterwards; see :func:`needing_room`.

    Args:
        within: where it is made; None takes the system's folder of temporary files.
    """
    made = tempfile.TemporaryDirectory(prefix="eecompile-", dir=within)
    with made as name, needing_room(Path(name)):
        yield Path(name)


def open_streams() -> None:
    """Standard streams that are closed lead nowhere from now on.

    Else the next file that is opened takes a stream's number, and what a library prints goes
    into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest number that is free: this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def check_docstrings(package: str) -> None:
    """Pass unless Python runs with -OO, which removes the docstrings that ``package`` reads.

    Raises:
        BackendError: it does.
    """
    if sys.flags.optimize > 1:
        raise BackendError(
            found=f"Python's option -OO, which removes the docstrings that {package} needs",
            expected="-O, or none",
            remedy="leave out -OO, and unset PYTHONOPTIMIZE",
        )


def check_torch(addresses: int = _TORCH) -> None:
    """Pass when torch can be imported, which may end the process instead where it cannot.

    Args:
        addresses: bytes that what follows needs at the very least.

    Raises:
        EecompileError: a limit (``ulimit -v``) leaves too few addresses, or the current folder
            was removed.
    """
    limit = _limit("RLIMIT_AS")
    if limit is not None and limit < addresses:
        raise EecompileError(
            found=f"a limit of {limit // 2**20} MiB to this process's addresses",
            expected=f"{addresses // 2**20} MiB at the very least, for torch",
            remedy="raise it (ulimit -v)",
        )
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise EecompileError(
            found="a current folder that has been removed",
            expected="one that is there, from which torch can load its libraries",
            remedy="change to another folder (cd)",
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _is(kind: _Refusal, error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in kind.numbers
    return bool(re.search(kind.texts, str(error), re.IGNORECASE))


def _told(kind: _Refusal, error: BaseException) -> EecompileError:
    what = _said(error) if isinstance(error, OSError) else ""
    if kind is _MEMORY:
        said = what or str(error)
        what = "too little memory" + (f" ({said})" if said else "")
    made = DiskFullError if kind is _ROOM else EecompileError
    return made(found=what or summary(error), expected=kind.expected, remedy=kind.remedy)


def _said(error: OSError) -> str:
    """What the system says, and where."""
    where = f" at {error.filename}" if error.filename else ""
    return f"{(error.strerror or str(error)).lower()}{where}"


def _is_full(place: Path) -> bool:
    """Whether nothing more can be written beside a file, or in a folder."""
    folder = place if place.is_dir() else place.parent
    limit = _limit("RLIMIT_FSIZE")
    with suppress(OSError):  # of files that vanish
        files = [*folder.rglob("*")] if folder is place else [place]
        if limit is not None and any(file.lstat().st_size >= limit for file in files):
            return True
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _ROOM.numbers
    return False


def _addresses_spent() -> bool:
    """Whether this process once had nearly all the addresses that a limit allows it."""
    limit = _limit("RLIMIT_AS")
    if limit is None:
        return False
    with suppress(OSError):
        found = re.search(
            r"VmPeak:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")
        )
        return found is not None and int(found[1]) * 1024 > _SPENT * limit
    return False


def _limit(name: str) -> int | None:
    """A limit of this process; None where there is none."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limit, _ = resource.getrlimit(getattr(resource, name))
    return None if limit == resource.RLIM_INFINITY else limit
