"""The plots of a tuning, built with plotly in the style of a comparison's."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from eecompile.compare.markup import number
from eecompile.compare.plots import new_figure, shown_name, text_lines
from eecompile.tune.report import Front, Kind, Point

__all__ = ["KINDS", "depths", "errors", "front_plot", "predictions"]

_INK, _SOFT, _LINE, _ACCENT = "var(--ink)", "var(--soft)", "var(--line)", "var(--accent)"
KINDS: dict[Kind, tuple[str, str, str]] = {
    "found": ("found", "var(--candidate-1)", "circle"),
    "steps": ("fewer steps", "var(--candidate-2)", "square"),
    "ase": ("authors' shares (ASE)", "var(--candidate-4)", "diamond"),
    "linear": ("linear", "var(--candidate-3)", "triangle-up"),
    "exit": ("one exit throughout", "var(--candidate-5)", "cross"),
    "recipe": ("the recipe's", "var(--candidate-0)", "star"),
}
"""By kind: what it is called, its colour, and its symbol."""


def front_plot(front: Front) -> go.Figure:
    """Distance to full depth against time; whiskers are intervals."""
    unit = "data's range" if front.unit == "range" else "samples' deviation"
    figure = new_figure(460, "time (share of full depth's)", f"distance to full depth ({unit})")
    for index, (kind, (_, colour, symbol)) in enumerate(KINDS.items()):
        points = sorted((p for p in front.points if p.kind == kind), key=lambda p: p.time)
        if points:
            trace = _points(points, colour, symbol)
            lines = kind in ("found", "steps")
            trace.update(mode="lines+markers" if lines else "markers", meta=index)
            trace.update(line={"color": colour, "width": 1.5, "dash": "solid" if lines else "dot"})
            figure.add_trace(trace)
    figure.update_xaxes(range=[0, 1.05])
    figure.update_yaxes(type="log", exponentformat="power")
    return figure


def _points(points: Sequence[Point], colour: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=[point.time for point in points],
        y=[point.distance or None for point in points],
        error_y=_whiskers(
            [point.distance for point in points], [point.interval for point in points], colour
        ),
        marker={"color": colour, "symbol": symbol, "size": 9},
        hovertext=[_words(point) for point in points],
        hoverinfo="text",
        name=KINDS[points[0].kind][0],
    )


def _whiskers(
    values: Sequence[float], bounds: Sequence[tuple[float, float]], colour: str
) -> dict[str, object]:
    """Error bars from each value to its lower and upper bound."""
    pairs = list(zip(values, bounds, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in pairs],
        "arrayminus": [value - low for value, (low, _) in pairs],
        "color": colour,
        "thickness": 1,
        "width": 2,
    }


def _words(point: Point) -> str:
    low, high = point.interval
    lines = [
        shown_name(point.name),
        f"time {number(point.time)}, predicted {number(point.predicted)}, "
        f"ideal {number(point.ideal)}",
        f"distance {number(point.distance)} ({number(low)} to {number(high)})",
    ]
    if point.psnr is not None:
        lines.append(f"PSNR {number(point.psnr)} dB")
    return text_lines(*lines)


def depths(front: Front) -> go.Figure | None:
    """Which exit runs at each step, a row a found schedule; None without any."""
    points = [point for point in front.points if point.kind == "found"]
    points = [point for point in points if point.name.startswith("budget")] or points
    points.sort(key=lambda point: -point.predicted)
    if not points:
        return None
    names = ["", *(name for name in front.engines[1:])]
    height = 70 + 96 * len(points)
    figure = make_subplots(
        rows=len(points),
        shared_xaxes=True,
        vertical_spacing=min(0.9 / len(points), 30 / height),
        subplot_titles=[
            f"<b>{shown_name(p.name)}</b>  time {number(p.time)}, distance {number(p.distance)}"
            for p in points
        ],
    )
    for row, point in enumerate(points, 1):
        figure.add_trace(_bars(point, names), row=row, col=1)
    plain = new_figure(height, "", "")
    figure.update_layout(plain.layout.to_plotly_json() | {"annotations": figure.layout.annotations})
    axis = {k: v for k, v in plain.layout.yaxis.to_plotly_json().items() if k != "title"}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": _INK})
    ticks = sorted({each.choice.blocks for each in front.latencies if each.choice.evaluates})
    figure.update_yaxes(tickvals=ticks, range=[0, ticks[-1] * 1.08])
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(title_text="step (left: noise, right: data)", row=len(points))
    figure.update_layout(margin_t=30, bargap=0.08)
    return figure


def _bars(point: Point, names: Sequence[str]) -> go.Bar:
    """A bar a step; colours tell engine sets apart, no bar is the previous output once more."""
    colours = [f"var(--candidate-{1 + names.index(c.engine) % 5})" for c in point.choices]
    texts = [f"step {index}: {choice.text}" for index, choice in enumerate(point.choices, 1)]
    return go.Bar(
        x=list(range(1, len(point.choices) + 1)),
        y=[choice.blocks for choice in point.choices],
        marker={"color": colours},
        hovertext=texts,
        hoverinfo="text",
        name=shown_name(point.name),
    )


def errors(front: Front) -> go.Figure | None:
    """Distance that each choice leads to where it is taken at one step alone; None without any."""
    if not front.errors:
        return None
    figure = new_figure(400, "t", "distance, at this step alone")
    symbols = [symbol for _, _, symbol in KINDS.values()]
    for index, (way, values) in enumerate(zip(front.ways, front.errors, strict=True)):
        colour = f"var(--candidate-{1 + index % 5})"
        figure.add_trace(
            go.Scatter(
                x=list(front.moments),
                y=[value or None for value in values],
                mode="lines+markers+text",
                line={"color": colour, "width": 1.5, "dash": "solid" if index < 5 else "dot"},
                marker={"color": colour, "size": 5, "symbol": symbols[index % len(symbols)]},
                text=[*[""] * (len(values) - 1), f" {shown_name(way)}"],
                textposition="middle right",
                textfont={"color": _SOFT, "size": 11},
                cliponaxis=False,
                hovertext=[
                    text_lines(shown_name(way), f"t = {number(t)}", f"distance {number(value)}")
                    for t, value in zip(front.moments, values, strict=True)
                ],
                hoverinfo="text",
                name=shown_name(way),
            )
        )
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_xaxes(autorange="reversed")
    figure.update_layout(margin_r=90)
    return figure


def predictions(front: Front) -> go.Figure:
    """Predicted time of each program against what was measured."""
    figure = new_figure(340, "predicted time", "measured time")
    for index, (kind, (_, colour, symbol)) in enumerate(KINDS.items()):
        points = [point for point in front.points if point.kind == kind]
        if points:
            figure.add_trace(
                go.Scatter(
                    x=[point.predicted for point in points],
                    y=[point.time for point in points],
                    error_y=_whiskers(
                        [point.time for point in points], [p.spread for p in points], colour
                    ),
                    mode="markers",
                    marker={"color": colour, "symbol": symbol, "size": 8},
                    meta=index,
                    hovertext=[_words(point) for point in points],
                    hoverinfo="text",
                )
            )
    ends = [0.0, 1.05]
    line = {"color": _SOFT, "width": 1, "dash": "dot"}
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip"))
    figure.update_xaxes(range=ends)
    figure.update_yaxes(range=ends)
    return figure
