"""Pages of results: one file with its plots, tables and pictures, that has nothing to fetch."""

from __future__ import annotations

import base64
import gzip
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from eecompile.errors import UsageError
from eecompile.show import table
from eecompile.show.plots import Figure, Mark

LIMIT = 6_000_000  # bytes of a page; pictures beyond that are left out, and named
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plot:
    """A figure and its caption; hidden with ``key`` if it shows that only."""

    figure: Figure
    caption: str
    key: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it.

    Attributes:
        heading: of the section.
        words: a paragraph.
        lines: a list of sentences.
        parts: tables and facts.
        plots: side by side where there is room.
        pictures: PNG files by label.
        warns: whether a reader must not overlook it.
    """

    heading: str
    words: str = ""
    lines: Sequence[str] = ()
    parts: Sequence[table.Table | table.FactList] = ()
    plots: Sequence[Plot] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    warns: bool = False


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        command: that made it.
        network: name.
        what: the page is of the network: ``comparison``.
        machine: its public facts.
        version: of eecompile.
        opening: sections above the keys.
        role: what the keys stand for.
        keys: names of what can be shown and hidden.
        marks: how these look, and what cannot be hidden.
        sections: below the keys.
    """

    command: str
    network: str
    what: str
    machine: Mapping[str, str]
    version: str
    opening: Sequence[Section]
    role: str
    keys: Sequence[str]
    marks: Mapping[str, Mark]
    sections: Sequence[Section]


def page_text(page: Page) -> str:
    """The page as HTML.

    Pictures with which it would be larger than :data:`LIMIT` are left out and named.

    Raises:
        UsageError: a picture is no PNG file.
    """
    room = LIMIT - len(_rendered(page, {}, ()).encode())
    shown: dict[str, _Picture] = {}
    left: list[str] = []
    for section in page.sections:
        for label, png in section.pictures.items():
            picture = _picture(label, png)
            needs = len(picture.data) + 3 * len(label.encode()) + 200  # with its element
            if needs + 1000 > room:  # some for the words around them
                left.append(label)
                continue
            room -= needs
            shown[label] = picture
    return _rendered(page, shown, left)


def _rendered(page: Page, pictures: Mapping[str, _Picture], left: Sequence[str]) -> str:
    figures = [plot.figure for section in page.sections for plot in section.plots]
    content = f"[{','.join(figure.to_json() for figure in figures)}]".replace("<", "\\u003c")
    return _template().render(
        page=page,
        pictures=pictures,
        left=left,
        figures=Markup(content),
        plotly=_plotly(),
        style=Markup((_HERE / "page.css").read_text("utf-8")),
        script=Markup((_HERE / "page.js").read_text("utf-8")),
    )


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda part: isinstance(part, table.Table)
    return environment.get_template("page.html")


@lru_cache(maxsize=1)
def _plotly() -> Markup:
    """plotly.js, compressed: a third of its size, so that the page can hold pictures."""
    return Markup(base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode())


class _Picture(NamedTuple):
    """A picture's base64, and its size in pixels."""

    data: str
    width: int
    height: int


def _picture(label: str, png: bytes) -> _Picture:
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise UsageError(
            found=f"an image {label!r} that is no PNG file",
            expected="PNG files",
            remedy="encode it as PNG",
        )
    width, height = struct.unpack(">II", png[16:24])
    return _Picture(base64.b64encode(png).decode(), width, height)
