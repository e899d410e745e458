"""What a command shows, as data: tables, facts and lines, drawn alike in every medium.

:mod:`eecompile.show.terminal` and :mod:`eecompile.show.page` draw them; Markdown and JSON are
made here, as neither needs a package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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


class Toned(NamedTuple):
    """A cell's value, and how it is coloured."""

    value: str | float | None
    tone: Tone


Cell = Toned | str | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its title.
        cell: what it says of an item: a number, text, or None where there is nothing to say.
        unit: shown below the title; "" for none.
        form: writes the column's numbers; None where it holds text, which stands at the left.
        detail: whether a terminal that is too narrow leaves it out.
        long: whether its text goes over several lines.
        whole: whether its text is kept on one line, as that of a chart.
        behind: what its text shortens; in a page, a click on the text shows it.
    """

    heading: str
    cell: Callable[[Any], Cell]
    unit: str = ""
    form: Callable[[float], str] | None = number
    detail: bool = False
    long: bool = False
    whole: bool = False
    behind: Callable[[Any], str] | None = None


words = partial(Column, form=None)


def _nothing(item: Any) -> Any:
    return ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: identifies it within a page.
        title: above it.
        columns: of the table; the first heads its rows.
        items: what the rows are of.
        notes: below it.
        without: what is said in its place where it has no rows; "" to show it all the same.
        key: what hides an item's row in a page, and gives its first cell a colour.
        group: items of one group stand together.
        tone: of an item's whole row.
    """

    name: str
    title: str
    columns: Sequence[Column]
    items: Sequence[Any]
    notes: Sequence[str] = ()
    without: str = ""
    key: Callable[[Any], str] = _nothing
    group: Callable[[Any], str] = _nothing
    tone: Callable[[Any], Tone] = _nothing

    def rows(self) -> Iterator[Row]:
        """What its cells say."""
        for item in self.items:
            cells = [column.cell(item) for column in self.columns]
            values = [cell.value if isinstance(cell, Toned) else cell for cell in cells]
            yield Row(
                [_text(column, value) for column, value in zip(self.columns, values, strict=True)],
                values,
                [cell.tone if isinstance(cell, Toned) else "" for cell in cells],
                [column.behind(item) if column.behind else "" for column in self.columns],
                self.key(item),
                self.group(item),
                self.tone(item),
            )


class Row(NamedTuple):
    """A row: what its cells say, their values and tones, and what a table says of its item.

    ``behind`` is what the texts shorten, "" where they are whole.
    """

    texts: list[str]
    values: list[str | float | None]
    tones: list[Tone]
    behind: list[str]
    key: str
    group: str
    tone: Tone


class FactList(dict[str, str]):
    """Names and what is said of each, one below the other."""


class Line(NamedTuple):
    """A sentence by itself."""

    text: str
    tone: Tone = ""
    indent: int = 0


Part = Table | FactList | Line


def _text(column: Column, value: str | float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    return value if isinstance(value, str) else (column.form or str)(value)


def markdown(table: Table) -> str:
    """A table as GitHub shows it, with its title and its notes."""
    heads = [f"{c.heading} ({c.unit})" if c.unit else c.heading for c in table.columns]
    lines = [heads, ["---" if c.form is None else "---:" for c in table.columns]]
    lines += [[text.replace("|", "\\|") for text in row.texts] for row in table.rows()]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([f"**{table.title}**", body, *table.notes]) + "\n"


def plain(table: Table) -> dict[str, Any]:
    """A table for JSON: its numbers are not rounded."""
    return {
        "name": table.name,
        "title": table.title,
        "columns": [{"heading": c.heading, "unit": c.unit} for c in table.columns],
        "rows": [row.values for row in table.rows()],
        "notes": list(table.notes),
    }
