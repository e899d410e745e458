"""Surroundings: what the system gives a command, or does not; names of folders; low limits."""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from torture_commands import COMMANDS, Ended, Trial, environment, prepare, run
from torture_trial import Outcome

__all__ = ["SMALL", "TRIALS", "prepare", "trial"]

_ORDER = ("sample", "build", "evaluate", "export", "compare", "tune", "build for OpenVINO")
_LOOKS = (
    ("inspect", "{given}/cpu", "--json"),
    ("inspect", "{given}/bundle"),
    ("inspect", "{given}/cpu", "--program"),
    ("--help",),
    ("--version",),
)


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a command runs in.

    Attributes:
        options: of :func:`torture_commands.run`.
        env: variables that differ; None removes one.
        name: of the folder of outputs.
        refused: whether it may fail with a sentence.
    """

    options: dict[str, Any] = {}
    env: dict[str, str | None] = {}
    name: str = ""
    refused: bool = False


def trial(work: Path, number: int, seed: int) -> Outcome:
    """One command in one kind of surroundings; in the same, one that only looks."""
    draws = random.Random(f"{seed} surroundings {number}")
    kind = list(KINDS)[number % len(KINDS)]
    made = Trial(work, number, _ORDER[number // len(KINDS) % len(_ORDER)], kind)
    given = KINDS[kind](draws, made)
    if given.name:
        made.out = made.folder / given.name
        made.out.mkdir(parents=True)  # "[/]" is a folder in another
    env = {"TMPDIR": str(made.folder / "tmp"), **given.env}
    changed = {**environment(), **env}
    options = {"env": {k: v for k, v in changed.items() if v is not None}, **given.options}
    ended, fault = made.judged(run(made.line, made.folder, **options))
    if ended == "refused" and not given.refused:
        fault = "it is refused"
    look = [each.format(given=made.given) for each in draws.choice(_LOOKS)]
    looked = run(look, made.folder, **options)
    if not fault and not _fine(looked, given.refused):
        fault = f"{look[0]}: {looked.said}"
    return made.end(ended, fault)


def _fine(looked: Ended, refused: bool) -> bool:
    """Whether a command that only looks ended as it may."""
    if "Traceback" in looked.err or "hangs" in looked.err:
        return False
    return looked.status == 0 or (refused and looked.typed)


def _streams(draws: random.Random, made: Trial) -> Surroundings:
    """Some of the standard streams are closed."""
    closed = draws.choice(((1,), (2,), (1, 2), (0, 1), (0, 1, 2)))

    def close() -> None:
        for number in closed:
            os.close(number)

    return Surroundings(options={"preexec_fn": close})


def _full_output(draws: random.Random, made: Trial) -> Surroundings:
    """Nothing can be printed: what is written is whole all the same."""
    return Surroundings(options={"stdout": os.open("/dev/full", os.O_WRONLY)}, refused=True)


def _optimised(draws: random.Random, made: Trial) -> Surroundings:
    """Python without asserts and docstrings."""
    if draws.random() < 0.5:
        return Surroundings(options={"options": ("-OO",)}, refused=made.name == "compare")
    return Surroundings(env={"PYTHONOPTIMIZE": "2"}, refused=made.name == "compare")


def _bare(draws: random.Random, made: Trial) -> Surroundings:
    """No HOME, and nearly no other variable."""
    kept = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "TMPDIR", "PYTHONDONTWRITEBYTECODE")
    return Surroundings(env={name: None for name in os.environ if name not in kept})


def _ascii(draws: random.Random, made: Trial) -> Surroundings:
    """A language without letters beyond ASCII."""
    plain: dict[str, str | None] = {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    more = draws.choice(({"PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}, {}))
    return Surroundings(env=plain | more, name=draws.choice(("", "données")))


def _terminal(draws: random.Random, made: Trial) -> Surroundings:
    """A terminal of few columns that can do nothing."""
    columns = draws.choice(("0", "1", "20", "x", "-5", "100000"))
    return Surroundings(env={"TERM": draws.choice(("dumb", "", "none")), "COLUMNS": columns})


def _named(draws: random.Random, made: Trial) -> Surroundings:
    """Folders with names that shells and encodings stumble on."""
    names = (
        "a b  c",
        "Ünïcödé 日本 🙂",
        "-x",
        "'q\" $HOME *",
        "new\nline",
        "[/]",
        "%s{0}",
        "b\udcff",
    )
    name = draws.choice(names)
    return Surroundings(name=name, refused=name == names[-1])  # what is no UTF-8 may be


def _long(draws: random.Random, made: Trial) -> Surroundings:
    """Names of 240 to 255 bytes: of the output itself, and of the folder it lies in."""
    length = draws.randint(240, 255)
    output = Path(made.command.output)
    letter = draws.choice(("a", "é"))
    stem = letter * ((length - len(output.suffix)) // len(letter.encode()))
    long = stem + output.suffix
    made.command = made.command._replace(
        arguments=tuple(each.replace(output.name, long) for each in made.command.arguments),
        output=long,
    )
    made.expected.names = [long if n == output.name else n for n in made.expected.names]
    return Surroundings(name="b" * draws.randint(240, 255))


def _few_files(draws: random.Random, made: Trial) -> Surroundings:
    """A low limit of open files."""
    return _limited(resource.RLIMIT_NOFILE, draws.randint(8, 40))


def _few_threads(draws: random.Random, made: Trial) -> Surroundings:
    """A low limit of processes and threads, for a user who is not root."""
    return _limited(resource.RLIMIT_NPROC, draws.randint(1, 40))


def _few_addresses(draws: random.Random, made: Trial) -> Surroundings:
    """Little address space."""
    return _limited(resource.RLIMIT_AS, draws.randint(200, 2000) * 2**20)


def _limited(which: int, value: int) -> Surroundings:
    def limit() -> None:
        resource.setrlimit(which, (value, value))

    return Surroundings(options={"preexec_fn": limit}, refused=True)


def _relative(draws: random.Random, made: Trial) -> Surroundings:
    """The command runs in a folder that has been removed."""
    gone = made.folder / "gone"

    def leave() -> None:
        gone.mkdir()
        os.chdir(gone)
        shutil.rmtree(gone)

    return Surroundings(options={"preexec_fn": leave}, refused=True)


KINDS: dict[str, Callable[[random.Random, Trial], Surroundings]] = {
    "closed streams": _streams,
    "nowhere to print": _full_output,
    "-OO": _optimised,
    "long names": _long,
    "no HOME": _bare,
    "LANG=C": _ascii,
    "a poor terminal": _terminal,
    "odd names": _named,
    "few open files": _few_files,
    "few threads": _few_threads,
    "few addresses": _few_addresses,
    "a folder that is gone": _relative,
}
TRIALS, SMALL = 12 * len(KINDS), 6
assert set(_ORDER) <= set(COMMANDS)
