"""An evaluation as a table."""

from __future__ import annotations

from eecompile.evaluate.report import Evaluation, SampleFigures
from eecompile.show.table import Column, Line, Part, Table, percent, whole, words


def evaluation_parts(evaluation: Evaluation) -> list[Part]:
    """A row for each set of samples, the floor last, and what to know of the figures."""
    rows, floor = evaluation.rows, evaluation.floor
    counts = {row.samples for row in rows}
    label = f"real: {floor.name}" + ("" if {floor.samples} == counts else f" ({floor.samples:,})")
    shown = {
        "steps": len({len(row.choices) for row in rows if row.choices}) > 1,
        "cost": any(row.cost_share is not None for row in rows),
        "n": len(counts) > 1,
        "to first": any(row.beyond is not None for row in rows),
    }
    columns = [
        words("samples", lambda row: label if row is floor else _name(row)),
        Column("steps", lambda row: len(row.choices) or None, form=whole),
        Column("cost", lambda row: row.cost_share, form=percent),
        Column("n", lambda row: row.samples, form=whole),
        Column("Frechet", lambda row: f"{row.frechet_distance:.2f} ± {row.error:.2f}", "distance"),
        Column("to first", _beyond),
        Column("precision", lambda row: row.precision),
        Column("recall", lambda row: row.recall),
    ]
    each = f"{counts.pop():,} samples a row. " if len(counts) == 1 else ""
    note = (
        f"{each}Frechet distance on {evaluation.dimensions} features of {evaluation.features}, to "
        f"{evaluation.reference_samples:,} real samples: comparable with the same features, "
        "reference and number of samples only, and no FID. ± is one standard error."
    )
    table = Table(
        "samples",
        _title(evaluation),
        [column for column in columns if shown.get(column.heading, True)],
        [*rows, floor],
        notes=[note],
        group=lambda row: "real" if row is floor else "made",
    )
    return [table, *(Line(f"warning: {text}", "warning") for text in evaluation.warnings)]


def _title(evaluation: Evaluation) -> str:
    made, what = evaluation.settings, evaluation.network or "samples"
    if made is None:
        return f"{what} beside {evaluation.reference}"
    steps = sorted({len(row.choices) for row in evaluation.rows if row.choices}, reverse=True)
    return (
        f"{what}, {made.solver}, {', '.join(map(str, steps))} steps, guidance "
        f"{made.guidance:g}, seed {made.seed}, beside {evaluation.reference}"
    )


def _name(row: SampleFigures) -> str:
    return row.name + (f" ({row.solver.partition('(')[0]})" if row.solver else "")


def _beyond(row: SampleFigures) -> str | None:
    if row.beyond is None or row.beyond_error is None:
        return None
    return f"{row.beyond:+.2f} ± {row.beyond_error:.2f}"
