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
    table.add_column("samples")
    steps = len({len(row.depths) for row in evaluation.rows if row.depths}) > 1
    names = ["steps"] if steps else []
    names += ["cost", "n", "distance", "±", "to first", "±", "precision", "recall"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in evaluation.rows:
        table.add_row(*_cells(row, steps=steps))
    table.add_section()
    table.add_row(*_cells(evaluation.floor, "real: ", steps=steps))
    return Group(table, *_notes(evaluation))


def _title(evaluation: Evaluation) -> str:
    made = evaluation.settings
    what = evaluation.network or "samples"
    if made is None:
        return f"{what} beside {evaluation.reference}"
    counts = sorted({len(row.depths) for row in evaluation.rows if row.depths}, reverse=True)
    return (
        f"{what}, {made.solver}, {', '.join(map(str, counts))} steps, guidance "
        f"{made.guidance:g}, seed {made.seed}, beside {evaluation.reference}"
    )


def _cells(row: Figures, kind: str = "", *, steps: bool = False) -> list[RenderableType]:
    solver = f" ({row.solver})" if row.solver else ""
    return [
        Text(kind + row.name + solver),
        *([str(len(row.depths) or "")] if steps else []),
        "" if row.cost is None else f"{row.cost:.0%}",
        f"{row.samples:,}",
        f"{row.distance:.2f}",
        f"{row.error:.2f}",
        "" if row.beyond is None else f"{row.beyond:+.2f}",
        "" if row.beyond_error is None else f"{row.beyond_error:.2f}",
        f"{row.precision:.3f}",
        f"{row.recall:.3f}",
    ]


def _notes(evaluation: Evaluation) -> Iterator[RenderableType]:
    yield Text(
        f"Frechet distance on {evaluation.dimensions} features of {evaluation.features}, to "
        f"{evaluation.reference_samples:,} real samples: comparable with the same features, "
        "reference and number of samples only, and no FID. ± is one standard error."
    )
    for warning in evaluation.warnings:
        yield Text(f"warning: {warning}", style="yellow")
