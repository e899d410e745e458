"""What the operating system refuses is told as what it is."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eecompile.errors import BackendError, DiskFullError, UsageError
from eecompile.store.folders import new_folder
from eecompile.system import needing_room, refused, work_folder


def wrapped(first: Exception) -> Exception:
    """The error of a library that hides another one."""
    try:
        try:
            raise first
        except Exception as error:
            raise BackendError(found="a", expected="b", remedy="check that operator") from error
    except BackendError as error:
        return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), "found no space left on device at"),
        (OSError("12544 requested and 2016 written"), "free some space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "free some space"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "ulimit -n"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (MemoryError(), "found too little memory; "),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
        (RuntimeError("std::bad_alloc"), "found too little memory (std::bad_alloc)"),
    ],
)
def test_what_is_short_is_named(error: Exception, words: str) -> None:
    for each in (error, wrapped(error)):
        told = refused(each)
        assert words in str(told)
        assert "operator" not in str(told)


def test_other_errors_are_not_the_systems() -> None:
    assert refused(ValueError("x")) is None
    assert refused(wrapped(ValueError("x"))) is None
    assert refused(wrapped(FileNotFoundError(errno.ENOENT, "No such file"))) is None
    told = refused(PermissionError(errno.EACCES, "Permission denied", "a"))
    assert "found permission denied at a; expected a place" in str(told)


def fill(folder: Path, size: int) -> None:
    """What a library does that does not say that the disk is full."""
    try:
        (folder / "content").write_bytes(bytes(size))
    except OSError as error:
        raise RuntimeError("cannot serialise") from ValueError(str(error.errno))


def limited(function: object, *arguments: object) -> BaseException | None:
    """What a function raises where no file may be larger than 1,000 bytes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        function(*arguments)  # type: ignore[operator]
    except Exception as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return None


@pytest.mark.posix
def test_a_library_that_fails_on_a_full_disk_need_not_say_so(tmp_path: Path) -> None:
    def write(size: int) -> None:
        with new_folder(tmp_path / "out", replaces=False) as folder, work_folder(folder) as work:
            fill(work, size)

    error = limited(write, 2000)
    assert isinstance(error, DiskFullError)
    assert f"no room to write {tmp_path / 'out'} (no space left on device)" in str(error)
    assert list(tmp_path.iterdir()) == []

    def fail() -> None:
        with needing_room(tmp_path):
            raise UsageError(found="a", expected="b", remedy="c")

    with pytest.raises(UsageError):
        fail()


@pytest.mark.posix
def test_a_child_does_not_outlive_its_parent() -> None:
    child = "import time; from eecompile.children import die_with_parent as d; d(); "
    child += "print('ready', flush=True); time.sleep(60)"
    parent = "import subprocess, sys\n"
    parent += f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
    parent += "print(child.pid, flush=True)\nchild.wait()"
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        assert process.stdout.readline() == "ready\n"
        process.kill()
    for _ in range(100):
        try:
            if (Path("/proc") / str(number) / "stat").read_text().rpartition(") ")[2][0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    os.kill(number, signal.SIGKILL)
    pytest.fail("it lives on")
