"""What every page of ours has: one file, plots drawn when they are looked at, nothing to fetch."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from functools import lru_cache

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from eecompile.compare.markup import Html, element

__all__ = ["POLICY", "Figures", "document", "library"]

# The page may run its own scripts and show its own pictures. It may load nothing.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def document(parts: Sequence[Html]) -> str:
    """The page's text: a head, and the parts of its main element."""
    head, *body = parts
    content = element("main", *body)
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{content}\n</body>\n</html>\n'


@lru_cache(maxsize=1)
def library() -> Html:
    """plotly.js, compressed: a third of its size, so that the page can hold pictures."""
    return Html(base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode())


class Figures:
    """The page's plots, and the elements that they are drawn into."""

    def __init__(self) -> None:
        self._specifications: list[str] = []

    def place(
        self, figure: go.Figure, caption: str, *, candidate: int | None = None, wide: bool = False
    ) -> Html:
        """Where a figure goes; hidden with its ``candidate`` if it shows one only."""
        plot = element(
            "div",
            class_="plot",
            role="img",
            aria_label=caption,
            data_figure=len(self._specifications),
            style=f"height: {figure.layout.height}px",
        )
        self._specifications.append(figure.to_json())
        return element(
            "figure",
            element("figcaption", caption),
            plot,
            data_candidate=candidate,
            class_="wide" if wide else None,
        )

    def json(self) -> str:
        """All figures as a list that may stand in a script element."""
        return f"[{','.join(self._specifications)}]".replace("<", "\\u003c")
