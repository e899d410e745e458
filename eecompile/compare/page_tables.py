"""The tables of a comparison's page."""

from __future__ import annotations

import math
from collections.abc import Mapping

from eecompile.compare.markup import (
    Cell,
    Column,
    Html,
    Row,
    duration,
    element,
    number,
    table,
    whole,
)
from eecompile.compare.plots import Mark
from eecompile.compare.report import ExitFigures, Latency, Report, largest

__all__ = ["candidates_table", "exits_table", "swatch", "trajectories_table"]

_KINDS = {"engines": "engine set", "torch": "trained network", "peer": "peer"}
_METRICS = {
    "l2": Column("L2 norm", "largest"),
    "cosine": Column("cosine similarity", "smallest", lambda value: number(value, 6)),
    "psnr": Column("PSNR", "dB, smallest"),
}


def candidates_table(report: Report, looks: Mapping[str, Mark]) -> Html:
    """What was asked for; ``looks`` are the candidates'."""
    on_gpu = any(one.gpu_mib is not None for one in report.candidates)
    columns = [
        *(Column(heading, form=None) for heading in ("candidate", "what", "backend", "precision")),
        Column("layout", form=None),
        Column("on disk", "MiB"),
        Column("memory", "MiB"),
        *([Column("GPU memory", "MiB")] if on_gpu else []),
        Column("versions", form=None, long=True),
    ]
    rows = [
        Row(
            (
                _named(one.name, looks),
                _KINDS[one.kind] + (", reference" if one.name == report.reference else ""),
                one.backend or None,
                one.precision or None,
                one.layout or None,
                None if one.bytes is None else one.bytes / 2**20,
                one.resident_mib,
                *([one.gpu_mib] if on_gpu else []),
                ", ".join(f"{name} {version}" for name, version in one.versions.items()) or None,
            )
        )
        for one in report.candidates
    ]
    return table("candidates", "Candidates", columns, rows)


def exits_table(report: Report, looks: Mapping[str, Mark]) -> Html:
    """A row per candidate, exit and batch size."""
    columns = [
        Column("candidate", form=None),
        Column("exit", "blocks", whole),
        Column("batch", "", whole),
        Column("median", "ms"),
        Column("p90", "ms"),
        Column("throughput", "samples/s"),
        Column("speed", "of the reference"),
        Column("largest error", form=_error),
        Column("relative error", form=_error),
    ]
    exits = [exit_ for candidate in report.candidates for exit_ in candidate.exits]
    names = list(dict.fromkeys(name for exit_ in exits for name in exit_.metrics))
    columns += [_METRICS.get(name, Column(name)) for name in names]
    columns.append(Column("passed", form=None))
    reference = _reference_latencies(report)
    rows = []
    for candidate in report.candidates:
        for exit_ in candidate.exits:
            for row in exit_.latencies or (None,):
                cells = _exit_cells(exit_, row, reference)
                metrics = [exit_.metrics.get(name) for name in names]
                passed = None if not exit_.errors else "yes" if exit_.passed else "no"
                rows.append(
                    Row(
                        (_named(candidate.name, looks), *cells, *metrics, passed),
                        {"data_candidate": looks[candidate.name].index},
                    )
                )
    return table("exits", "Latency and error of every exit", columns, rows)


def _exit_cells(
    exit_: ExitFigures, row: Latency | None, reference: Mapping[tuple[int, int], float]
) -> tuple[Cell, ...]:
    """Of the exits' table, from the exit to the relative error."""
    worst, relative = largest(point.worst for point in exit_.errors), exit_.relative
    if row is None:
        return (exit_.depth, None, None, None, None, None, worst, relative)
    base = reference.get((exit_.depth, row.batch))
    return (
        exit_.depth,
        row.batch,
        row.median,
        row.p90,
        row.batch / row.median * 1e3 if row.median else None,
        base / row.median if base and row.median else None,
        worst,
        relative,
    )


def _error(value: float | None) -> str:
    return "not finite" if value is not None and math.isinf(value) else number(value)


def _reference_latencies(report: Report) -> dict[tuple[int, int], float]:
    """Median milliseconds by exit and batch."""
    return {
        (exit_.depth, row.batch): row.median
        for candidate in report.candidates
        if candidate.name == report.reference
        for exit_ in candidate.exits
        for row in exit_.latencies
    }


def trajectories_table(report: Report, looks: Mapping[str, Mark]) -> Html:
    """A row per trajectory."""
    if not report.trajectories:
        return element("p", "No trajectories were sampled.", class_="words")
    unit, scale = duration(max(row.seconds_per_sample for row in report.trajectories))
    columns = [
        Column("candidate", form=None),
        Column("exit schedule", form=None),
        Column("batch", "", whole),
        Column("mean depth", "blocks"),
        Column("time", f"{unit} a sample"),
        Column("speed-up", "times"),
        Column("ideal", "times"),
        Column("of the ideal", "%"),
        Column("PSNR", "dB"),
        Column("RMS distance", "of the data's range"),
    ]
    rows = [
        Row(
            (
                _named(row.candidate, looks),
                row.schedule,
                row.batch,
                sum(c.blocks for c in row.choices) / len(row.choices) if row.choices else None,
                row.seconds_per_sample * scale,
                row.speedup,
                row.ideal,
                row.speedup / row.ideal * 100 if row.ideal else None,
                row.psnr,
                row.distance,
            ),
            {"data_candidate": looks[row.candidate].index},
        )
        for row in report.trajectories
    ]
    return table("trajectories", "Speed and distance of every trajectory", columns, rows)


def swatch(mark: Mark) -> Html:
    """A candidate's colour, beside its name."""
    return element(
        "span",
        class_="swatch",
        style=f"background-color: {mark.colour}",
        data_pattern=mark.pattern or None,
        aria_hidden="true",
    )


def _named(name: str, looks: Mapping[str, Mark]) -> Html:
    return element("span", swatch(looks[name]), name, class_="named")
