"""The plots of a tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eecompile.show.plots import (
    COLOURS,
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

_MARKS: dict[Kind, Mark] = {
    "found": Mark(0, colour(0), "circle"),
    "steps": Mark(1, colour(1), "square"),
    "ase": Mark(2, colour(3), "diamond"),
    "linear": Mark(3, colour(2), "triangle-up"),
    "exit": Mark(4, colour(4), "cross"),
    "recipe": Mark(5, "var(--candidate-0)", "star"),
    "published": Mark(6, colour(2), "triangle-down"),
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
    """Distance to full depth against time; whiskers are intervals."""
    unit = "data's range" if front.unit == "range" else "samples' deviation"
    figure = new_figure(460, "time (share of full depth's)", f"distance to full depth ({unit})")
    for kind, mark, found in _kinds(front):
        lines = kind in ("found", "steps")
        distances, spans = [p.distance for p in found], [p.interval for p in found]
        figure.add_trace(
            points(
                [point.time_share for point in found],
                [distance or None for distance in distances],
                _texts(found),
                mark,
                name=KINDS[kind],
                error_y=whiskers(distances, spans, mark.colour),
                mode="lines+markers" if lines else "markers",
                line={"color": mark.colour, "width": 1.5, "dash": "solid" if lines else "dot"},
            )
        )
    figure.update_xaxes(range=[0, 1.05])
    figure.update_yaxes(type="log", exponentformat="power")
    return figure


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
    return choices_by_step(rows, sorted(depths)) if rows else None


def errors(front: Front) -> Figure | None:
    """Distance that each choice leads to where it is taken at one step alone; None without any."""
    if not front.errors:
        return None
    figure = new_figure(400, "t", "distance, at this step alone")
    symbols = [mark.symbol for mark in _MARKS.values()]
    for index, (term, values) in enumerate(zip(front.error_terms, front.errors, strict=True)):
        mark, name = Mark(index, colour(index), symbols[index % len(symbols)]), shown_name(term)
        dash = "solid" if index < COLOURS else "dot"
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
                mode="lines+markers+text",
                line={"color": mark.colour, "width": 1.5, "dash": dash},
                marker={"color": mark.colour, "size": 5, "symbol": mark.symbol},
                text=[*[""] * (len(values) - 1), f" {name}"],
                textposition="middle right",
                textfont={"color": SOFT, "size": 11},
                cliponaxis=False,
                name=name,
            )
        )
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_xaxes(autorange="reversed")
    figure.update_layout(margin_r=90)
    return figure


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
