"""What a reader sees: the text of a page, and what a terminal of 100 columns shows."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from typing import Any

from rich.console import Console, RenderableType

__all__ = ["plots", "terminal", "visible"]

_UNSEEN = {"script", "style"}
_WORDS = {"strong", "em", "code", "b", "i", "a"}


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unseen += tag in _UNSEEN
        self._part(tag)

    def handle_endtag(self, tag: str) -> None:
        self._unseen -= tag in _UNSEEN
        self._part(tag)

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.text += data.replace("\n", " ")

    def _part(self, tag: str) -> None:
        if tag not in _WORDS:
            cells = tag in ("td", "th", "button")
            self.text += " " if tag == "span" else " | " if cells else "\n"


def visible(page: str) -> str:
    """The text of an HTML page, a line for each paragraph and each row of a table."""
    parser = _Text()
    parser.feed(page)
    parser.close()
    lines = []
    for line in parser.text.splitlines():
        cells = (" ".join(cell.split()) for cell in line.split(" | "))
        lines.append(" | ".join(cell for cell in cells if cell))
    return "\n".join(line for line in lines if line) + "\n"


def plots(figures: list[dict[str, Any]]) -> str:
    """What plotly draws, without how it looks."""
    lines = []
    for index, figure in enumerate(figures):
        axes = {
            name: axis["title"]["text"]
            for name, axis in figure["layout"].items()
            if "axis" in name and axis.get("title", {}).get("text")
        }
        lines.append(f"plot {index}: {json.dumps(axes, ensure_ascii=False)}")
        for trace in figure["data"]:
            values = {key: trace[key] for key in ("x", "y", "z") if key in trace}
            name = f" {trace['name']}" if "name" in trace else ""
            lines.append(f"  {trace['type']}{name}: {json.dumps(values)}")
    return "\n".join(lines) + "\n"


def terminal(*shown: RenderableType) -> str:
    """As a terminal shows it, without colours and without spaces at the ends of lines."""
    out = io.StringIO()
    console = Console(
        file=out, width=100, height=25, color_system=None, force_terminal=False, _environ={}
    )
    console.print(*shown, sep="\n\n")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
