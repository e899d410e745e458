"""What is done in a process of its own: memory, and what cannot run beside the others.

``python -m eecompile.compare.child FOLDER`` does the :class:`Job` in the folder and leaves its
:class:`JobResult` there; what libraries print goes to ``log.txt``.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from eecompile.backends import BACKENDS
from eecompile.children import command, die_with_parent, environment
from eecompile.compare.candidates import Opened, Spec, described, opened
from eecompile.compare.measure import latencies, latency, points, quiet, sentence
from eecompile.compare.report import EvaluationLatency
from eecompile.compiler.backends._tensorrt import SWITCH
from eecompile.compiler.verify import random_inputs
from eecompile.decoding import MalformedError, from_json
from eecompile.measure.machine import short
from eecompile.measure.memory import on_gpus, resident
from eecompile.system import work_folder

_TIMEOUT = 1800  # seconds that it may take


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a child process does.

    Attributes:
        spec: the candidate.
        batches: batch sizes; memory is measured at the largest.
        largest: batch size of :func:`eecompile.compare.measure.points`.
        rounds: see :func:`eecompile.measure.timing.interleaved`.
        memory: measure memory only; otherwise also outputs, saved for polygraphy, and time.
    """

    spec: Spec
    batches: tuple[int, ...]
    largest: int = 1
    rounds: int | None = None
    memory: bool = False


class JobResult(msgspec.Struct, kw_only=True):
    """What a child process found.

    Attributes:
        resident_mib: memory of the host that opening and running every exit added.
        gpu_mib: memory of the GPUs, as their driver counts it; None without GPUs.
        latencies: by depth.
        error: what failed; "" where nothing did.
    """

    resident_mib: float | None = None
    gpu_mib: float | None = None
    latencies: dict[int, tuple[EvaluationLatency, ...]] = {}
    error: str = ""


def memory(spec: Spec, batches: Sequence[int]) -> JobResult:
    """What opening a candidate and running every exit adds; nothing where that fails."""
    with work_folder() as folder:
        return in_child(Job(spec=spec, batches=tuple(batches), memory=True), folder)


def in_child(job: Job, folder: Path) -> JobResult:
    """Do a job in a process of its own, in which polygraphy works with the library it needs.

    Outputs are put into the folder: ``outputs-DEPTH.json`` by polygraphy's ``RunResults.save``.
    """
    (folder / "job.json").write_bytes(msgspec.json.encode(job))
    switch = "1" if job.spec.source == "tensorrt-rtx" else "0"
    try:
        with (folder / "log.txt").open("wb") as log:
            done = subprocess.run(
                command(__name__, str(folder)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment() | {SWITCH: switch},
                timeout=_TIMEOUT,
                check=False,
            )
        return from_json((folder / "answer.json").read_bytes(), JobResult)
    except subprocess.TimeoutExpired:
        return JobResult(error=f"it did not end within {_TIMEOUT} s")
    except (OSError, MalformedError):
        lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines() or [""]
        status = done.returncode
        return JobResult(error=f"its process ended with status {status} ({short(lines[-1])})")


def _in_use() -> tuple[float | None, float | None]:
    """MiB of the host, and of the GPUs."""
    return resident(), on_gpus()


def _import_library(spec: Spec) -> None:
    """Import what the candidate needs: only what opening it adds counts."""
    backend = described(spec).backend
    if backend == "openvino":
        from eecompile.runtime.engines.openvino import import_openvino

        import_openvino()
    else:
        with suppress(ImportError):  # where another library takes its place, it is loaded later
            importlib.import_module(BACKENDS[backend].library if backend in BACKENDS else backend)


def _run_all(
    candidate: Opened, job: Job, before: tuple[float | None, float | None], answer: JobResult
) -> None:
    """Activate and run every exit; the answer is what is in use then that was not before."""
    interface, size = candidate.interface, min(max(job.batches), candidate.engine.max_batch)
    feed = random_inputs(interface, size, interface.process.timesteps // 2, seed=0)
    with ExitStack() as stack:
        for depth in interface.exits:
            stack.enter_context(candidate.runner(depth)).infer(feed, check_inputs=False)
        answer.resident_mib, answer.gpu_mib = (
            None if then is None or now is None else now - then
            for then, now in zip(before, _in_use(), strict=True)
        )


def _memory(job: Job, answer: JobResult) -> None:
    _import_library(job.spec)
    before = _in_use()
    with opened(job.spec) as candidate:
        _run_all(candidate, job, before, answer)


def _outputs(job: Job, folder: Path, answer: JobResult) -> None:
    """Outputs, times and memory; what has been found when something fails is kept."""
    from polygraphy.comparator import Comparator

    spec = job.spec
    with opened(spec) as candidate:
        interface = candidate.interface
        _import_library(spec)
        _run_all(candidate, job, _in_use(), answer)
        for depth in interface.exits:
            results = Comparator.run(
                [candidate.runner(depth)], data_loader=points(interface, [job.largest])
            )
            results.save(str(folder / f"outputs-{depth}.json"))
        for depth in interface.exits:
            for batch in job.batches:
                only = {spec.name: candidate}
                timings = latencies(only, interface, depth, batch, rounds=job.rounds)
                found = latency(batch, timings.checked().seconds[spec.name])
                answer.latencies[depth] = (*answer.latencies.get(depth, ()), found)


def _main(folder: Path) -> None:
    die_with_parent()
    job = from_json((folder / "job.json").read_bytes(), Job)
    answer = JobResult()
    try:
        with quiet():
            if job.memory:
                _memory(job, answer)
            else:
                _outputs(job, folder, answer)
    except Exception as error:  # a library's errors share no base class
        answer.error = sentence(error)
    (folder / "answer.json").write_bytes(msgspec.json.encode(answer))
    os._exit(0)  # a library that crashes as it is unloaded has answered all the same


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
