"""What plots have in common, built with plotly.

Colours are names of CSS variables, which page.js replaces by what they stand for in the theme
in use. Names may hold markup, and plotly reads some in all its texts: they are escaped here,
and texts are complete, never templates.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale, unlabel_rgb
from plotly.graph_objects import Figure as Figure
from plotly.subplots import make_subplots

from eecompile.programs.choice import Choice

INK, SOFT, LINE = "var(--ink)", "var(--soft)", "var(--line)"
SCALE = "Viridis"
COLOURS = 5  # --candidate-1 to -5 in page.css; --candidate-0 is the reference's
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "x")
_PATTERNS = ("", "/", "x", ".", "-")
_NAME = 24  # characters of a name that a plot shows


@dataclass(frozen=True)
class Mark:
    """How something looks in every plot and table.

    Attributes:
        index: which one it is.
        colour: a CSS variable.
        symbol: of points.
        pattern: of areas; "" until the colours come round again.
    """

    index: int
    colour: str
    symbol: str
    pattern: str = ""


def colour(place: int) -> str:
    """The colour at a place, from 0; they come round again."""
    return f"var(--candidate-{place % COLOURS + 1})"


def marks(names: Iterable[str], grey: str) -> dict[str, Mark]:
    """By name; colours in turn, and grey for one of them."""
    found: dict[str, Mark] = {}
    turn = 0
    for index, name in enumerate(dict.fromkeys(names)):
        shade, pattern = "var(--candidate-0)", ""
        if name != grey:
            shade, pattern = colour(turn), _PATTERNS[turn // COLOURS % len(_PATTERNS)]
            turn += 1
        found[name] = Mark(index, shade, _SYMBOLS[index % len(_SYMBOLS)], pattern)
    return found


def new_figure(height: int, across: str, along: str) -> Figure:
    """An empty plot, ``height`` pixels high, and the titles of its axes."""
    figure = Figure()
    _quiet(figure, height)
    figure.update_xaxes(title_text=across)
    figure.update_yaxes(title_text=along)
    return figure


def _quiet(figure: Figure, height: int) -> None:
    """The looks that all plots share; their key is the page's."""
    axis: dict[str, Any] = {
        "automargin": True,
        "fixedrange": True,
        "gridcolor": LINE,
        "linecolor": LINE,
        "zeroline": False,
        "zerolinecolor": LINE,
        "title": {"font": {"size": 12, "color": SOFT}, "standoff": 10},
        "tickfont": {"size": 12, "color": SOFT},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 8, "t": 12, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        hoverlabel={"bgcolor": "var(--card)", "bordercolor": LINE, "font": {"color": INK}},
        hovermode="closest",
        dragmode=False,
        showlegend=False,
    )


def points(
    x: Sequence[float], y: Sequence[float | None], texts: Sequence[str], mark: Mark, **more: Any
) -> go.Scatter:
    """Points with texts that are shown when they are touched; hidden with their mark."""
    return go.Scatter(
        x=list(x),
        y=list(y),
        **{"mode": "markers", "meta": mark.index}
        | {"marker": {"color": mark.colour, "symbol": mark.symbol, "size": 9}}
        | {"hovertext": list(texts), "hoverinfo": "text"}
        | more,
    )


def bars(
    x: Sequence[Any], y: Sequence[float], texts: Sequence[str], colours: object, **more: Any
) -> go.Bar:
    """Bars with texts that are shown when they are touched."""
    marker = {"color": colours} | more.pop("marker", {})
    return go.Bar(x=x, y=y, marker=marker, hovertext=texts, hoverinfo="text", **more)


def whiskers(
    values: Sequence[float], bounds: Sequence[tuple[float, float]], shade: str
) -> dict[str, object]:
    """Error bars from each value to its lower and upper bound."""
    pairs = list(zip(values, bounds, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - value) for value, (_, high) in pairs],
        "arrayminus": [max(0.0, value - low) for value, (low, _) in pairs],
        "color": shade,
        "thickness": 1.2,
        "width": 3,
    }


def choices_by_step(
    rows: Sequence[tuple[str, str, Sequence[Choice]]], depths: Sequence[int], shade: str = SOFT
) -> Figure:
    """What each step evaluates: a row for each schedule, and a bar for each of its steps.

    A bar is as high as the blocks that run; there is none where nothing is evaluated. Hatching
    tells engine sets apart, and bars have the colour ``shade``. Rows are names of schedules,
    what is said of each, and the choices of their steps; depths are marked on every axis, and
    the last is full depth.
    """
    height = 66 + 100 * len(rows)
    figure = make_subplots(
        rows=len(rows),
        shared_xaxes=True,
        vertical_spacing=min(0.9 / len(rows), 34 / height),
        subplot_titles=[f"<b>{shown_name(name)}</b>  {said}" for name, said, _ in rows],
    )
    engines = dict.fromkeys(["", *(choice.engine for *_, row in rows for choice in row)])
    hatched = {name: _PATTERNS[place % len(_PATTERNS)] for place, name in enumerate(engines)}
    for index, (name, _, row) in enumerate(rows, 1):
        figure.add_trace(
            bars(
                list(range(1, len(row) + 1)),
                [choice.blocks for choice in row],
                [
                    text_lines(shown_name(name), f"step {step}: {shown_name(choice.text)}")
                    for step, choice in enumerate(row, 1)
                ],
                shade,
                marker={
                    "pattern": {
                        "shape": [hatched[choice.engine] for choice in row],
                        "fillmode": "overlay",
                        "fgcolor": "var(--card)",
                        "fgopacity": 1,
                        "size": 5,
                    }
                },
                name=shown_name(name),
            ),
            row=index,
            col=1,
        )
    _quiet(figure, height)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": INK})
    figure.update_yaxes(tickvals=list(depths), range=[0, depths[-1] * 1.08])
    figure.update_yaxes(title_text="depth (blocks)", row=(len(rows) + 1) // 2)
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(title_text="step (left: noise, right: data)", row=len(rows))
    figure.update_layout(margin_t=30, bargap=0.08)
    return figure


def heat_map(
    levels: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]], **more: Any
) -> go.Heatmap:
    """Cells from 0 to 1, in order, with texts that are shown when they are touched."""
    return go.Heatmap(
        z=[list(row) for row in levels],
        zmin=0,
        zmax=1,
        colorscale=SCALE,
        xgap=2,
        ygap=2,
        hovertext=[list(row) for row in texts],
        hoverinfo="text",
        **more,
    )


def name_cells(axis: Any, names: Sequence[str]) -> None:
    """Names along an axis on which cells lie at 0, 1, ..."""
    axis.update(tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.5])
    axis.update(showgrid=False, ticks="")


def readable(level: float) -> str:
    """Black or white, whichever stands out more from the scale's colour at 0 to 1."""
    (found,) = sample_colorscale(SCALE, [level])
    shares = [part / 255 for part in unlabel_rgb(found)]
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # as WCAG 2 defines it
    return "#000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#fff"


def shown_name(name: str) -> str:
    """A name as plotly shows it literally, cut where it is long."""
    return html.escape(name if len(name) <= _NAME else f"{name[: _NAME - 1]}…")


def text_lines(*lines: str) -> str:
    """Escaped texts below one another."""
    return "<br>".join(lines)
