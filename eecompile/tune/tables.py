"""The tables of a tuning."""

from __future__ import annotations

from itertools import groupby

from eecompile.show.table import Cell, Column, Line, Part, Row, Table, whole
from eecompile.tune.findings import findings
from eecompile.tune.report import Front, FrontPoint, Kind

KINDS: dict[Kind, str] = {
    "found": "found",
    "steps": "fewer steps",
    "ase": "authors' shares (ASE)",
    "linear": "linear",
    "exit": "one exit throughout",
    "recipe": "the recipe's",
    "full": "full depth",
}
"""What each kind of program is called."""
_GROUPS: tuple[tuple[Kind, ...], ...] = (
    ("full", "found"), ("ase", "linear", "recipe"), ("exit",), ("steps",)
)  # fmt: skip


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
        Column("choice", form=None),
        *(Column(heading, "ms") for heading in ("median", "p10", "p90")),
        Column("rounds", "", whole),
    ]
    rows = []
    for each in front.latencies:
        name = each.choice.text + (", guided" if each.guided else "")
        rows.append(Row((name, each.median, each.p10, each.p90, each.rounds)))
    title = f"What a step takes at batch {front.settings.batch}, the solver's arithmetic included"
    return Table("latencies", title, columns, rows)


def points_table(front: Front) -> Table:
    """A row for each program, with those alike together."""
    columns = [
        Column("schedule", form=None),
        Column("kind", form=None, detail=True),
        Column("steps", "", whole, detail=True),
        *(Column(heading, "share") for heading in ("time", "predicted", "ideal")),
        Column("time", "ms a sample", detail=True),
        Column("distance", f"of the {front.unit}"),
        *(Column(heading, "95 %") for heading in ("from", "to")),
        Column("PSNR", "dB", detail=True),
        Column("when chosen", "distance", detail=True),
        Column("choices", "per step", form=None, detail=True, long=True),
    ]
    rows = [
        Row(
            _cells(point),
            "" if point.kind == "full" else KINDS[point.kind],
            kinds[0],
            "strong" if point.kind == "found" else "",
        )
        for kinds in _GROUPS
        for point in sorted(front.points, key=lambda point: -point.predicted_share)
        if point.kind in kinds
    ]
    unit = "data's range" if front.unit == "range" else "samples' deviation"
    title = (
        f"Programs, on {front.settings.held_out} held-out samples; times are shares of full "
        f"depth's, distances are of the {unit}"
    )
    return Table("points", title, columns, rows)


def _cells(point: FrontPoint) -> tuple[Cell, ...]:
    runs = ((choice.text, len(list(run))) for choice, run in groupby(point.choices))
    distances = (point.distance, *point.interval) if point.distance > 0 else (None,) * 3
    return (
        point.name,
        KINDS[point.kind],
        point.steps,
        point.time_share,
        point.predicted_share,
        point.ideal_share,
        1e3 * point.seconds_per_sample,
        *distances,
        point.psnr,
        point.chosen_by,
        ", ".join(name if count == 1 else f"{name} x {count}" for name, count in runs),
    )


def comparisons_table(front: Front) -> Table:
    """Baselines beside the found schedules that take no longer."""
    columns = [
        *(Column(heading, form=None) for heading in ("baseline", "found")),
        Column("time", "share"),
        Column("distance", "ratio"),
        *(Column(heading, "95 %") for heading in ("from", "to")),
        Column("time at its distance", "share"),
    ]
    rows = [
        Row(
            (
                each.baseline,
                each.found,
                each.time_share,
                each.distance_ratio,
                *each.interval,
                each.time_share_at_distance,
            )
        )
        for each in front.comparisons
    ]
    without = "No found schedule takes as little time as these."
    title = (
        "Against what needs no tuning: the found schedule that takes no longer, with its time and "
        "distance over the baseline's"
    )
    return Table("comparisons", title, columns, rows, without=without)
