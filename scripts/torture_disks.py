"""Disks: full, read-only, vanishing and slow ones, other people's files, links, clocks that jump.

Where the process may mount, each trial has a small disk in memory (tmpfs) in a mount namespace
of its own, which ends with the process: no mount can stay. Elsewhere a limit of file sizes takes
its place, and what needs a disk is skipped. Permissions are tried without the capabilities that
let root pass them. There is no slow disk without special tools: commands are stopped for a
moment, again and again, instead.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from torture_commands import COMMANDS, NO_RESULT, Ended, Trial, environment, prepare, run, state
from torture_trial import Outcome

__all__ = ["SMALL", "TRIALS", "prepare", "trial"]

_ORDER = ("sample", "build", "evaluate", "export", "build for OpenVINO", "tune", "compare", "build")
_WORDS = ("no room", "no space left", "file too large", "read-only", "nothing may be written")
_ROOM = 64 * 2**20  # bytes, plenty
_NAMESPACE, _PRIVATE, _READ_ONLY, _REMOUNT, _DETACH = 0x20000, 0x44000, 1, 32, 2


def trial(work: Path, number: int, seed: int) -> Outcome:
    """One command on one kind of disk, and again once all is well."""
    draws = random.Random(f"{seed} disks {number}")
    kind = list(KINDS)[number % len(KINDS)]
    name = _ORDER[number // len(KINDS) % len(_ORDER)]
    made = Trial(work, number, name, kind)
    needs_disk = kind in ("full", "vanishing", "another file system")
    if needs_disk and not mounts():
        return made.end("skipped: it may not mount", "")
    disk = made.folder / "disk"
    disk.mkdir()
    try:
        found = KINDS[kind](made, disk, draws)
    finally:
        if needs_disk:
            _libc().umount2(os.fsencode(disk), _DETACH)
    return made.end(*found)


def _full(made: Trial, disk: Path, draws: random.Random) -> tuple[str, str]:
    """The disk has room for a part of what is written."""
    size = draws.randint(4096, 3 * made.expected.bytes)
    _mount(disk, _ROOM)
    replaces = _on(made, disk, draws)
    used = sum(path.lstat().st_size + 4096 for path in disk.rglob("*"))
    _mount(disk, used + size, _REMOUNT)
    ended, fault = _tried(made, replaces)
    _mount(disk, _ROOM, _REMOUNT)
    return ended, fault or made.again()


def _limited(made: Trial, disk: Path, draws: random.Random) -> tuple[str, str]:
    """No file may become larger than so many bytes."""
    largest = draws.randint(100, made.expected.bytes)
    replaces = _on(made, disk, draws)
    ended, fault = _tried(made, replaces, preexec_fn=lambda: _limit(resource.RLIMIT_FSIZE, largest))
    return ended, fault or made.again()


def _read_only(made: Trial, disk: Path, draws: random.Random) -> tuple[str, str]:
    """Nothing may be written, by its permissions or as the disk is so."""
    replaces = _on(made, disk, draws)
    mounted = mounts() and draws.random() < 0.5
    if mounted:
        shutil.copytree(disk, disk.with_name("copy"))
        _mount(disk, _ROOM)
        shutil.copytree(disk.with_name("copy"), disk, dirs_exist_ok=True)
        _mount(disk, _ROOM, _REMOUNT | _READ_ONLY)
    else:
        disk.chmod(0o555)
    try:
        ended, fault = _tried(made, replaces, before=() if mounted else _plain())
    finally:
        if mounted:
            _mount(disk, _ROOM, _REMOUNT)
        disk.chmod(0o755)
    try:
        return ended, fault or made.again()
    finally:
        _libc().umount2(os.fsencode(disk), _DETACH)


def _foreign(made: Trial, disk: Path, draws: random.Random) -> tuple[str, str]:
    """Files of another user: the older result, which others may not write."""
    if os.getuid() or not _plain():
        return "skipped: it may not give files to others", ""
    replaces = _on(made, disk, draws)
    for path in disk.rglob("*"):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    sticky = draws.random() < 0.5
    if sticky:  # as /tmp: only the owner may replace a file
        os.chown(disk, 65534, 65534)
        disk.chmod(0o1777)
    ended, fault = _tried(made, replaces, before=_plain())
    for path in (disk, *disk.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
    return ended, fault or made.again()


def _vanishing(made: Trial, disk: Path, draws: random.Random) -> tuple[str, str]:
    """The disk, or what the command is given, goes away while it runs."""
    _mount(disk, _ROOM)
    _on(made, disk, draws)
    given = made.given
    made.given = Path(shutil.copytree(given, made.folder / "given"))
    victim = disk if draws.random() < 0.5 else made.given
    delay = draws.uniform(0, made.expected.seconds)

    def vanish(_: subprocess.Popen[bytes]) -> None:
        time.sleep(delay)
        if victim is disk:
            _libc().umount2(os.fsencode(disk), _DETACH)
        else:
            victim.rename(made.folder / "gone")

    ended, fault = _ended(made, during=vanish)
    if victim is disk and fault == NO_RESULT:
        ended, fault = "the result went with the disk", ""
    made.given = given
    with suppress(FileNotFoundError):
        (made.folder / "gone").rename(made.folder / "given")
    made.out.mkdir(exist_ok=True)
    return ended, fault or made.again()


def _slow(made: Trial, disk: Path, draws: random.Random) -> tuple[str, str]:
    """The command is stopped now and then, as it is by a disk that does not answer."""

    def stop(process: subprocess.Popen[bytes]) -> None:
        for _ in range(5):
            for number in (signal.SIGSTOP, signal.SIGCONT):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                time.sleep(draws.uniform(0, 0.3))

    _on(made, disk, draws)
    ended, fault = _ended(made, during=stop)
    return ended, fault or ("" if ended == "the same result" else f"it {ended}")


def _elsewhere(made: Trial, disk: Path, draws: random.Random) -> tuple[str, str]:
    """Temporary files, the output or what is given lie on another file system."""
    _mount(disk, _ROOM)
    places = [made.folder / "tmp", disk]
    made.out, temporary = draws.sample(places, 2)
    ended, fault = _ended(made, env=environment(TMPDIR=str(temporary)))
    return ended, fault or ("" if ended == "the same result" else f"it {ended}")


def _linked(made: Trial, disk: Path, draws: random.Random) -> tuple[str, str]:
    """Folders are reached through links; a link to somebody's file is at the output's place."""
    given = made.folder / "given"
    given.symlink_to(made.given)
    made.given = given
    _on(made, disk, draws)
    link = made.folder / "link"
    link.symlink_to(made.out)
    made.out = link
    precious = made.folder / "precious"
    precious.write_text("years")
    planted = draws.random() < 0.5
    output = link / made.command.output
    if planted and not os.path.lexists(output):
        output.symlink_to(precious)
    ended, fault = _ended(made)
    if ended == "refused" and output.is_symlink():  # neither a result nor nothing
        fault = ""
    if precious.read_text() != "years":
        fault = "a file outside was written"
    if ended == "refused" and not planted:
        fault = "it is refused"
    return ended, fault


def _jumping(made: Trial, disk: Path, draws: random.Random) -> tuple[str, str]:
    """Files are of 1970, or of the next century: clocks that were set meanwhile."""
    _on(made, disk, draws)
    made.given = Path(shutil.copytree(made.given, made.folder / "given"))
    for path in (*made.given.rglob("*"), *made.out.rglob("*"), made.out):
        when = draws.choice((0, 1, 2**31, 4102444800))
        os.utime(path, (when, when), follow_symlinks=False)
    ended, fault = _ended(made)
    return ended, fault or ("" if ended == "the same result" else f"it {ended}")


KINDS: dict[str, Callable[[Trial, Path, random.Random], tuple[str, str]]] = {
    "full": _full,
    "file sizes limited": _limited,
    "read-only": _read_only,
    "another user's files": _foreign,
    "vanishing": _vanishing,
    "slow": _slow,
    "another file system": _elsewhere,
    "links": _linked,
    "clocks": _jumping,
}
TRIALS, SMALL = 16 * len(KINDS), 6


def _on(made: Trial, disk: Path, draws: random.Random) -> bool:
    """Let the output lie on the disk, maybe an older one in its place; whether there is one."""
    made.out = disk
    if older := bool(made.command.older) and draws.random() < 0.5:
        made.lay_older()
    return older


def _ended(made: Trial, **options: object) -> tuple[str, str]:
    """Run the command; how it ended, and what is wrong with that."""
    env = environment(TMPDIR=str(made.folder / "tmp"))
    return made.judged(run(made.line, made.folder, **{"env": env, **options}))


def _tried(made: Trial, replaces: bool, **options: object) -> tuple[str, str]:
    """The same where it may be refused, and must then say why; the older result is as it was."""
    env = environment(TMPDIR=str(made.folder / "tmp"))
    done: Ended = run(made.line, made.folder, **{"env": env, **options})
    ended, fault = made.judged(done)
    told = any(word in done.err.lower() for word in (*_WORDS, "permi", "which eecompile did not"))
    if ended == "refused" and not told:
        fault = f"it does not say why: {done.said}"
    found, wrong = state(made.command, made.out, made.known)
    if replaces and found == "nothing":
        wrong = "what was there is lost"
    return ended, fault or wrong


def _limit(which: int, value: int) -> None:
    resource.setrlimit(which, (value, value))


@cache
def _plain() -> Sequence[str]:
    """What a command begins with to run as somebody whom permissions bind; () if it cannot."""
    if os.getuid():
        return ("env",)
    if (program := shutil.which("setpriv")) is None:
        return ()
    return (program, "--bounding-set=-all", "--inh-caps=-all")


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def mounts() -> bool:
    """Whether this process can mount; from now on, what it does is seen by its children only."""
    if sys.platform != "linux" or _libc().unshare(_NAMESPACE):
        return False
    return not _libc().mount(b"none", b"/", None, _PRIVATE, None)


def _mount(place: Path, size: int, flags: int = 0) -> None:
    """Mount a disk in memory of so many bytes, or change it."""
    options = f"size={size},nr_inodes=0"
    if _libc().mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(place))


assert set(_ORDER) <= set(COMMANDS)
