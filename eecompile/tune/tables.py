"""The tables of a tuning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from eecompile.show.table import Column, Line, Part, Table, whole, words
from eecompile.tune.findings import findings
from eecompile.tune.report import Front, FrontPoint, Kind

KINDS: dict[Kind, str] = {
    "found": "found",
    "steps": "fewer steps",
    "ase": "authors' shares (ASE)",
    "linear": "linear",
    "exit": "one exit throughout",
    "recipe": "the recipe's",
    "alone": "one kind of choice",
    "published": "published rules",
    "full": "full depth",
}
"""What each kind of program is called."""
_GROUPS: tuple[tuple[Kind, ...], ...] = (
    ("full", "found"), ("alone",), ("ase", "linear", "recipe"), ("exit",), ("published",),
    ("steps",),
)  # fmt: skip

_ROOM = 40  # characters of a schedule's short text
_UNIT = 4  # choices that are told once where they repeat


def front_parts(front: Front) -> list[Part]:
    """What choices cost, the front among the baselines, and what came out."""
    settings, facts = front.settings, front.machine
    where = ", ".join(filter(None, (facts.get("gpus"), facts.get("cpu"))))
    words = (
        f"{front.network} on {where}: {settings.solver}, {settings.steps} steps, batch "
        f"{settings.batch}; times and distances are to full depth"
    )
    return [
        Line(words),
        latencies_table(front),
        points_table(front),
        *([comparisons_table(front)] if front.comparisons else []),
        *map(Line, findings(front.points, front.comparisons)),
        *(Line(f"note: {warning}", "warning") for warning in front.warnings),
    ]


def latencies_table(front: Front) -> Table:
    """What a step takes with each choice."""
    columns = [
        words("choice", lambda each: each.choice.text + (", guided" if each.guided else "")),
        Column("median", lambda each: each.median, "ms"),
        Column("p10", lambda each: each.p10, "ms"),
        Column("p90", lambda each: each.p90, "ms"),
        Column("rounds", lambda each: each.rounds, "", whole),
    ]
    title = f"What a step takes at batch {front.settings.batch}, the solver's arithmetic included"
    return Table("latencies", title, columns, front.latencies)


def points_table(front: Front) -> Table:
    """A row for each program, with those alike together."""
    columns = [
        words("schedule", lambda point: point.name),
        words("kind", lambda point: KINDS[point.kind], detail=True),
        Column("steps", lambda point: point.steps, "", whole, detail=True),
        Column("time", lambda point: point.time_share, "share"),
        Column("predicted", lambda point: point.predicted_share, "share"),
        Column("ideal", lambda point: point.ideal_share, "share"),
        Column("time", lambda point: 1e3 * point.seconds_per_sample, "ms a sample", detail=True),
        Column("distance", lambda point: point.distance or None, f"of the {front.unit}"),
        Column("from", lambda point: point.interval[0] if point.distance else None, "95 %"),
        Column("to", lambda point: point.interval[1] if point.distance else None, "95 %"),
        Column("PSNR", lambda point: point.psnr, "dB", detail=True),
        Column("when chosen", lambda point: point.chosen_by, "distance", detail=True),
        words(
            "choices", _short, "per step; ~ is a forecast", detail=True, long=True, behind=_choices
        ),
    ]
    points = [
        point
        for kinds in _GROUPS
        for point in sorted(front.points, key=lambda point: -point.time_share)
        if point.kind in kinds
    ]
    unit = "data's range" if front.unit == "range" else "samples' deviation"
    title = (
        f"Programs, on {front.settings.held_out} held-out samples; times are shares of full "
        f"depth's, distances are of the {unit}"
    )
    return Table(
        "points",
        title,
        columns,
        points,
        key=lambda point: "" if point.kind == "full" else KINDS[point.kind],
        group=lambda point: next(kinds[0] for kinds in _GROUPS if point.kind in kinds),
        tone=lambda point: "strong" if point.kind == "found" else "",
    )


def _choices(point: FrontPoint) -> str:
    """Runs of equal steps: ``12, 9 x 3, again, 6@cpu-bf16``."""
    runs = ((choice.text, len(list(run))) for choice, run in groupby(point.choices))
    return ", ".join(name if count == 1 else f"{name} x {count}" for name, count in runs)


def _short(point: FrontPoint) -> str:
    """What repeats, told once, and the rest left out: ``12 x 3, (~1 12) x 20, ...``."""
    names = [c.text if c.evaluates else f"~{c.order}" for c in point.choices]
    text, at = "", 0
    while at < len(names):
        unit, times = _repeated(names[at:])
        name = unit[0] if len(unit) == 1 else f"({' '.join(unit)})"
        part = name if times == 1 else f"{name} x {times}"
        if text and len(text) + len(part) > _ROOM:
            return f"{text}, ..."
        text, at = f"{text}, {part}" if text else part, at + len(unit) * times
    return text


def _repeated(names: Sequence[str]) -> tuple[Sequence[str], int]:
    """What names begin with, one or more, that covers the most of them by being repeated."""
    best, most = names[:1], 1
    for length in range(1, _UNIT + 1):
        unit, times = names[:length], 1
        while names[length * times : length * (times + 1)] == unit:
            times += 1
        if times > 1 and length * times > len(best) * most:
            best, most = unit, times
    return best, most


def comparisons_table(front: Front) -> Table:
    """Baselines beside the found schedules that take no longer."""
    columns = [
        words("other", lambda each: each.baseline),
        words("found", lambda each: each.found),
        Column("time", lambda each: each.time_share, "share"),
        Column("distance", lambda each: each.distance_ratio, "ratio"),
        Column("from", lambda each: each.interval[0], "95 %", detail=True),
        Column("to", lambda each: each.interval[1], "95 %", detail=True),
        Column("time at its distance", lambda each: each.time_share_at_distance, "share"),
    ]
    without = "No found schedule takes as little time as these."
    title = (
        "Against what needs no tuning, and one kind of choice alone: the found schedule that takes "
        "no longer, with its time and distance over the other's"
    )
    return Table("comparisons", title, columns, front.comparisons, without=without)
