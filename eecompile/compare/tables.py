"""The tables of a comparison, and what must not be overlooked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from eecompile.compare.findings import findings
from eecompile.compare.report import (
    Candidate,
    Comparison,
    EvaluationLatency,
    ExitFigures,
    TrajectoryFigures,
)
from eecompile.show.table import (
    Column,
    Line,
    Part,
    Table,
    Tone,
    Toned,
    duration,
    listed,
    number,
    size,
    whole,
    words,
)

_KINDS = {"engines": "engine set", "torch": "trained network", "peer": "peer"}


def _error(value: float) -> str:
    return "not finite" if math.isinf(value) else number(value)


_METRICS: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "l2": ("L2 norm", "largest", number),
    "cosine": ("cosine similarity", "smallest", partial(number, digits=6)),
    "psnr": ("PSNR", "dB, smallest", number),
}


def comparison_parts(report: Comparison) -> list[Part]:
    """Candidates, their exits, whole trajectories, what came out, and what was left out."""
    machine = report.machine
    where = (machine.get("gpus"), machine["cpu"], f"{machine['cores']} cores")
    named = ", ".join(filter(None, where))
    return [
        Line(f"{report.network} on {named}; errors are to {report.reference}"),
        candidates_table(report),
        exits_table(report),
        *([trajectories_table(report)] if report.trajectories else []),
        *map(Line, findings(report)),
        *(Line(text, "warning") for text in left_out(report)),
    ]


def left_out(report: Comparison) -> Iterator[str]:
    """Each candidate that was not compared, or not to the end, and why."""
    for each in report.candidates:
        if each.skipped:
            yield f"{each.name}: {'not finished' if each.exits else 'left out'} ({each.skipped})"


def candidates_table(report: Comparison) -> Table:
    """What was asked for."""
    gpu = Column("GPU memory", lambda one: _bytes(one.gpu_mib), form=size)
    reference = report.reference
    columns = [
        words("candidate", lambda one: one.name),
        words("what", lambda one: _what(one, reference), detail=True),
        words("backend", lambda one: " ".join([one.backend, *one.versions.values()][:2]) or None),
        words("precision", lambda one: one.precision or None),
        words("layout", lambda one: one.layout or None),
        Column("on disk", lambda one: one.bytes, form=size),
        Column("memory", lambda one: _bytes(one.resident_mib), form=size),
        *([gpu] if any(one.gpu_mib is not None for one in report.candidates) else []),
        words("versions", lambda one: listed(one.versions) or None, detail=True, long=True),
    ]
    return Table("candidates", "Candidates", columns, report.candidates, key=lambda one: one.name)


def _what(one: Candidate, reference: str) -> str:
    return _KINDS[one.kind] + (", reference" if one.name == reference else "")


def _bytes(mebibytes: float | None) -> float | None:
    return None if mebibytes is None else mebibytes * 2**20


class _Evaluated(NamedTuple):
    """An exit of a candidate at a batch size; without one where it was not measured."""

    name: str
    exit: ExitFigures
    latency: EvaluationLatency | None
    base: float | None

    @property
    def tone(self) -> Tone:
        if not self.exit.errors:
            return ""
        return "good" if self.exit.passed else "bad"

    def of_latency(self, figure: Callable[[EvaluationLatency], float]) -> float | None:
        """A figure of the latency; None without one, or where that is 0."""
        return figure(self.latency) if self.latency and self.latency.median else None


def exits_table(report: Comparison) -> Table:
    """A row per exit, batch size and candidate: side by side what was measured side by side."""
    every = [(one.name, exit_) for one in report.candidates for exit_ in one.exits]
    base = {
        (exit_.depth, row.batch): row.median
        for name, exit_ in every
        if name == report.reference
        for row in exit_.latencies
    }
    items = [
        _Evaluated(name, exit_, row, base.get((exit_.depth, row.batch)) if row else None)
        for name, exit_ in every
        for row in exit_.latencies or (None,)
    ]
    items.sort(key=lambda e: (e.exit.depth, e.latency.batch if e.latency else math.inf))
    metrics = dict.fromkeys(name for _, exit_ in every for name in exit_.metrics)
    columns = [
        words("candidate", lambda e: e.name),
        Column("exit", lambda e: e.exit.depth, "blocks", whole),
        Column("batch", lambda e: e.latency and e.latency.batch, "", whole),
        Column("median", lambda e: e.latency and e.latency.median, "ms"),
        Column("p90", lambda e: e.latency and e.latency.p90, "ms"),
        Column("throughput", lambda e: e.of_latency(_throughput), "samples/s"),
        Column("speed", _speed, "of the reference", detail=True),
        Column("largest error", lambda e: e.exit.worst, form=_error, detail=True),
        Column("relative error", lambda e: Toned(e.exit.relative, e.tone), form=_error),
        *(_metric(name) for name in metrics),
        words("passed", _passed, detail=True),
    ]
    return Table(
        "exits",
        f"Latency and error of every exit, one evaluation; errors are to {report.reference}",
        columns,
        items,
        without="Nothing was measured.",
        key=lambda e: e.name,
        group=lambda e: str(e.exit.depth),
    )


def _throughput(latency: EvaluationLatency) -> float:
    return 1e3 * latency.batch / latency.median


def _speed(evaluated: _Evaluated) -> float | None:
    base = evaluated.base
    return evaluated.of_latency(lambda latency: base / latency.median) if base else None


def _passed(evaluated: _Evaluated) -> Toned | None:
    if not evaluated.exit.errors:
        return None
    return Toned("yes" if evaluated.exit.passed else "no", evaluated.tone)


def _metric(name: str) -> Column:
    heading, unit, form = _METRICS.get(name, (name, "", number))
    return Column(heading, lambda e: e.exit.metrics.get(name), unit, form, detail=True)


def trajectories_table(report: Comparison) -> Table:
    """A row per trajectory."""
    slowest = max((row.seconds_per_sample for row in report.trajectories), default=0.0)
    unit, scale = duration(slowest)
    columns = [
        words("candidate", lambda row: row.candidate),
        words("exit schedule", lambda row: row.schedule),
        Column("batch", lambda row: row.batch, "", whole),
        Column("mean depth", lambda row: row.mean_depth, "blocks", detail=True),
        Column("time", lambda row: row.seconds_per_sample * scale, f"{unit} a sample"),
        Column("speed-up", lambda row: row.speed_up, "times"),
        Column("ideal speed-up", lambda row: row.ideal_speed_up, "times"),
        Column("of the ideal", _of_the_ideal, "%", detail=True),
        Column("PSNR", lambda row: row.psnr, "dB"),
        Column("RMS distance", lambda row: row.distance, "of the data's range", detail=True),
    ]
    settings = report.settings
    title = "Speed, and distance to full depth, of every trajectory: "
    title += f"{settings.solver}, {settings.steps} steps"
    return Table(
        "trajectories",
        title,
        columns,
        report.trajectories,
        without="No trajectories were sampled.",
        key=lambda row: row.candidate,
    )


def _of_the_ideal(row: TrajectoryFigures) -> float | None:
    return row.speed_up / row.ideal_speed_up * 100 if row.ideal_speed_up else None
