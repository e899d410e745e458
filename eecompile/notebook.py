"""What notebooks show of objects: facts, tables and bars as HTML that needs nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

_HIGH = 60  # pixels of the highest bar
_WIDE = 720  # pixels of all bars
_STYLE = "text-align:left;vertical-align:top"


def facts_html(title: str, facts: Mapping[str, object], *more: str) -> str:
    """A title, names with what is said of each, and further parts below."""
    rows = "".join(
        f'<tr><th style="{_STYLE}">{html.escape(name)}</th>'
        f'<td style="{_STYLE}">{html.escape(str(fact))}</td></tr>'
        for name, fact in facts.items()
    )
    return f"<div><strong>{html.escape(title)}</strong><table>{rows}</table>{''.join(more)}</div>"


def table_html(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bars_html(bars: Sequence[tuple[float, int, str]], full: int, below: str) -> str:
    """Bars side by side as an SVG picture.

    Args:
        bars: of each its width, the blocks that run, and what is said when it is touched.
        full: blocks of the highest bar.
        below: what is said of the axis.
    """
    whole, left, drawn = sum(width for width, _, _ in bars), 0.0, []
    for width, blocks, said in bars:
        wide, high = _WIDE * width / whole, _HIGH * blocks / full
        drawn.append(
            f'<rect x="{left:.1f}" y="{_HIGH - high:.1f}" width="{max(wide - 1, 0.5):.1f}" '
            f'height="{high:.1f}" fill="#1653bf"><title>{html.escape(said)}</title></rect>'
        )
        left += wide
    size = f'viewBox="0 0 {_WIDE} {_HIGH + 18}" width="{_WIDE}" style="max-width:100%"'
    text = f'<text x="0" y="{_HIGH + 14}" font-size="12" fill="currentColor">'
    words = f"{text}{html.escape(below)}</text>"
    label = f'role="img" aria-label="{html.escape(below)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {label}>{"".join(drawn)}{words}</svg>'
