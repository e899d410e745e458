"""What ``eecompile doctor`` shows: the machine, backends, tools, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from eecompile.backends import BACKENDS
from eecompile.doctor.examine import BackendStatus, MachineReport
from eecompile.doctor.probes import Answer
from eecompile.measure.machine import Gpu, eight_bit_products
from eecompile.show.table import FactList, Line, Part, Table, Toned, size, words


def doctor_parts(report: MachineReport) -> list[Part]:
    """All that ``eecompile doctor`` shows."""
    facts = {
        "eecompile": f"{report.eecompile}, Python {report.python}, {report.system}",
        "CPU": f"{report.cpu.model}, {report.cpu.cores} cores",
        "": ", ".join(report.cpu.instructions) or "no instruction set that matters here",
    }
    if report.speeds:
        shown = ", ".join(f"{name} {speed:.2g}" for name, speed in report.speeds.items())
        facts["speed"] = f"of matrix products over FP32's: {shown}"
    if not eight_bit_products(report.cpu):
        facts["INT8"] = "not advised: the processor has no VNNI or AMX, so weights have 7 bits"
    gpus = {f"GPU {index}": _gpu(gpu) for index, gpu in enumerate(report.gpus)}
    facts |= gpus or {"GPU": f"none: {report.no_gpu}"}
    backends = [
        words("backend", lambda each: each.name),
        words("version", lambda each: each.version),
        words("builds", lambda each: _yes(each.builds)),
        words("runs", lambda each: _yes(each.runs)),
        words("found", lambda each: each.detail),
    ]
    tools = [
        words("tool", lambda each: each.name),
        words("version", lambda each: each.version),
        words("for", lambda each: each.purpose),
        words("works", lambda each: _yes(each.works)),
    ]
    return [
        FactList(facts),
        Table("backends", "backends", backends, report.backends),
        Table("tools", "tools of the compiler", tools, report.tools),
        *_lines(report),
    ]


def _gpu(gpu: Gpu) -> str:
    capability = gpu.compute_capability or "unknown"
    memory = size(gpu.memory_bytes) if gpu.memory_bytes else "memory of the host"
    driver = f"driver {gpu.driver or 'unknown'}, for CUDA up to {gpu.cuda or 'unknown'}"
    return f"{gpu.name}, compute capability {capability}, {memory}, {driver}"


def _yes(answer: Answer) -> Toned:
    return Toned("yes", "good") if answer.yes else Toned("no", "bad")


def _lines(report: MachineReport) -> Iterator[Line]:
    """What to do, with why; below it what could be added, and what waits for a GPU.

    What nobody installed, and what needs a GPU where there is none, is nothing to be done, as
    long as something runs here.
    """
    todo = [
        (f"{conflict.kind}: {conflict.found}", conflict.remedy) for conflict in report.conflicts
    ]
    addable: dict[str, list[str]] = {}
    waiting = []
    for backend in report.backends:
        builds, runs = backend.builds, backend.runs
        if runs.yes and builds.yes:
            continue
        if report.usable and not report.gpus and BACKENDS[backend.name].gpu:
            waiting.append(backend.name)
        elif report.usable and not backend.version:
            addable.setdefault(runs.remedy or builds.remedy, []).append(backend.name)
        else:
            todo += _reasons(backend)
    broken: dict[Answer, list[str]] = {}
    for tool in report.tools:
        if not tool.works.yes and not tool.version:
            addable.setdefault(tool.works.remedy, []).append(f"{tool.name} ({tool.purpose})")
        elif not tool.works.yes:
            broken.setdefault(tool.works, []).append(tool.name)
    todo += [(f"{', '.join(names)}: {no.reason}", no.remedy) for no, names in broken.items()]
    verb = "runs" if len(report.usable) == 1 else "run"
    fine = f"nothing to do: {', '.join(report.usable)} {verb} here"
    yield Line("what to do" if todo else fine, "title")
    for reason, remedy in todo:
        yield Line(reason)
        yield Line(remedy, "hint", 4)
    if addable:
        yield Line("what could be added", "title")
    for remedy, names in addable.items():
        yield Line(", ".join(names))
        yield Line(remedy, "hint", 4)
    if waiting:
        yield Line(f"on a machine with an NVIDIA GPU: {', '.join(waiting)}", "soft")


def _reasons(backend: BackendStatus) -> Iterator[tuple[str, str]]:
    """Why a backend does not build, or run, and what to do about it."""
    builds, runs = backend.builds, backend.runs
    both = not builds.yes and not runs.yes and runs.reason.startswith(builds.reason)
    if not builds.yes and not both:
        yield f"{backend.name} does not build: {builds.reason}", builds.remedy
    if not runs.yes:
        verb = "build or run" if both else "run"
        yield f"{backend.name} does not {verb}: {runs.reason}", runs.remedy
