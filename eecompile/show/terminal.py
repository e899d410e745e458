"""Tables, facts and lines in a terminal, drawn by rich."""

from __future__ import annotations

from collections.abc import Sequence

import rich.table
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from eecompile.errors import printable
from eecompile.show.table import FactList, Line, Part, Table, Tone

_STYLES: dict[Tone, str] = {
    "": "", "good": "green", "bad": "bold red", "warning": "yellow", "soft": "dim",
    "strong": "bold", "hint": "cyan", "title": "italic",
}  # fmt: skip


def rendered(*parts: Part) -> RenderableType:
    """Parts one below the other."""
    return Group(*map(_rendered, parts))


def as_it_is(text: str, tone: Tone = "") -> Text:
    """A text with names and paths, which may hold what rich or a terminal would obey."""
    return Text(printable(text), _STYLES[tone])


def _rendered(part: Part) -> RenderableType:
    if isinstance(part, Line):
        return Padding(as_it_is(part.text, part.tone), (0, 0, 0, part.indent))
    if isinstance(part, FactList):
        grid = rich.table.Table(box=None, show_header=False, pad_edge=False)
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, fact in part.items():
            grid.add_row(as_it_is(name), as_it_is(fact))
        return grid
    if part.without and not part.items:
        return as_it_is(part.without)
    return Group(_Fitting(part), *map(as_it_is, part.notes))


class _Fitting:
    """A table with as many of its columns, and as much space, as the terminal has room for."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield as_it_is(self._table.title, "title")
        every = list(range(len(self._table.columns)))
        made = _drawn(self._table, every)
        if console.measure(made, options=options.update(width=10**4)).maximum > options.max_width:
            fewer = [index for index in every if not self._table.columns[index].detail]
            made = _drawn(self._table, fewer)
        if console.measure(made, options=options).minimum > options.max_width:
            made.box, made.pad_edge, made.collapse_padding = box.SIMPLE_HEAD, False, True
        yield made


def _drawn(table: Table, columns: Sequence[int]) -> rich.table.Table:
    made = rich.table.Table()
    for index in columns:
        column = table.columns[index]
        heading = as_it_is("\n".join(filter(None, (column.heading, column.unit))))
        if column.form is None:
            made.add_column(heading, no_wrap=column.whole, overflow="fold")
        else:
            made.add_column(heading, justify="right", no_wrap=True, overflow="fold")
    group = None
    for row in table.rows():
        if group not in (None, row.group):
            made.add_section()
        group = row.group
        cells = [as_it_is(row.texts[index], row.tones[index]) for index in columns]
        made.add_row(*cells, style=_STYLES[row.tone])
    return made
