"""An evaluation as a table."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from eecompile.evaluate.report import Evaluation, Figures

__all__ = ["evaluation_tables"]


def evaluation_tables(evaluation: Evaluation) -> RenderableType:
    """A row each set of samples, the floor last, and what to know of the figures."""
    table = Table(
        title=escape(_title(evaluation)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    rows, counts = evaluation.rows, _counts(evaluation)
    table.add_column("samples", overflow="fold", min_width=12)
    shown = {
        "steps": len({len(row.choices) for row in rows if row.choices}) > 1,
        "cost": any(row.cost is not None for row in rows),
        "n": len(counts) > 1,
        "to first": any(row.beyond is not None for row in rows),
    }
    names = ["steps", "cost", "n", "distance", "to first", "precision", "recall"]
    names = [name for name in names if shown.get(name, True)]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(_name(row), *(_cell(row, name) for name in names))
    table.add_section()
    floor = evaluation.floor
    label = f"real: {floor.name}" + ("" if {floor.samples} == counts else f" ({floor.samples:,})")
    table.add_row(Text(label), *(_cell(floor, name) for name in names))
    return Group(table, *_notes(evaluation))


def _title(evaluation: Evaluation) -> str:
    made = evaluation.settings
    what = evaluation.network or "samples"
    if made is None:
        return f"{what} beside {evaluation.reference}"
    steps = sorted({len(row.choices) for row in evaluation.rows if row.choices}, reverse=True)
    return (
        f"{what}, {made.solver}, {', '.join(map(str, steps))} steps, guidance "
        f"{made.guidance:g}, seed {made.seed}, beside {evaluation.reference}"
    )


def _counts(evaluation: Evaluation) -> set[int]:
    return {row.samples for row in evaluation.rows}


def _name(row: Figures) -> Text:
    solver = f" ({row.solver.partition('(')[0]})" if row.solver else ""
    return Text(row.name + solver)


def _cell(row: Figures, name: str) -> str:
    beyond = row.beyond is not None and row.beyond_error is not None
    return {
        "steps": str(len(row.choices) or ""),
        "cost": "" if row.cost is None else f"{row.cost:.0%}",
        "n": f"{row.samples:,}",
        "distance": f"{row.distance:.2f} ± {row.error:.2f}",
        "to first": f"{row.beyond:+.2f} ± {row.beyond_error:.2f}" if beyond else "",
        "precision": f"{row.precision:.3f}",
        "recall": f"{row.recall:.3f}",
    }[name]


def _notes(evaluation: Evaluation) -> Iterator[RenderableType]:
    counts = _counts(evaluation)
    each = f"{counts.pop():,} samples a row. " if len(counts) == 1 else ""
    yield Text(
        f"{each}Frechet distance on {evaluation.dimensions} features of {evaluation.features}, to "
        f"{evaluation.reference_samples:,} real samples: comparable with the same features, "
        "reference and number of samples only, and no FID. ± is one standard error."
    )
    for warning in evaluation.warnings:
        yield Text(f"warning: {warning}", style="yellow")
