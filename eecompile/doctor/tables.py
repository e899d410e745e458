"""What ``eecompile doctor`` shows: the machine, backends, tools, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from eecompile.doctor.examine import MachineReport
from eecompile.doctor.probes import Answer
from eecompile.measure.machine import Gpu
from eecompile.show.table import FactList, Line, Part, Table, Toned, size, words


def doctor_parts(report: MachineReport) -> list[Part]:
    """All that ``eecompile doctor`` shows."""
    facts = {
        "eecompile": f"{report.eecompile}, Python {report.python}, {report.system}",
        "CPU": f"{report.cpu.model}, {report.cpu.cores} cores",
        "": ", ".join(report.cpu.instructions) or "no instruction set that matters here",
    }
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
    """Each answer that is no, and each conflict: why, and below it what to do."""
    todo = [
        (f"{conflict.kind}: {conflict.found}", conflict.remedy) for conflict in report.conflicts
    ]
    for backend in report.backends:
        builds, runs = backend.builds, backend.runs
        both = not builds.yes and not runs.yes and runs.reason.startswith(builds.reason)
        if not builds.yes and not both:
            todo.append((f"{backend.name} does not build: {builds.reason}", builds.remedy))
        if not runs.yes:
            verb = "build or run" if both else "run"
            todo.append((f"{backend.name} does not {verb}: {runs.reason}", runs.remedy))
    alike: dict[Answer, list[str]] = {}
    for tool in report.tools:
        if not tool.works.yes:
            alike.setdefault(tool.works, []).append(tool.name)
    todo += [(f"{', '.join(names)}: {no.reason}", no.remedy) for no, names in alike.items()]
    if todo:
        yield Line("what to do", "title")
    for reason, remedy in todo:
        yield Line(reason)
        yield Line(remedy, "hint", 4)
