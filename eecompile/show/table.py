"""What a command shows, as data: tables, facts and lines, drawn alike in every medium.

:mod:`eecompile.show.terminal` and :mod:`eecompile.show.page` draw them; Markdown and JSON are
made here, as neither needs a package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

MISSING = "–"  # noqa: RUF001 - the dash that tables show where there is no figure
Tone = Literal["", "good", "bad", "warning", "soft", "strong", "hint", "title"]


def number(value: float | None, digits: int = 3) -> str:
    """As one reads it: ``41.2``, ``1,234``, ``2.5e-6``; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    exponent = int(power)
    if not -4 < exponent < 7:
        return f"{float(mantissa):g}e{exponent}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


rough = partial(number, digits=2)


def whole(value: float) -> str:
    """A count: ``1,234``."""
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """A share of 1: ``72%``."""
    return f"{value:.0%}"


def size(count: float) -> str:
    """Bytes with a binary unit: ``14.0 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float) -> tuple[str, float]:
    """The unit to give such durations in, and how many of it a second has."""
    return ("ms", 1e3) if seconds < 1 else ("s", 1.0)


def listed(names: Mapping[str, object], between: str = ", ") -> str:
    """Names with what they stand for, such as versions: ``onnx 1.19.0, torch 2.9``."""
    return between.join(f"{name} {value}" for name, value in names.items())


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its title.
        unit: shown below the title; "" for none.
        form: writes the column's numbers; None where it holds text, which stands at the left.
        detail: whether a terminal that is too narrow leaves it out.
        long: whether its text goes over several lines.
    """

    heading: str
    unit: str = ""
    form: Callable[[float], str] | None = number
    detail: bool = False
    long: bool = False


class Toned(NamedTuple):
    """A cell's value, and how it is coloured."""

    value: str | float | None
    tone: Tone


Cell = Toned | str | float | None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        cells: one for each column: numbers, text, or None where there is nothing to say.
        key: what hides the row in a page, and gives its first cell a colour; "" for nothing.
        group: rows of one group stand together.
        tone: of the whole row.
    """

    cells: Sequence[Cell]
    key: str = ""
    group: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: identifies it within a page.
        title: above it.
        columns: of the table; the first heads its rows.
        rows: of the table.
        notes: below it.
        without: what is said in its place where it has no rows; "" to show it all the same.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    without: str = ""

    def texts(self, row: Row) -> list[str]:
        """What the cells of a row say."""
        return [
            cell_text(column, cell) for column, cell in zip(self.columns, row.cells, strict=True)
        ]


class Facts(dict[str, str]):
    """Names and what is said of each, one below the other."""


class Line(NamedTuple):
    """A sentence by itself."""

    text: str
    tone: Tone = ""
    indent: int = 0


Part = Table | Facts | Line


def value_of(cell: Cell) -> str | float | None:
    """A cell without its colour."""
    return cell.value if isinstance(cell, Toned) else cell


def cell_text(column: Column, cell: Cell) -> str:
    """What a cell says."""
    value = value_of(cell)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    return value if isinstance(value, str) else (column.form or str)(value)


def markdown(table: Table) -> str:
    """A table as GitHub shows it, with its title and its notes."""
    heads = [f"{c.heading} ({c.unit})" if c.unit else c.heading for c in table.columns]
    lines = [heads, ["---" if c.form is None else "---:" for c in table.columns]]
    lines += [[text.replace("|", "\\|") for text in table.texts(row)] for row in table.rows]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([f"**{table.title}**", body, *table.notes]) + "\n"


def plain(table: Table) -> dict[str, Any]:
    """A table for JSON: its numbers are not rounded."""
    return {
        "name": table.name,
        "title": table.title,
        "columns": [{"heading": c.heading, "unit": c.unit} for c in table.columns],
        "rows": [[value_of(cell) for cell in row.cells] for row in table.rows],
        "notes": list(table.notes),
    }
