"""The tables of a comparison, and what must not be overlooked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from eecompile.compare.findings import findings
from eecompile.compare.report import Comparison, EvaluationLatency, ExitFigures, largest
from eecompile.show.table import (
    Cell,
    Column,
    Line,
    Part,
    Row,
    Table,
    Tone,
    Toned,
    duration,
    listed,
    number,
    size,
    whole,
)

_KINDS = {"engines": "engine set", "torch": "trained network", "peer": "peer"}


def _error(value: float) -> str:
    return "not finite" if math.isinf(value) else number(value)


_METRICS = {
    "l2": Column("L2 norm", "largest", detail=True),
    "cosine": Column("cosine similarity", "smallest", partial(number, digits=6), detail=True),
    "psnr": Column("PSNR", "dB, smallest", detail=True),
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
    on_gpu = any(one.gpu_mib is not None for one in report.candidates)
    columns = [
        Column("candidate", form=None),
        Column("what", form=None, detail=True),
        *(Column(heading, form=None) for heading in ("backend", "precision", "layout")),
        *(Column(heading, form=size) for heading in ("on disk", "memory")),
        *([Column("GPU memory", form=size)] if on_gpu else []),
        Column("versions", form=None, detail=True, long=True),
    ]
    rows = [
        Row(
            (
                one.name,
                _KINDS[one.kind] + (", reference" if one.name == report.reference else ""),
                " ".join([one.backend, *one.versions.values()][:2]) or None,
                one.precision or None,
                one.layout or None,
                one.bytes,
                _bytes(one.resident_mib),
                *([_bytes(one.gpu_mib)] if on_gpu else []),
                listed(one.versions) or None,
            ),
            one.name,
        )
        for one in report.candidates
    ]
    return Table("candidates", "Candidates", columns, rows)


def _bytes(mebibytes: float | None) -> float | None:
    return None if mebibytes is None else mebibytes * 2**20


def exits_table(report: Comparison) -> Table:
    """A row per exit, batch size and candidate: side by side what was measured side by side."""
    every = [(one.name, exit_) for one in report.candidates for exit_ in one.exits]
    metrics = list(dict.fromkeys(name for _, exit_ in every for name in exit_.metrics))
    columns = [
        Column("candidate", form=None),
        Column("exit", "blocks", whole),
        Column("batch", "", whole),
        Column("median", "ms"),
        Column("p90", "ms"),
        Column("throughput", "samples/s"),
        Column("speed", "of the reference", detail=True),
        Column("largest error", form=_error, detail=True),
        Column("relative error", form=_error),
        *(_METRICS.get(name, Column(name, detail=True)) for name in metrics),
        Column("passed", form=None, detail=True),
    ]
    reference = {
        (exit_.depth, row.batch): row.median
        for name, exit_ in every
        if name == report.reference
        for row in exit_.latencies
    }
    rows = sorted(
        ((name, exit_, row) for name, exit_ in every for row in exit_.latencies or (None,)),
        key=lambda found: (found[1].depth, found[2].batch if found[2] else math.inf),
    )
    return Table(
        "exits",
        f"Latency and error of every exit, one evaluation; errors are to {report.reference}",
        columns,
        [
            Row(_exit_cells(name, exit_, row, reference, metrics), name, str(exit_.depth))
            for name, exit_, row in rows
        ],
        without="Nothing was measured.",
    )


def _exit_cells(
    name: str,
    exit_: ExitFigures,
    row: EvaluationLatency | None,
    reference: Mapping[tuple[int, int], float],
    metrics: Sequence[str],
) -> tuple[Cell, ...]:
    latency: tuple[Cell, ...] = (None,) * 5
    if row is not None:
        base, known = reference.get((exit_.depth, row.batch)), row.median or None
        latency = (
            row.batch,
            row.median,
            row.p90,
            1e3 * row.batch / known if known else None,
            base / known if base and known else None,
        )
    passed, worst, relative = None, None, None
    if exit_.errors:
        tone: Tone = "good" if exit_.passed else "bad"
        passed = Toned("yes" if exit_.passed else "no", tone)
        worst, relative = largest(e.worst for e in exit_.errors), Toned(exit_.relative, tone)
    measured = (exit_.metrics.get(name) for name in metrics)
    return (name, exit_.depth, *latency, worst, relative, *measured, passed)


def trajectories_table(report: Comparison) -> Table:
    """A row per trajectory."""
    slowest = max((row.seconds_per_sample for row in report.trajectories), default=0.0)
    unit, scale = duration(slowest)
    columns = [
        Column("candidate", form=None),
        Column("exit schedule", form=None),
        Column("batch", "", whole),
        Column("mean depth", "blocks", detail=True),
        Column("time", f"{unit} a sample"),
        Column("speed-up", "times"),
        Column("ideal speed-up", "times"),
        Column("of the ideal", "%", detail=True),
        Column("PSNR", "dB"),
        Column("RMS distance", "of the data's range", detail=True),
    ]
    rows = [
        Row(
            (
                row.candidate,
                row.schedule,
                row.batch,
                row.mean_depth,
                row.seconds_per_sample * scale,
                row.speed_up,
                row.ideal_speed_up,
                row.speed_up / row.ideal_speed_up * 100 if row.ideal_speed_up else None,
                row.psnr,
                row.distance,
            ),
            row.candidate,
        )
        for row in report.trajectories
    ]
    settings = report.settings
    title = "Speed, and distance to full depth, of every trajectory: "
    title += f"{settings.solver}, {settings.steps} steps"
    return Table("trajectories", title, columns, rows, without="No trajectories were sampled.")
