"""The plots of a comparison, built with plotly.

Colours are names of CSS variables, which page.js replaces by what they stand for in the
theme in use. What a candidate is called may hold markup, and plotly reads some in all its
texts: names are escaped here, and texts are complete, never templates.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from eecompile.compare.markup import duration, number
from eecompile.compare.report import Candidate, Latency, Report, Trajectory

__all__ = [
    "Mark",
    "depths",
    "latency",
    "marks",
    "new_figure",
    "shown_name",
    "speed_and_distance",
    "speedups",
    "text_lines",
]

_COLOURS = 5  # --candidate-1 to -5 in page.css; --candidate-0 is the reference's
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "x")
_PATTERNS = ("", "/", "x", ".", "-")
_INK, _SOFT, _LINE, _ACCENT = "var(--ink)", "var(--soft)", "var(--line)", "var(--accent)"
_NAME = 24  # characters of a name that a plot shows


@dataclass(frozen=True)
class Mark:
    """How a candidate looks in every plot.

    Attributes:
        index: which candidate.
        colour: a CSS variable.
        symbol: of points.
        pattern: of areas; "" until the colours come round again.
    """

    index: int
    colour: str
    symbol: str
    pattern: str


def marks(report: Report) -> dict[str, Mark]:
    """By candidate; the reference is grey."""
    names = [one.name for one in sorted(report.candidates, key=lambda one: not one.exits)]
    names += [trajectory.candidate for trajectory in report.trajectories]
    found: dict[str, Mark] = {}
    turn = 0
    for name in dict.fromkeys(names):
        colour, pattern = 0, ""
        if name != report.reference:
            colour, pattern = turn % _COLOURS + 1, _PATTERNS[turn // _COLOURS % len(_PATTERNS)]
            turn += 1
        index = len(found)
        symbol = _SYMBOLS[index % len(_SYMBOLS)]
        found[name] = Mark(index, f"var(--candidate-{colour})", symbol, pattern)
    return found


def latency(report: Report, batch: int, looks: Mapping[str, Mark]) -> go.Figure | None:
    """Median latency by exit and candidate, with a whisker up to the p90; None without any."""
    figure = new_figure(340, "exit (depth in blocks)", "latency (ms an evaluation)")
    seen = {exit_.depth for candidate in report.candidates for exit_ in candidate.exits}
    order = [str(depth) for depth in sorted(seen)]
    for candidate in report.candidates:
        rows = [
            (exit_.depth, row)
            for exit_ in candidate.exits
            for row in exit_.latencies
            if row.batch == batch
        ]
        if rows:
            figure.add_trace(_bars(candidate, rows, looks[candidate.name]))
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.06)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, showgrid=False)
    figure.update_yaxes(rangemode="tozero")
    return figure if figure.data else None


def _bars(candidate: Candidate, rows: Sequence[tuple[int, Latency]], mark: Mark) -> go.Bar:
    texts = [
        text_lines(
            shown_name(candidate.name),
            f"exit {depth}, batch {row.batch}",
            f"median {number(row.median)} ms, p90 {number(row.p90)} ms",
            f"{number(row.median / row.batch)} ms a sample, {row.rounds} rounds",
        )
        for depth, row in rows
    ]
    return go.Bar(
        x=[str(depth) for depth, _ in rows],
        y=[row.median for _, row in rows],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, row.p90 - row.median) for _, row in rows],
            "arrayminus": [0.0] * len(rows),
            "color": _SOFT,
            "thickness": 1.2,
            "width": 3,
        },
        marker={
            "color": mark.colour,
            "pattern": {
                "shape": mark.pattern,
                "fillmode": "overlay",
                "fgcolor": "var(--card)",
                "fgopacity": 1,
                "size": 5,
            },
        },
        meta=mark.index,
        hovertext=texts,
        hoverinfo="text",
        name=shown_name(candidate.name),
    )


def depths(report: Report) -> go.Figure | None:
    """Depth of each step, a row a schedule; None without trajectories."""
    chosen = dict.fromkeys(
        (row.schedule, tuple(choice.blocks for choice in row.choices))
        for row in report.trajectories
    )
    if not chosen:
        return None
    used = [depth for _, row in chosen for depth in row]
    ticks = sorted({*used, *(exit_.depth for row in report.candidates for exit_ in row.exits)})
    height = _height(len(chosen))
    figure = make_subplots(
        rows=len(chosen),
        shared_xaxes=True,
        vertical_spacing=min(0.9 / len(chosen), 34 / height),
        subplot_titles=[_schedule_title(name, row, ticks[-1]) for name, row in chosen],
    )
    for index, (name, row) in enumerate(chosen):
        figure.add_trace(_steps(name, row), row=index + 1, col=1)
    _quiet(figure, height)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13, "color": _INK})
    figure.update_yaxes(tickvals=ticks, range=[0, ticks[-1] * 1.08])
    figure.update_yaxes(title_text="depth (blocks)", row=(len(chosen) + 1) // 2)
    figure.update_xaxes(range=[0, max(len(row) for _, row in chosen)], showgrid=False)
    figure.update_xaxes(title_text="step (left: noise, right: data)", row=len(chosen))
    figure.update_layout(margin_t=30)
    return figure


def _height(schedules: int) -> int:
    """Of the plots that have a row a schedule."""
    return 66 + 104 * schedules


def _schedule_title(name: str, row: Sequence[int], full: int) -> str:
    mean = sum(row) / len(row) if row else math.nan
    return f"<b>{shown_name(name)}</b>  mean depth {number(mean)} of {full}"


def _steps(name: str, row: Sequence[int]) -> go.Scatter:
    texts = [
        f"{shown_name(name)}: depth {depth} in step {step + 1}" for step, depth in enumerate(row)
    ]
    return go.Scatter(
        x=list(range(len(row) + 1)),
        y=[*row, *row[-1:]],  # so that the last step is as wide as the others
        mode="lines",
        line={"shape": "hv", "width": 2, "color": _ACCENT},
        fill="tozeroy",
        fillcolor="var(--wash)",
        hovertext=[*texts, *texts[-1:]],
        hoverinfo="text",
    )


def speedups(rows: Sequence[Trajectory], looks: Mapping[str, Mark]) -> go.Figure | None:
    """Measured speed-ups beside what each schedule promises; None without any.

    Args:
        rows: trajectories of one batch size.
        looks: of their candidates.
    """
    rows = [row for row in rows if not _is_full(row)]
    if not rows:
        return None
    schedules = list(dict.fromkeys(row.schedule for row in rows))
    candidates = list(dict.fromkeys(row.candidate for row in rows))
    between = 0.56 / max(1, len(candidates) - 1)
    height = max(_height(len(schedules) + 1), 112 + 20 * len(schedules) * len(candidates))
    figure = new_figure(height, "speed-up over full depth (times)", "exit schedule")
    figure.add_trace(_ideals(rows, schedules))
    for place, name in enumerate(candidates):
        offset = (place - (len(candidates) - 1) / 2) * between
        mine = [row for row in rows if row.candidate == name]
        heights = [schedules.index(row.schedule) + offset for row in mine]
        figure.add_trace(_points([row.speedup for row in mine], heights, mine, looks[name]))
    figure.update_yaxes(
        tickvals=list(range(len(schedules))),
        ticktext=[shown_name(name) for name in schedules],
        range=[len(schedules) - 0.45, -0.55],
        showgrid=False,
    )
    ends = [1.0, *(row.ideal for row in rows), *(row.speedup for row in rows)]
    margin = 0.06 * (max(ends) - min(ends)) or 0.1
    figure.update_xaxes(range=[min(ends) - margin, max(ends) + margin])
    figure.add_vline(x=1, line={"color": _SOFT, "width": 1, "dash": "dot"})
    return figure


def _ideals(rows: Sequence[Trajectory], schedules: Sequence[str]) -> go.Scatter:
    """An upright line a schedule, as high as its points are spread."""
    across: list[float | None] = []
    along: list[float | None] = []
    texts: list[str] = []
    for ideal, schedule in dict.fromkeys((row.ideal, row.schedule) for row in rows):
        middle = schedules.index(schedule)
        across += [ideal, ideal, ideal, None]
        along += [middle - 0.4, middle, middle + 0.4, None]
        texts += [text_lines(shown_name(schedule), f"ideal {number(ideal)} times")] * 3 + [""]
    return go.Scatter(
        x=across,
        y=along,
        mode="lines",
        line={"color": _INK, "width": 2},
        hovertext=texts,
        hoverinfo="text",
    )


def speed_and_distance(rows: Sequence[Trajectory], looks: Mapping[str, Mark]) -> go.Figure | None:
    """Seconds a sample against distance to full depth, labelled; None without any.

    Args:
        rows: trajectories of one batch size; full depth is at distance 0.
        looks: of their candidates.
    """
    placed = [row for row in rows if row.distance is not None or _is_full(row)]
    if not any(row.distance is not None for row in placed):
        return None
    slowest = max(row.seconds_per_sample for row in placed)
    unit, scale = duration(slowest)
    figure = new_figure(420, f"time ({unit} a sample)", "RMS distance to full depth (data's range)")
    placed.sort(key=lambda row: row.seconds_per_sample)
    for place, name in enumerate(dict.fromkeys(row.candidate for row in placed)):
        mine = [row for row in placed if row.candidate == name]
        across = [row.seconds_per_sample * scale for row in mine]
        points = _points(across, [row.distance or 0.0 for row in mine], mine, looks[name])
        colour = looks[name].colour
        points.update(
            mode="lines+markers+text",
            line={"color": colour, "width": 1, "dash": "dot"},
            text=[shown_name(row.schedule) for row in mine],
            textposition=_beside(place, min(across) / (slowest * scale)),
            textfont={"color": _SOFT, "size": 11},
            cliponaxis=False,
        )
        figure.add_trace(points)
    farthest = max(row.distance or 0.0 for row in placed) or 1.0
    figure.update_yaxes(range=[-0.06 * farthest, 1.15 * farthest], zeroline=True)
    figure.update_xaxes(range=[0, 1.15 * slowest * scale])
    return figure


def _beside(place: int, share: float) -> str:
    """Where labels go: neighbours' on other sides, and none over the axis at the left."""
    if place % 2:
        return "top right"
    return "bottom left" if share > 0.1 else "bottom right"


def _is_full(row: Trajectory) -> bool:
    return row.psnr is None and row.distance is None


def _points(
    across: Sequence[float], along: Sequence[float], rows: Sequence[Trajectory], mark: Mark
) -> go.Scatter:
    texts = []
    for row in rows:
        lines = [
            f"{shown_name(row.candidate)}, {shown_name(row.schedule)}, batch {row.batch}",
            f"{number(row.seconds_per_sample)} s a sample",
            f"speed-up {number(row.speedup)}, ideal {number(row.ideal)}",
        ]
        if not _is_full(row):
            lines.append(f"PSNR {number(row.psnr)} dB, distance {number(row.distance)}")
        texts.append(text_lines(*lines))
    return go.Scatter(
        x=list(across),
        y=list(along),
        mode="markers",
        marker={"color": mark.colour, "symbol": mark.symbol, "size": 10},
        meta=mark.index,
        hovertext=texts,
        hoverinfo="text",
        name=shown_name(rows[0].candidate),
    )


def new_figure(height: int, across: str, along: str) -> go.Figure:
    """An empty plot, ``height`` pixels high, and the titles of its axes."""
    figure = go.Figure()
    _quiet(figure, height)
    figure.update_xaxes(title_text=across)
    figure.update_yaxes(title_text=along)
    return figure


def _quiet(figure: go.Figure, height: int) -> None:
    """The looks that all plots share; their key is the page's."""
    axis: dict[str, Any] = {
        "automargin": True,
        "fixedrange": True,
        "gridcolor": _LINE,
        "linecolor": _LINE,
        "zeroline": False,
        "zerolinecolor": _LINE,
        "title": {"font": {"size": 12, "color": _SOFT}, "standoff": 10},
        "tickfont": {"size": 12, "color": _SOFT},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 8, "t": 12, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": _INK},
        hoverlabel={"bgcolor": "var(--card)", "bordercolor": _LINE, "font": {"color": _INK}},
        hovermode="closest",
        dragmode=False,
        showlegend=False,
    )


def shown_name(name: str) -> str:
    """A name as plotly shows it literally, cut where it is long."""
    return html.escape(name if len(name) <= _NAME else f"{name[: _NAME - 1]}…")


def text_lines(*lines: str) -> str:
    """Escaped texts below one another."""
    return "<br>".join(lines)
