"""How far a candidate is from the reference, by timestep and exit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale, unlabel_rgb

from eecompile.compare.markup import number
from eecompile.compare.plots import Mark, new_figure, shown_name, text_lines
from eecompile.compare.report import Candidate, ExitFigures, PointError, Report, largest

__all__ = ["errors", "readable"]

SCALE = "Viridis"
_LABELLED = 8  # with no more timesteps than this, cells have room for their figures
_SOFT = "var(--soft)"


def errors(report: Report, candidate: Candidate, mark: Mark) -> go.Figure | None:
    """Relative error by timestep and exit, worst of the batches; None without any.

    All candidates of a report share one logarithmic scale of colours.
    """
    exits = [exit_ for exit_ in candidate.exits if exit_.errors]
    if not exits:
        return None
    times = sorted({point.timestep for exit_ in exits for point in exit_.errors})
    low, high = _decades(report)
    figure = new_figure(110 + 44 * len(exits), "timestep", "exit (depth in blocks)")
    cells = [[_worst(exit_, time) for time in times] for exit_ in exits]
    figure.add_trace(
        go.Heatmap(
            z=[[_level(point, low, high) for point in row] for row in cells],
            zmin=0,
            zmax=1,
            colorscale=SCALE,
            xgap=2,
            ygap=2,
            meta=mark.index,
            hovertext=[
                [_text(candidate.name, exit_.depth, point) for point in row]
                for exit_, row in zip(exits, cells, strict=True)
            ],
            hoverinfo="text",
            colorbar=_colour_bar(low, high),
        )
    )
    if len(times) <= _LABELLED:
        for index, row in enumerate(cells):
            _label(figure, index, row, low, high)
    _name_cells(figure.layout.xaxis, [f"{time:g}" for time in times])
    _name_cells(figure.layout.yaxis, [str(exit_.depth) for exit_ in exits])
    return figure


def readable(level: float) -> str:
    """Black or white, whichever stands out more from the scale's colour at 0 to 1."""
    (colour,) = sample_colorscale(SCALE, [level])
    shares = [part / 255 for part in unlabel_rgb(colour)]
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # as WCAG 2 defines it
    return "#000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#fff"


def _worst(exit_: ExitFigures, timestep: float) -> PointError | None:
    """The largest relative error at a timestep; one that is not finite is the largest."""
    there = [point for point in exit_.errors if point.timestep == timestep]
    return max(there, key=lambda point: largest([point.relative]) or 0.0, default=None)


def _decades(report: Report) -> tuple[int, int]:
    """Powers of ten around all relative errors of a report."""
    logarithms = [
        math.log10(point.relative)
        for candidate in report.candidates
        for exit_ in candidate.exits
        for point in exit_.errors
        if point.relative and math.isfinite(point.relative)
    ]
    low = math.floor(min(logarithms, default=-8))
    return low, max(low + 1, math.ceil(max(logarithms, default=-7)))


def _level(point: PointError | None, low: int, high: int) -> float | None:
    """Where on the scale, 0 to 1; None for what has no place there."""
    if point is None or point.relative is None or not math.isfinite(point.relative):
        return None
    return (math.log10(point.relative) - low) / (high - low) if point.relative > 0 else 0.0


def _name_cells(axis: Any, names: Sequence[str]) -> None:
    """Cells lie at 0, 1, ...: their names may not look like numbers."""
    count = len(names)
    axis.update(tickvals=list(range(count)), ticktext=names, range=[-0.5, count - 0.5])
    axis.update(showgrid=False, ticks="")


def _label(
    figure: go.Figure, index: int, row: Sequence[PointError | None], low: int, high: int
) -> None:
    for place, point in enumerate(row):
        level = _level(point, low, high)
        if point is not None:
            figure.add_annotation(
                x=place,
                y=index,
                text="not finite" if level is None else number(point.relative, 2),
                font={"size": 10, "color": _SOFT if level is None else readable(level)},
                showarrow=False,
            )


def _colour_bar(low: int, high: int) -> dict[str, object]:
    ticks = range(low, high + 1, math.ceil((high - low) / 4))
    return {
        "title": {"text": "relative error", "side": "right", "font": {"color": _SOFT, "size": 12}},
        "tickfont": {"color": _SOFT, "size": 12},
        "tickvals": [(tick - low) / (high - low) for tick in ticks],
        "ticktext": [f"10<sup>{tick}</sup>" for tick in ticks],
        "thickness": 10,
        "outlinewidth": 0,
    }


def _text(name: str, depth: int, point: PointError | None) -> str:
    if point is None:
        return ""
    place = f"exit {depth}, timestep {point.timestep:g}, batch {point.batch}"
    if _level(point, 0, 1) is None:
        return text_lines(shown_name(name), place, "not finite")
    return text_lines(
        shown_name(name),
        place,
        f"relative {number(point.relative)}",
        f"largest {number(point.worst)}, mean {number(point.mean)}",
    )
