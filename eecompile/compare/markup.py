"""HTML that is escaped unless it was made here, and tables that a reader can sort."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

__all__ = [
    "MISSING",
    "Cell",
    "Column",
    "Html",
    "Row",
    "duration",
    "element",
    "join",
    "number",
    "table",
    "whole",
]

MISSING = "–"  # noqa: RUF001 - the dash that tables show where there is no figure


_VOID = {"img", "meta"}  # elements without an end tag


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: object) -> Html:
    """An element; children and attributes that are not :class:`Html` are escaped.

    Args:
        tag: its name.
        children: text or elements.
        attributes: an underscore at the end is dropped, others become hyphens; True is an
            attribute without a value, None and False are left out.
    """
    opening = tag
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        opening += f" {name.rstrip('_').replace('_', '-')}"
        if value is not True:
            opening += f'="{html.escape(str(value))}"'
    return Html(f"<{opening}>" if tag in _VOID else f"<{opening}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
    """Parts one after another; those that are not :class:`Html` are escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


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


def whole(value: float | None) -> str:
    """A count: ``1,234``; a dash for None."""
    return MISSING if value is None else f"{value:,.0f}"


def duration(seconds: float) -> tuple[str, float]:
    """The unit to give such durations in, and how many of it a second has."""
    return ("ms", 1e3) if seconds < 1 else ("s", 1.0)


Cell = str | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its title.
        unit: shown below the title; "" for none.
        form: writes the column's numbers; None where it holds text.
        long: its text goes over several lines.
    """

    heading: str
    unit: str = ""
    form: Callable[[float | None], str] | None = number
    long: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table; ``attributes`` are those of its element."""

    cells: Sequence[Cell]
    attributes: dict[str, object] = field(default_factory=dict)


def table(name: str, caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> Html:
    """A table that page.js sorts, in a region that scrolls by itself.

    Args:
        name: the element's id.
        caption: above it.
        columns: of the table; the first heads its rows.
        rows: of the table, as long as ``columns``.
    """
    heads = element("tr", *(_heading(column) for column in columns))
    body = [
        element("tr", *map(_cell, range(len(columns)), columns, row.cells), **row.attributes)
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", heads),
        element("tbody", *body),
        id=name,
        class_="sortable",
    )
    return element("div", whole, class_="scroll", role="region", tabindex="0", aria_label=caption)


def _heading(column: Column) -> Html:
    unit = element("span", column.unit, class_="unit") if column.unit else Html()
    button = element("button", element("span", column.heading), unit, type="button")
    numeric = "number" if column.form else None
    return element("th", button, scope="col", aria_sort="none", class_=numeric)


def _cell(index: int, column: Column, cell: Cell) -> Html:
    """A cell, with what it is sorted by as ``data-value``; "" goes to the end."""
    tag, scope = ("td", None) if index else ("th", "row")
    if column.form is None:
        text = MISSING if cell is None else str(cell) if not isinstance(cell, Html) else cell
        return element(tag, text, scope=scope, class_="long" if column.long else None)
    if isinstance(cell, str):
        raise TypeError(f"text in the column of numbers {column.heading!r}")
    known = cell is not None and not math.isnan(cell)
    attributes = {"scope": scope, "class_": "number", "data_value": repr(cell) if known else ""}
    return element(tag, column.form(cell), **attributes)
