"""The plots of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from eecompile.compare.report import (
    Candidate,
    Comparison,
    ExitFigures,
    OutputError,
    TrajectoryFigures,
    largest,
)
from eecompile.show.plots import (
    INK,
    SOFT,
    Figure,
    Mark,
    bars,
    choices_by_step,
    heat_map,
    marks,
    name_cells,
    new_figure,
    points,
    readable,
    shown_name,
    text_lines,
    whiskers,
)
from eecompile.show.table import duration, number

_LABELLED = 8  # with no more timesteps than this, cells have room for their figures
_OPERATORS = 30  # that are shown; the manifest has all


def looks_of(report: Comparison) -> dict[str, Mark]:
    """By candidate; the reference is grey."""
    names = [one.name for one in sorted(report.candidates, key=lambda one: not one.exits)]
    names += [trajectory.candidate for trajectory in report.trajectories]
    return marks(names, grey=report.reference)


def latency(report: Comparison, batch: int, looks: Mapping[str, Mark]) -> Figure | None:
    """Median latency by exit and candidate, with a whisker up to the p90; None without any."""
    figure = new_figure(340, "exit (depth in blocks)", "latency (ms an evaluation)")
    seen = {exit_.depth for candidate in report.candidates for exit_ in candidate.exits}
    for candidate in report.candidates:
        mark, name = looks[candidate.name], shown_name(candidate.name)
        rows = [
            (e.depth, row) for e in candidate.exits for row in e.latencies if row.batch == batch
        ]
        texts = [
            text_lines(
                name,
                f"exit {depth}, batch {batch}",
                f"median {number(row.median)} ms, p90 {number(row.p90)} ms",
                f"{number(row.median / batch)} ms a sample, {row.rounds} rounds",
            )
            for depth, row in rows
        ]
        medians = [row.median for _, row in rows]
        upper = [(row.median, row.p90) for _, row in rows]
        pattern = {"shape": mark.pattern, "fillmode": "overlay", "fgcolor": "var(--card)"}
        if rows:
            figure.add_trace(
                bars(
                    [str(depth) for depth, _ in rows],
                    medians,
                    texts,
                    mark.colour,
                    error_y=whiskers(medians, upper, SOFT),
                    marker={"pattern": pattern | {"fgopacity": 1, "size": 5}},
                    meta=mark.index,
                    name=name,
                )
            )
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.06)
    order = [str(depth) for depth in sorted(seen)]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order, showgrid=False)
    figure.update_yaxes(rangemode="tozero")
    return figure if figure.data else None


def choices(report: Comparison) -> Figure | None:
    """What each step evaluates, by exit schedule; None without trajectories."""
    chosen = dict.fromkeys(
        (row.schedule, row.choices, row.mean_depth) for row in report.trajectories
    )
    depths = {choice.blocks for _, row, _ in chosen for choice in row}
    depths |= {exit_.depth for row in report.candidates for exit_ in row.exits}
    ticks = sorted(depths - {0})
    rows = [
        (name, f"mean depth {number(mean)} of {ticks[-1]}", row)
        for name, row, mean in chosen
        if row
    ]
    return choices_by_step(rows, ticks) if rows else None


def speed_ups(rows: Sequence[TrajectoryFigures], looks: Mapping[str, Mark]) -> Figure | None:
    """Measured speed-ups at one batch size beside what schedules promise; None without any."""
    rows = [row for row in rows if not row.is_full]
    if not rows:
        return None
    schedules = list(dict.fromkeys(row.schedule for row in rows))
    candidates = list(dict.fromkeys(row.candidate for row in rows))
    between = 0.56 / max(1, len(candidates) - 1)
    height = max(170 + 104 * len(schedules), 112 + 20 * len(schedules) * len(candidates))
    figure = new_figure(height, "speed-up over full depth (times)", "exit schedule")
    ideals = dict.fromkeys((row.ideal_speed_up, schedules.index(row.schedule)) for row in rows)
    # An upright line for each schedule, as high as its points are spread.
    figure.add_scatter(
        x=[x for ideal, _ in ideals for x in (ideal, ideal, ideal, None)],
        y=[y for _, at in ideals for y in (at - 0.4, at, at + 0.4, None)],
        mode="lines",
        line={"color": INK, "width": 2},
        hovertext=[
            text
            for ideal, at in ideals
            for line in [text_lines(shown_name(schedules[at]), f"ideal {number(ideal)} times")]
            for text in (line, line, line, "")
        ],
        hoverinfo="text",
    )
    for place, name in enumerate(candidates):
        offset = (place - (len(candidates) - 1) / 2) * between
        mine = [row for row in rows if row.candidate == name]
        heights = [schedules.index(row.schedule) + offset for row in mine]
        figure.add_trace(
            points(
                [row.speed_up for row in mine],
                heights,
                _texts(mine),
                looks[name],
                name=shown_name(name),
            )
        )
    figure.update_yaxes(
        tickvals=list(range(len(schedules))),
        ticktext=[shown_name(name) for name in schedules],
        range=[len(schedules) - 0.45, -0.55],
        showgrid=False,
    )
    ends = [1.0, *(row.ideal_speed_up for row in rows), *(row.speed_up for row in rows)]
    margin = 0.06 * (max(ends) - min(ends)) or 0.1
    figure.update_xaxes(range=[min(ends) - margin, max(ends) + margin])
    figure.add_vline(x=1, line={"color": SOFT, "width": 1, "dash": "dot"})
    return figure


def speed_and_distance(
    rows: Sequence[TrajectoryFigures], looks: Mapping[str, Mark]
) -> Figure | None:
    """Seconds a sample against distance to full depth at one batch size; None without any.

    Full depth itself is at distance 0.
    """
    placed = [row for row in rows if row.distance is not None or row.is_full]
    if not any(row.distance is not None for row in placed):
        return None
    slowest = max(row.seconds_per_sample for row in placed)
    unit, scale = duration(slowest)
    figure = new_figure(420, f"time ({unit} a sample)", "RMS distance to full depth (data's range)")
    placed.sort(key=lambda row: row.seconds_per_sample)
    for place, name in enumerate(dict.fromkeys(row.candidate for row in placed)):
        mine = [row for row in placed if row.candidate == name]
        across = [row.seconds_per_sample * scale for row in mine]
        # Labels of neighbours go to other sides, and none over the axis at the left.
        low = "bottom left" if min(across) > 0.1 * slowest * scale else "bottom right"
        figure.add_trace(
            points(
                across,
                [row.distance or 0.0 for row in mine],
                _texts(mine),
                looks[name],
                name=shown_name(name),
                mode="lines+markers+text",
                line={"color": looks[name].colour, "width": 1, "dash": "dot"},
                text=[shown_name(row.schedule) for row in mine],
                textposition="top right" if place % 2 else low,
                textfont={"color": SOFT, "size": 11},
                cliponaxis=False,
            )
        )
    farthest = max(row.distance or 0.0 for row in placed) or 1.0
    figure.update_yaxes(range=[-0.06 * farthest, 1.15 * farthest], zeroline=True)
    figure.update_xaxes(range=[0, 1.15 * slowest * scale])
    return figure


def _texts(rows: Sequence[TrajectoryFigures]) -> list[str]:
    """What is shown of trajectories when their points are touched."""
    texts = []
    for row in rows:
        lines = [
            f"{shown_name(row.candidate)}, {shown_name(row.schedule)}, batch {row.batch}",
            f"{number(row.seconds_per_sample)} s a sample",
            f"speed-up {number(row.speed_up)}, ideal {number(row.ideal_speed_up)}",
        ]
        if not row.is_full:
            lines.append(f"PSNR {number(row.psnr)} dB, distance {number(row.distance)}")
        texts.append(text_lines(*lines))
    return texts


def errors(report: Comparison, candidate: Candidate, mark: Mark) -> Figure | None:
    """Relative error by timestep and exit, worst of the batches; None without any that is not 0.

    All candidates of a report share one logarithmic scale of colours.
    """
    exits = [exit_ for exit_ in candidate.exits if exit_.errors]
    if not exits or is_exact(candidate):
        return None
    times = sorted({point.timestep for exit_ in exits for point in exit_.errors})
    cells = [[_worst(exit_, time) for time in times] for exit_ in exits]
    named = [f"{shown_name(candidate.name)}<br>exit {exit_.depth}" for exit_ in exits]
    texts = [
        [_cell_text(name, point) for point in row] for name, row in zip(named, cells, strict=True)
    ]
    shown = [["" if point is None else _figure(point.relative) for point in row] for row in cells]
    figure = new_figure(110 + 44 * len(exits), "timestep", "exit (depth in blocks)")
    values = [[None if point is None else point.relative for point in row] for row in cells]
    _fill(figure, values, texts, shown, _decades(report), mark)
    name_cells(figure.layout.xaxis, [f"{time:g}" for time in times])
    name_cells(figure.layout.yaxis, [str(exit_.depth) for exit_ in exits])
    return figure


def operators(candidate: Candidate, mark: Mark) -> Figure | None:
    """Relative error of each operator quantised alone, by timestep; None where not measured.

    The operators with the largest errors are shown, the largest at the top.
    """
    found = candidate.quantisation
    if found is None or not found.timesteps:
        return None
    worst = found.most_sensitive(_OPERATORS)[::-1]
    values = [list(operator.errors) for operator in worst]
    state = {True: "kept", False: "quantised"}
    texts = [
        [
            text_lines(
                f"{candidate.name}: {operator.name}",
                f"{operator.kind}, {state[operator.kept]}, timestep {time:g}",
                f"relative {number(error)}",
            )
            for time, error in zip(found.timesteps, operator.errors, strict=True)
        ]
        for operator in worst
    ]
    shown = [[_figure(value) for value in row] for row in values]
    figure = new_figure(110 + 26 * len(worst), "timestep", "")
    _fill(figure, values, texts, shown, _powers(value for row in values for value in row), mark)
    name_cells(figure.layout.xaxis, [f"{time:g}" for time in found.timesteps])
    names = [shown_name(each.name) + (" (kept)" if each.kept else "") for each in worst]
    name_cells(figure.layout.yaxis, names)
    return figure


def _fill(
    figure: Figure,
    values: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    shown: Sequence[Sequence[str]],
    decades: tuple[int, int],
    mark: Mark,
) -> None:
    """Add a map of relative errors, with their figures where there is room for these."""
    levels = [[_level(value, *decades) for value in row] for row in values]
    figure.add_trace(heat_map(levels, texts, meta=mark.index, colorbar=_colour_bar(*decades)))
    for y, row in enumerate(levels if len(levels[0]) <= _LABELLED else ()):
        for x, level in enumerate(row):
            font = {"size": 10, "color": SOFT if level is None else readable(level)}
            if text := shown[y][x]:
                figure.add_annotation(x=x, y=y, text=text, font=font, showarrow=False)


def _figure(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else number(value, 2)


def is_exact(candidate: Candidate) -> bool:
    """Whether errors were measured, and all of them are 0."""
    found = [point.relative for exit_ in candidate.exits for point in exit_.errors]
    return bool(found) and not any(found)


def _worst(exit_: ExitFigures, timestep: float) -> OutputError | None:
    """The largest relative error at a timestep; one that is not finite is the largest."""
    there = [point for point in exit_.errors if point.timestep == timestep]
    return max(there, key=lambda point: largest([point.relative]) or 0.0, default=None)


def _decades(report: Comparison) -> tuple[int, int]:
    """Powers of ten around all relative errors of a report."""
    return _powers(
        point.relative
        for candidate in report.candidates
        for exit_ in candidate.exits
        for point in exit_.errors
    )


def _powers(values: Iterable[float | None]) -> tuple[int, int]:
    """Powers of ten around values; those that are 0 or not finite do not count."""
    logarithms = [math.log10(value) for value in values if value and math.isfinite(value)]
    low = math.floor(min(logarithms, default=-8))
    return low, max(low + 1, math.ceil(max(logarithms, default=-7)))


def _level(value: float | None, low: int, high: int) -> float | None:
    """Where on the scale, 0 to 1; None for what has no place there."""
    if value is None or not math.isfinite(value):
        return None
    return (math.log10(value) - low) / (high - low) if value > 0 else 0.0


def _colour_bar(low: int, high: int) -> dict[str, object]:
    ticks = range(low, high + 1, math.ceil((high - low) / 4))
    return {
        "title": {"text": "relative error", "side": "right", "font": {"color": SOFT, "size": 12}},
        "tickfont": {"color": SOFT, "size": 12},
        "tickvals": [(tick - low) / (high - low) for tick in ticks],
        "ticktext": [f"10<sup>{tick}</sup>" for tick in ticks],
        "thickness": 10,
        "outlinewidth": 0,
    }


def _cell_text(exit_: str, point: OutputError | None) -> str:
    if point is None:
        return ""
    place = f"{exit_}, timestep {point.timestep:g}, batch {point.batch}"
    if _level(point.relative, 0, 1) is None:
        return text_lines(place, "not finite")
    figures = f"largest {number(point.worst)}, mean {number(point.mean)}"
    return text_lines(place, f"relative {number(point.relative)}", figures)
