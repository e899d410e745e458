"""Measuring: time in turns, memory in a process of its own, and what cannot run in this process.

``python -m eecompile.compare.measure JOB FOLDER`` does a :class:`Job` and leaves its
:class:`Answer` in the folder; what libraries print goes to ``log.txt`` there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from eecompile.compare.candidates import Opened, Spec, opened
from eecompile.compare.report import Latency
from eecompile.compiler.verify import random_inputs
from eecompile.errors import BackendError, EecompileError
from eecompile.interrupt import check
from eecompile.probes import short
from eecompile.runtime.interface import Interface

__all__ = [
    "Answer",
    "Job",
    "Timings",
    "in_child",
    "interleaved",
    "latencies",
    "latency",
    "points",
    "quiet",
    "resident_mib",
    "sentence",
]

Point = dict[str, NDArray[np.generic]]
Progress = Callable[[str, int, int], None]
_LEAST, _MOST = 7, 50  # rounds where their number is not given
_TIMEOUT = 1800  # seconds that a child process may take
_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"  # of polygraphy, read when it is imported


class Timings(NamedTuple):
    """Seconds by candidate, one a round; and what failed, with its error."""

    seconds: dict[str, list[float]]
    failures: dict[str, Exception]


def interleaved(
    actions: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    seconds: float = 2.0,
    least: int = _LEAST,
    twice: bool = False,
    warm: bool = False,
) -> Timings:
    """Time actions in turns, so that a machine that slows down slows all of them.

    Each is done once before it counts, unless that has been. Every round begins with
    another action.

    Args:
        actions: by name.
        rounds: how often each is timed; None for at least ``least`` and at most 50 rounds,
            until ``seconds`` are over.
        seconds: for all rounds together, where ``rounds`` is None.
        least: smallest number of rounds, where ``rounds`` is None.
        twice: do each action twice a turn, and time the second time: its weights are then
            in the caches, as they are while one engine samples.
        warm: they have been done once already.
    """
    timings = Timings({name: [] for name in actions}, {})
    for name in () if warm else actions:
        _turn(name, actions[name], timings, counts=False)
    started, done = time.perf_counter(), 0
    while len(timings.failures) < len(actions):
        over = time.perf_counter() - started > seconds
        if done >= (_MOST if rounds is None else rounds):
            break
        if rounds is None and over and done >= least:
            break
        names = list(actions)
        for name in names[done % len(names) :] + names[: done % len(names)]:
            if twice:
                _turn(name, actions[name], timings, counts=False)
            _turn(name, actions[name], timings)
        done += 1
    return timings


def _turn(
    name: str, action: Callable[[], object], timings: Timings, *, counts: bool = True
) -> None:
    check()
    if name in timings.failures:
        return
    started = time.perf_counter()
    try:
        action()
    except Exception as error:  # a library's errors share no base class
        check()
        timings.failures[name] = error
        return
    if counts:
        timings.seconds[name].append(time.perf_counter() - started)


def latency(batch: int, seconds: Sequence[float]) -> Latency:
    """Median and 90th percentile, in milliseconds."""
    return Latency(
        batch=batch,
        median=1e3 * float(np.median(seconds)),
        p90=1e3 * float(np.quantile(seconds, 0.9)),
        rounds=len(seconds),
    )


def latencies(
    candidates: Mapping[str, Opened],
    interface: Interface,
    depth: int,
    batch: int,
    *,
    rounds: int | None,
    seconds: float = 2.0,
) -> Timings:
    """Seconds of one exit at one batch size, of all candidates that take such batches."""
    feed = random_inputs(interface, batch, interface.process.timesteps // 2, seed=batch)
    failures: dict[str, Exception] = {}
    with ExitStack() as stack:
        actions = {}
        for name, candidate in candidates.items():
            if candidate.max_batch < batch:
                continue
            try:
                runner = stack.enter_context(candidate.runners[depth])
            except Exception as error:  # a library's errors share no base class
                check()
                failures[name] = error
            else:
                actions[name] = _inference(runner, feed)
        timings = interleaved(actions, rounds=rounds, seconds=seconds, twice=True)
    return Timings(timings.seconds, timings.failures | failures)


def _inference(runner: Any, feed: Point) -> Callable[[], object]:
    return lambda: runner.infer(feed, check_inputs=False)


def points(interface: Interface, batches: Sequence[int]) -> list[Point]:
    """Inputs at seven times t from 0 to T - 1, two samples each.

    At the middle also the largest batch. The input is noise at every time, as in the
    compiler's own verification.
    """
    last = interface.process.timesteps - 1
    times = sorted({round(time) for time in np.linspace(0, last, 7)})
    made = [random_inputs(interface, 2, time, seed=index) for index, time in enumerate(times)]
    middle = times[len(times) // 2]
    made.append(random_inputs(interface, max(batches), middle, seed=len(times)))
    return made


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a child process does.

    Attributes:
        spec: the candidate.
        batches: batch sizes; memory is measured at the largest.
        largest: batch size of :func:`points`.
        rounds: see :func:`interleaved`; with ``memory`` of no use.
        memory: measure memory; otherwise outputs, which are saved for polygraphy, and time.
    """

    spec: Spec
    batches: tuple[int, ...]
    largest: int = 1
    rounds: int | None = None
    memory: bool = False


class Answer(msgspec.Struct, kw_only=True):
    """What a child process found.

    Attributes:
        resident_mib: memory that opening and running every exit added.
        latencies: by depth.
        error: what failed; "" where nothing did.
    """

    resident_mib: float | None = None
    latencies: dict[int, tuple[Latency, ...]] = {}
    error: str = ""


def resident_mib(spec: Spec, batches: Sequence[int]) -> float | None:
    """MiB that opening a candidate and running every exit adds; None where that fails."""
    with TemporaryDirectory() as folder:
        job = Job(spec=spec, batches=tuple(batches), memory=True)
        return in_child(job, Path(folder)).resident_mib


def in_child(job: Job, folder: Path) -> Answer:
    """Do a job in a process of its own, in which polygraphy works with the library it needs.

    Args:
        job: what to do.
        folder: for the results: ``outputs-DEPTH.json`` by polygraphy's ``RunResults.save``.
    """
    (folder / "job.json").write_bytes(msgspec.json.encode(job))
    switch = "1" if job.spec.source == "tensorrt-rtx" else "0"
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": path, _SWITCH: switch},
        )
        try:
            status = process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            return Answer(error=f"it did not end within {_TIMEOUT} s")
        finally:
            process.kill()
            process.wait()
    try:
        return msgspec.json.decode((folder / "answer.json").read_bytes(), type=Answer)
    except (OSError, msgspec.DecodeError):
        lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines() or [""]
        return Answer(error=f"its process ended with status {status} ({short(lines[-1])})")


def sentence(error: Exception) -> str:
    """What failed, in one line."""
    text = str(error) if isinstance(error, EecompileError) else f"{type(error).__name__}: {error}"
    return short(text, 300)


@contextmanager
def quiet() -> Iterator[None]:
    """Polygraphy prints nothing: what fails is raised, and told by us."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield


def _resident() -> float:
    """MiB that the process has in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError as error:
        raise BackendError(
            found="no /proc/self/statm",
            expected="Linux, to measure memory",
            remedy="compare on Linux to see it",
        ) from error
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _import_library(spec: Spec) -> None:
    """Import what the candidate needs: only what opening it adds counts."""
    import importlib

    from eecompile.compare.candidates import described

    backend = described(spec).backend
    if backend == "openvino":
        from eecompile.runtime.openvino import import_openvino

        import_openvino()
    else:
        importlib.import_module(backend.replace("-", "_"))


def _memory(job: Job) -> Answer:
    _import_library(job.spec)
    before, batch = _resident(), max(job.batches)
    with opened(job.spec) as candidate, ExitStack() as stack:
        interface = candidate.interface
        size = min(batch, candidate.max_batch)
        feed = random_inputs(interface, size, interface.process.timesteps // 2, seed=0)
        for runner in candidate.runners.values():
            stack.enter_context(runner).infer(feed, check_inputs=False)
        return Answer(resident_mib=_resident() - before)


def _outputs(job: Job, folder: Path) -> Answer:
    from polygraphy.comparator import Comparator

    answer, spec = Answer(), job.spec
    with opened(spec) as candidate:
        interface = candidate.interface
        for depth, runner in candidate.runners.items():
            results = Comparator.run([runner], data_loader=points(interface, [job.largest]))
            results.save(str(folder / f"outputs-{depth}.json"))
        for depth in candidate.runners:
            found = []
            for batch in job.batches:
                only = {spec.name: candidate}
                timings = latencies(only, interface, depth, batch, rounds=job.rounds)
                for error in timings.failures.values():
                    raise error
                found.append(latency(batch, timings.seconds[spec.name]))
            answer.latencies[depth] = tuple(found)
    return answer


def _main(folder: Path) -> None:
    job = msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)
    try:
        with quiet():
            answer = _memory(job) if job.memory else _outputs(job, folder)
    except Exception as error:  # a library's errors share no base class
        answer = Answer(error=sentence(error))
    (folder / "answer.json").write_bytes(msgspec.json.encode(answer))
    os._exit(0)  # a library that crashes as it is unloaded has answered all the same


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
