"""The plots of a tuning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from eecompile.show.plots import (
    INK,
    LINE,
    SOFT,
    Figure,
    Mark,
    choices_by_step,
    colour,
    new_figure,
    points,
    shown_name,
    text_lines,
    whiskers,
)
from eecompile.show.table import number
from eecompile.tune.report import Front, FrontPoint, Kind
from eecompile.tune.tables import KINDS

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_LINE_SHARE = 0.055  # of the height of a plot, that a line of text takes
_SIDES = {  # of points, for their names
    "found": "bottom left",
    "steps": "top right",
    "exit": "middle left",
    "ase": "top center",
    "published": "bottom right",
    "alone": "bottom center",
}
_MARKS: dict[Kind, Mark] = {
    "found": Mark(0, colour(0), "circle"),
    "steps": Mark(1, colour(1), "square"),
    "ase": Mark(2, colour(3), "diamond"),
    "linear": Mark(3, colour(2), "triangle-up"),
    "exit": Mark(4, colour(4), "cross"),
    "recipe": Mark(5, "var(--candidate-0)", "star"),
    "published": Mark(6, INK, "triangle-down"),
    "alone": Mark(7, SOFT, "hexagon"),
}


def looks_of(front: Front) -> dict[str, Mark]:
    """By what kinds are called: those that there are, but for full depth."""
    used = {point.kind for point in front.points}
    return {KINDS[kind]: mark for kind, mark in _MARKS.items() if kind in used}


def _kinds(front: Front) -> Iterator[tuple[Kind, Mark, list[FrontPoint]]]:
    """The points of each kind, fastest first."""
    for kind, mark in _MARKS.items():
        if found := [point for point in front.points if point.kind == kind]:
            yield kind, mark, sorted(found, key=lambda point: point.time_share)


def front_plot(front: Front) -> Figure:
    """Distance to full depth against time; whiskers are intervals.

    Below the points runs the front, and upright lines stand at full depth and at the budgets.
    """
    unit = "data's range" if front.unit == "range" else "samples' deviation"
    figure = new_figure(520, "time (share of full depth's)", f"distance to full depth ({unit})")
    best = _front(front.points)
    line = {"color": SOFT, "width": 7, "shape": "hv"}
    figure.add_scatter(
        x=[point.time_share for point in best],
        y=[point.distance for point in best],
        mode="lines",
        line=line,
        opacity=0.25,
        hoverinfo="skip",
    )
    budgets = {point.budget for point in front.points if point.name.startswith("budget")}
    for budget in sorted(filter(None, budgets)):
        _upright(figure, budget, f"{budget:g}", LINE, "dot")
    _upright(figure, 1, "full depth", SOFT, "solid")
    for kind, mark, found in _kinds(front):
        lines = kind == "steps"
        distances, spans = [p.distance for p in found], [p.interval for p in found]
        figure.add_trace(
            points(
                [point.time_share for point in found],
                [distance or None for distance in distances],
                _texts(found),
                mark,
                name=KINDS[kind],
                error_y=whiskers(distances, spans, mark.colour),
                mode="lines+markers+text" if lines else "markers+text",
                line={"color": mark.colour, "width": 1, "dash": "dot"},
                text=[shown_name(point.name.removesuffix(" steps")) for point in found],
                textposition=_SIDES.get(kind, "middle right"),
                textfont={"color": SOFT, "size": 11},
                cliponaxis=False,
            )
        )
    figure.update_xaxes(range=[0, 1.12])
    figure.update_yaxes(type="log", exponentformat="power", dtick="D2")
    figure.update_layout(margin_t=30)
    return figure


def _front(every: Sequence[FrontPoint]) -> list[FrontPoint]:
    """The points that no other beats in time and in distance, fastest first."""
    best: list[FrontPoint] = []
    for point in sorted(every, key=lambda point: (point.time_share, point.distance)):
        if point.distance and (not best or point.distance < best[-1].distance):
            best.append(point)
    return best


def _upright(figure: Figure, across: float, said: str, shade: str, dash: str) -> None:
    """An upright line over the whole plot, named at its top."""
    figure.add_vline(x=across, line={"color": shade, "width": 1.5, "dash": dash})
    font = {"size": 11, "color": SOFT}
    place = {"x": across, "y": 1, "yref": "paper", "yanchor": "bottom"}
    figure.add_annotation(text=said, font=font, showarrow=False, **place)


def _texts(found: Sequence[FrontPoint]) -> list[str]:
    """What is shown of programs when their points are touched."""
    texts = []
    for point in found:
        low, high = point.interval
        lines = [
            shown_name(point.name),
            f"time {number(point.time_share)}, predicted {number(point.predicted_share)}, "
            f"ideal {number(point.ideal_share)}",
            f"distance {number(point.distance)} ({number(low)} to {number(high)})",
        ]
        if point.psnr is not None:
            lines.append(f"PSNR {number(point.psnr)} dB")
        texts.append(text_lines(*lines))
    return texts


def choices(front: Front) -> Figure | None:
    """What runs at each step, a row for each found schedule; None without any."""
    found = [point for point in front.points if point.kind == "found"]
    found = [point for point in found if point.name.startswith("budget")] or found
    found.sort(key=lambda point: -point.time_share)
    rows = [
        (p.name, f"time {number(p.time_share)}, distance {number(p.distance)}", p.choices)
        for p in found
    ]
    depths = {each.choice.blocks for each in front.latencies if each.choice.evaluates}
    return choices_by_step(rows, sorted(depths), _MARKS["found"].colour) if rows else None


def errors(front: Front) -> Figure | None:
    """Distance that each choice leads to where it is taken at one step alone; None without any.

    Lines are told apart by dashes and symbols: colours are those of kinds of programs.
    """
    if not front.errors:
        return None
    figure = new_figure(400, "t", "distance, at this step alone")
    symbols = [mark.symbol for mark in _MARKS.values()]
    for index, (term, values) in enumerate(zip(front.error_terms, front.errors, strict=True)):
        mark, name = Mark(index, INK, symbols[index % len(symbols)]), shown_name(term)
        dash = _DASHES[index % len(_DASHES)]
        figure.add_trace(
            points(
                front.moments,
                [value or None for value in values],
                [
                    text_lines(name, f"t = {number(t)}", f"distance {number(value)}")
                    for t, value in zip(front.moments, values, strict=True)
                ],
                mark,
                meta=None,
                mode="lines+markers",
                line={"color": mark.colour, "width": 1.5, "dash": dash},
                marker={"color": mark.colour, "size": 6, "symbol": mark.symbol},
                name=name,
            )
        )
    for name, value, height in _spaced(front):
        figure.add_annotation(
            text=shown_name(name),
            font={"color": SOFT, "size": 11},
            showarrow=True,
            x=front.moments[-1],
            y=value,
            ax=14,
            ay=height,
            ayref="y",
            xanchor="left",
            arrowwidth=0.7,
            arrowhead=0,
            arrowcolor=SOFT,
        )
    figure.update_yaxes(type="log", exponentformat="power", dtick="D2")
    figure.update_xaxes(autorange="reversed")
    figure.update_layout(margin_r=90)
    return figure


def _spaced(front: Front) -> Iterator[tuple[str, float, float]]:
    """Each choice with its last value, and the height of its name: logarithms, not too near."""
    named = [
        (math.log10(values[-1]), term)
        for term, values in zip(front.error_terms, front.errors, strict=True)
        if values[-1]
    ]
    drawn = [math.log10(value) for values in front.errors for value in values if value]
    step = (max(drawn) - min(drawn)) * _LINE_SHARE if drawn else 0.0
    lowest = -math.inf
    for value, term in sorted(named):
        lowest = max(value, lowest + step)
        yield term, value, lowest


def predictions(front: Front) -> Figure:
    """Predicted time of each program against what was measured."""
    figure = new_figure(340, "predicted time", "measured time")
    for _, mark, found in _kinds(front):
        times, spans = [p.time_share for p in found], [p.spread for p in found]
        error = whiskers(times, spans, mark.colour)
        predicted = [point.predicted_share for point in found]
        figure.add_trace(points(predicted, times, _texts(found), mark, error_y=error))
    ends = [0.0, 1.05]
    line = {"color": SOFT, "width": 1, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip")
    figure.update_xaxes(range=ends)
    figure.update_yaxes(range=ends)
    return figure
