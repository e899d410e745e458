"""A table as data, and what every medium makes of it."""

from __future__ import annotations

import math

import msgspec
import pytest

from eecompile.errors import EecompileError, UsageError, printable
from eecompile.show.bundles import bundle_parts
from eecompile.show.page import Page, Section, page_text
from eecompile.show.plots import Mark
from eecompile.show.table import (
    MISSING,
    Column,
    FactList,
    Line,
    Table,
    Toned,
    duration,
    markdown,
    number,
    plain,
    size,
    whole,
    words,
)
from eecompile.show.terminal import as_it_is, rendered
from eecompile.store.manifest import BundleManifest
from tests.conftest import ROOT
from tests.golden.shown import terminal, visible

MARKUP = "<b>a</b> & [red]b[/] | c"
ITEMS = [("cpu", 12, 1234567.0), (MARKUP, None, math.nan)]
TABLE = Table(
    "sizes",
    f"Sizes of {MARKUP}",
    [
        words("name", lambda item: item[0]),
        Column("exit", lambda item: item[1], "blocks", whole),
        Column("on disk", lambda item: Toned(item[2], "good"), form=size),
        Column("raw", lambda item: item[2], "bytes", detail=True),
    ],
    ITEMS,
    notes=["A note."],
    key=lambda item: item[0],
    group=lambda item: item[0],
)


def shown(table: Table) -> str:
    """The text of a page with a table."""
    page = Page(
        command="show",
        network=MARKUP,
        what="a table",
        machine={"cpu": MARKUP},
        version="0",
        opening=[],
        role="Names",
        keys=["cpu"],
        marks={"cpu": Mark(0, "var(--candidate-1)", "circle")},
        sections=[Section("Tables", lines=[MARKUP], parts=[table, FactList({MARKUP: MARKUP})])],
    )
    return page_text(page)


@pytest.mark.parametrize(
    ("value", "text"),
    [(41.23, "41.2"), (1234.5, "1,234"), (2.5e-6, "2.5e-6"), (0, "0"), (None, MISSING),
     (math.nan, MISSING), (math.inf, "∞"), (-math.inf, "-∞"), (0.99961, "1.00")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_sizes_and_durations() -> None:
    assert [size(count) for count in (0, 1023, 1024, 2**20 * 14, 2**40)] == [
        "0 B", "1023 B", "1.0 KiB", "14.0 MiB", "1024.0 GiB"
    ]  # fmt: skip
    assert (duration(0.5), duration(2)) == (("ms", 1e3), ("s", 1.0))


def test_markdown() -> None:
    assert markdown(TABLE).splitlines()[2:] == [
        "| name | exit (blocks) | on disk | raw (bytes) |",
        "| --- | ---: | ---: | ---: |",
        "| cpu | 12 | 1.2 MiB | 1,234,567 |",
        f"| <b>a</b> & [red]b[/] \\| c | {MISSING} | {MISSING} | {MISSING} |",
        "",
        "A note.",
    ]


def test_json_has_numbers_as_they_are() -> None:
    made = plain(TABLE)
    assert made["columns"][1] == {"heading": "exit", "unit": "blocks"}
    assert made["rows"][0] == ["cpu", 12, 1234567.0, 1234567.0]
    assert made["notes"] == ["A note."]


def test_a_terminal_shows_markup_as_it_is_and_details_where_there_is_room() -> None:
    text = terminal(rendered(TABLE, Line(MARKUP, "bad", 2), FactList({"fact": MARKUP})))
    assert text.count(MARKUP) == 4
    assert "raw" in text
    wide = Table(**(vars(TABLE) | {"items": [("n" * 80, 1, 2.0)]}))
    assert "raw" not in terminal(rendered(wide))
    assert "1.2 MiB" in text
    assert terminal(rendered(Table("none", "None", [], [], without="There is none."))) == (
        "There is none.\n"
    )


def test_a_page_shows_markup_as_it_is_and_sorts_by_the_numbers() -> None:
    html = shown(TABLE)
    assert "<b>" not in html.partition("<script")[0]
    assert visible(html).count(MARKUP) == 8
    assert 'data-value="1234567.0"' in html
    assert 'data-value=""' in html
    assert 'class="good number"' in html
    assert html.count('data-candidate="0"') == 1  # the row that a key hides


def test_every_medium_says_the_same() -> None:
    texts = [text for row in TABLE.rows() for text in row.texts[:1]]
    for medium in (markdown(TABLE).replace("\\|", "|"), terminal(rendered(TABLE))):
        assert all(text in medium for text in texts)


HOSTILE = "[/] [red]r[/red] \x1b[31m \x1b]0;title\x07 \x9b1m \u202ereversed \udcff \r\b\t"
SAFE = "[/] [red]r[/red] \\x1b[31m \\x1b]0;title\\x07 \\x9b1m \\u202ereversed \\udcff \\r\\x08\\t"


def test_a_terminal_obeys_no_text_in_any_part() -> None:
    columns = [words(HOSTILE, lambda each: each, unit=HOSTILE), Column("n", lambda each: 1)]
    parts = [
        FactList({HOSTILE: HOSTILE}),
        Table("table", HOSTILE, columns, [HOSTILE], notes=[HOSTILE], group=lambda each: each),
        Table("table", HOSTILE, columns, [], without=HOSTILE),
        Line(HOSTILE, "good"),
    ]
    shown = terminal(*(rendered(part) for part in parts))
    assert printable(HOSTILE) == SAFE
    told = EecompileError(found=HOSTILE, expected="a name", remedy="choose one")
    assert str(told).startswith(f"found {SAFE}; ")
    assert all(each.isprintable() or each == "\n" for each in shown)
    assert "".join(shown.split()).count("[31m") == 9
    assert printable("Größe – 1\n∞ 模型") == "Größe – 1\n∞ 模型"  # noqa: RUF001


def test_names_of_a_manifest_are_shown_as_they_are() -> None:
    stored = (ROOT / "tests" / "golden" / "reports" / "bundle.json").read_bytes()
    manifest = msgspec.json.decode(stored, type=BundleManifest)
    schedule = next(iter(manifest.interface.schedules.values()))
    hostile = {"[/]": schedule, "\x1b[2J": schedule}
    interface = msgspec.structs.replace(manifest.interface, schedules=hostile)
    changed = msgspec.structs.replace(manifest, interface=interface, versions={"\x1b[1m": "[/]"})
    shown = terminal(rendered(*bundle_parts(changed)))
    assert "[/]" in shown
    assert "\\x1b[2J" in shown
    assert "\\x1b[1m [/]" in shown
    error = UsageError(found="network '\x1b[31m[/]'", expected="one", remedy="rename it")
    assert "\x1b" not in terminal(as_it_is(str(error)))
