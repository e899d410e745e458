"""Engine sets opened in a process of their own first, which is all that a dying library costs.

``python -m eecompile.runtime.isolated FOLDER...`` reads a :class:`_Job` from its input, opens the
engine sets, evaluates each exit, and tells on its output, line by line, what it is about to do.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from eecompile.children import Child, command, die_with_parent, signal_name
from eecompile.decoding import MalformedError, from_json
from eecompile.errors import (
    BackendError,
    EecompileError,
    NonFiniteError,
    UsageError,
    one_line,
    summary,
)
from eecompile.programs.interface import Interface
from eecompile.runtime.companions import Companions
from eecompile.runtime.engines._files import FILES
from eecompile.runtime.opening import engine_from_manifests
from eecompile.runtime.protocol import Engine
from eecompile.runtime.request import SampleRequest, checked, filled
from eecompile.store.manifest import EngineManifest

SECONDS = 600.0
"""How long a check may take, unless told otherwise."""
_KINDS = {kind.__name__: kind for kind in (BackendError, NonFiniteError, UsageError)}
_EXPECTED = "an engine set that can be opened and evaluated"
_REMEDY = "build it again with the libraries that are installed here"


class _Job(msgspec.Struct, frozen=True):
    """What a process opens, and who started it; folders, of any encoding, are its arguments."""

    parent: int
    manifests: dict[str, EngineManifest]
    threads: int | None
    shared_pool: bool


class _Line(msgspec.Struct, omit_defaults=True):
    """What the process is about to do, that it has ended well, or why not.

    Attributes:
        error: a kind of EecompileError, and what it says; or "" and another library's exception.
    """

    doing: str = ""
    ended: bool = False
    error: tuple[str, str, str, str] | None = None


def check_isolated(
    folders: Sequence[Path],
    manifests: Mapping[str, EngineManifest],
    threads: int | None = None,
    *,
    shared_pool: bool = False,
    seconds: float = SECONDS,
) -> None:
    """Pass when another process has opened the engine sets and evaluated each of their exits.

    Every file that this machine uses is opened, those of companions too; each exit is evaluated
    at the smallest batch and at one sample more, on random numbers, with what the conditions have
    as default.

    Args:
        folders: of the engine sets.
        manifests: of :func:`eecompile.runtime.opening.manifests_by_target`.
        threads: see :meth:`eecompile.runtime.sampler.Sampler.open`, as for ``shared_pool``.
        shared_pool: of ONNX Runtime.
        seconds: that it may take.

    Raises:
        BackendError: a library refuses a file, fails, hangs or ends the process; or no process
            can be started.
        UsageError: ``seconds`` is no positive number.
    """
    if not 0 < seconds < float("inf"):
        raise UsageError(
            found=f"a limit of {seconds:g} s",
            expected="a positive number of seconds",
            remedy="choose another",
        )
    job = msgspec.json.encode(_Job(os.getpid(), dict(manifests), threads, shared_pool))
    deadline = time.monotonic() + seconds
    with _started(folders, job) as child:
        status = child.status(deadline)
        lines = _lines(child.output())
        words = one_line(child.last_words())
    last = lines[-1] if lines else _Line()
    if last.ended:
        return
    kind, found, expected, remedy = last.error or ("", "", _EXPECTED, _REMEDY)
    if not kind:
        doing = next((line.doing for line in reversed(lines) if line.doing), "starting")
        if last.error is None:
            found, remedy = _end(status, words, seconds)
        libraries = " or ".join(dict.fromkeys(each.target.backend for each in manifests.values()))
        found = f"{libraries} {found} while {doing}"
    raise _KINDS.get(kind, BackendError)(found=found, expected=expected, remedy=remedy)


def _end(status: int | None, words: str, seconds: float) -> tuple[str, str]:
    """How a process ended without an answer, and what to do about it."""
    if status is None:
        return f"hanging, for {seconds:g} s,", f"{_REMEDY}, or allow more seconds"
    said = f" ({words})" if words else ""
    if status >= 0:
        return f"ending its process with status {status}{said}", _REMEDY
    name = signal_name(status)
    if name == "SIGKILL":  # so Linux ends a process for want of memory
        return f"killed (SIGKILL){said}", f"free memory if that is what it lacks, or {_REMEDY}"
    return f"dying of {name}{said}", _REMEDY


def _started(folders: Sequence[Path], job: bytes) -> Child:
    """The process; a BackendError where none can be started."""
    problem = ""
    if not sys.executable or vars(sys).get("frozen"):
        problem = "this program is no Python interpreter"
    else:
        try:
            return Child(command(__name__, *(str(each.absolute()) for each in folders)), job)
        except OSError as error:
            problem = str(error)
    raise BackendError(
        found=f"no process of its own for the engine set ({problem})",
        expected="a Python interpreter at sys.executable that can be started",
        remedy="check the engine set with 'eecompile inspect ENGINES --check' beforehand",
    )


def _lines(output: bytes) -> list[_Line]:
    lines = []
    for line in output.splitlines():
        try:
            lines.append(from_json(line, _Line))
        except MalformedError:  # it died within it
            break
    return lines


class _Telling(logging.Handler):
    """Says what file is opened."""

    def __init__(self, say: Callable[[_Line], object]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(_Line(doing=record.getMessage()))


def _serve(folders: Sequence[Path]) -> None:
    job = from_json(sys.stdin.buffer.read(), _Job)
    die_with_parent(job.parent)
    _leave_no_core()
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)  # libraries print where they like

        def say(line: _Line) -> None:
            answers.write(msgspec.json.encode(line) + b"\n")

        FILES.addHandler(_Telling(say))
        FILES.setLevel(logging.DEBUG)
        try:
            _try(folders, job, say)
        except EecompileError as error:
            name = type(error).__name__
            say(_Line(error=(name, error.found, error.expected, error.remedy)))
        except Exception as error:  # a library's errors share no base class
            say(_Line(error=("", f"failing with {one_line(summary(error))}", _EXPECTED, _REMEDY)))
        else:
            say(_Line(ended=True))
    os._exit(0)  # what a library does as it is unloaded does not matter


def _try(folders: Sequence[Path], job: _Job, say: Callable[[_Line], object]) -> None:
    """Open everything, and evaluate each exit."""
    manifests = job.manifests
    whole = engine_from_manifests(folders, manifests, job.threads, shared_pool=job.shared_pool)
    with whole:
        for folder, (name, manifest) in zip(folders, manifests.items(), strict=True):
            engine, batch = whole.member(name), manifest.target.batch
            engine.open_all()
            segments = [segment.file for segment in manifest.segments]
            for size in sorted({batch.min, min(batch.min + 1, batch.max)}):
                for plan in manifest.exits:
                    files = ", ".join(segments[index] for index in plan.segments)
                    doing = f"evaluating exit {plan.depth} at batch size {size} ({files})"
                    say(_Line(doing=f"{doing} of {folder}"))
                    _evaluate(engine, manifest.interface, plan.depth, size)
            with Companions(folder, manifest, job.threads) as companions:
                companions.open_all()


def _evaluate(engine: Engine, interface: Interface, depth: int, size: int) -> None:
    given = checked(interface, filled(interface, SampleRequest(n=size, guidance=1.0)))
    noise = np.random.default_rng(0).standard_normal((size, *given.shape), np.float32)
    time_ = np.full(size, interface.process.timesteps / 2, np.float32)
    engine.evaluate(depth, noise, time_, given.conditions)


def _leave_no_core() -> None:
    """Let the system keep no image of memory where this process dies."""
    try:
        import resource
    except ImportError:  # of Unix alone
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


if __name__ == "__main__":
    _serve([Path(each) for each in sys.argv[1:]])
