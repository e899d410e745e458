"""An evaluation as a table."""

from __future__ import annotations

from eecompile.evaluate.report import Evaluation, SampleFigures
from eecompile.show.table import Cell, Column, Line, Part, Row, Table, percent, whole


def evaluation_parts(evaluation: Evaluation) -> list[Part]:
    """A row for each set of samples, the floor last, and what to know of the figures."""
    rows, floor = evaluation.rows, evaluation.floor
    counts = {row.samples for row in rows}
    shown = {
        "steps": len({len(row.choices) for row in rows if row.choices}) > 1,
        "cost": any(row.cost_share is not None for row in rows),
        "n": len(counts) > 1,
        "to first": any(row.beyond is not None for row in rows),
    }
    columns = [
        Column("steps", form=whole),
        Column("cost", form=percent),
        Column("n", form=whole),
        Column("Frechet", "distance"),
        *map(Column, ("to first", "precision", "recall")),
    ]
    kept = [place for place, column in enumerate(columns) if shown.get(column.heading, True)]
    label = f"real: {floor.name}" + ("" if {floor.samples} == counts else f" ({floor.samples:,})")
    named = [(_name(row), row, "made") for row in rows] + [(label, floor, "real")]
    each = f"{counts.pop():,} samples a row. " if len(counts) == 1 else ""
    table = Table(
        "samples",
        _title(evaluation),
        [Column("samples", form=None), *(columns[place] for place in kept)],
        [
            Row((name, *(cells[place] for place in kept)), group=group)
            for name, row, group in named
            for cells in [_cells(row)]
        ],
        notes=[
            f"{each}Frechet distance on {evaluation.dimensions} features of "
            f"{evaluation.features}, to {evaluation.reference_samples:,} real samples: comparable "
            "with the same features, reference and number of samples only, and no FID. ± is one "
            "standard error."
        ],
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


def _cells(row: SampleFigures) -> tuple[Cell, ...]:
    beyond = row.beyond is not None and row.beyond_error is not None
    return (
        len(row.choices) or None,
        row.cost_share,
        row.samples,
        f"{row.frechet_distance:.2f} ± {row.error:.2f}",
        f"{row.beyond:+.2f} ± {row.beyond_error:.2f}" if beyond else None,
        row.precision,
        row.recall,
    )
