"""What the held-out samples say of each program, and of found schedules beside baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eecompile.measure.bootstrap import intervals
from eecompile.measure.timing import median_interval
from eecompile.programs.choice import Choice
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.show.table import number
from eecompile.tune.held_out import Measured
from eecompile.tune.report import BaselineComparison, FrontPoint, Kind, TuningSettings

_ROOM = 1.01  # times that differ by less are equal
_APART = 0.05  # of predicted and measured time, of half of the programs
_OFF = 0.1  # of a program's predicted and measured time
_SURE = 0.1  # half an interval, as a share of the distance, that a front can be read with


class Entry(NamedTuple):
    """A program to be measured on the held-out samples, as it goes into the report."""

    name: str
    kind: Kind
    program: Program
    schedule: ExitSchedule
    steps: int
    predicted: float
    budget: float | None = None
    chosen_by: float | None = None


def points(
    entries: Sequence[Entry],
    results: Mapping[str, Measured],
    scale: float,
    interface: Interface,
    settings: TuningSettings,
) -> list[FrontPoint]:
    """A point for each program that gave finite samples, full depth first."""
    kept = [entry for entry in entries if entry.name in results]
    spans = intervals([results[entry.name].squares for entry in kept], seed=settings.seed)
    full = len(entries[0].program.steps)
    made = []
    for entry, span in zip(kept, spans, strict=True):
        result = results[entry.name]
        distance = math.sqrt(float(result.squares.mean())) / scale
        choices = tuple(step.chosen for step in entry.program.steps)
        bounded = interface.state.range is not None and distance > 0
        made.append(
            FrontPoint(
                name=entry.name,
                kind=entry.kind,
                steps=entry.steps,
                schedule=entry.schedule,
                choices=choices,
                budget=entry.budget,
                predicted_share=entry.predicted,
                time_share=float(np.median(result.times)),
                spread=(float(result.times.min()), float(result.times.max())),
                ideal_share=sum(map(interface.cost, choices)) / full,
                seconds_per_sample=float(np.median(result.seconds)) / settings.batch,
                distance=distance,
                interval=(span[0] / scale, span[1] / scale),
                psnr=-20 * math.log10(distance) if bounded else None,
                chosen_by=entry.chosen_by,
            )
        )
    return made


def comparisons(
    made: Sequence[FrontPoint], results: Mapping[str, Measured], seed: int
) -> list[BaselineComparison]:
    """Every baseline beside the nearest found schedule that takes no longer, as measured."""
    found = [point for point in made if point.kind == "found"]
    compared = []
    for baseline in (p for p in made if p.kind not in ("found", "full") and p.distance > 0):
        within = [p for p in found if p.time_share <= baseline.time_share * _ROOM]
        if not within:
            continue
        own = results[baseline.name]
        spans = intervals(
            [results[point.name].squares for point in found],
            over=[own.squares for _ in found],
            seed=seed,
        )
        nearer = [
            point.time_share / baseline.time_share
            for point, span in zip(found, spans, strict=True)
            if span[1] <= 1 and median_interval(results[point.name].times / own.times)[1] < 1
        ]
        best = min(within, key=lambda point: point.distance)
        compared.append(
            BaselineComparison(
                baseline=baseline.name,
                found=best.name,
                time_share=best.time_share / baseline.time_share,
                distance_ratio=best.distance / baseline.distance,
                interval=spans[found.index(best)],
                time_share_at_distance=min(nearer, default=None),
            )
        )
    return compared


def warnings(
    made: Sequence[FrontPoint],
    entries: Sequence[Entry],
    broken: Mapping[int, int],
    choices: Sequence[Choice],
    settings: TuningSettings,
) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    moments = entries[0].program.steps
    for index, step in broken.items():
        yield (
            f"exit {choices[index].text} gives NaN or infinity at t = "
            f"{moments[step].moment:g}: no schedule uses it"
        )
    for entry in entries:
        if entry.name not in {point.name for point in made}:
            yield f"{entry.name} gives NaN or infinity on the held-out samples: it is left out"
    wide = [p for p in made if p.distance > 0 and _half(p) > _SURE]
    if wide:
        worst = max(wide, key=_half)
        yield (
            f"{settings.held_out} held-out samples tell distances to within "
            f"{100 * _half(worst):.0f} % ({worst.name}): more of them (--held-out) tell closer "
            "schedules apart"
        )
    apart = {point.name: abs(point.time_share / point.predicted_share - 1) for point in made}
    off = [name for name, share in apart.items() if share > _OFF]
    if off or float(np.median(list(apart.values()))) > _APART:
        name = max(apart, key=lambda each: apart[each])
        yield (
            f"measured and predicted times differ by {100 * np.median(list(apart.values())):.0f} % "
            f"(median), and by {100 * apart[name]:.0f} % at most ({name}; {len(off)} of "
            f"{len(made)} programs by more than {100 * _OFF:.0f} %): the machine was busy with "
            "something else, and times are no better than that"
        )


def _half(point: FrontPoint) -> float:
    return (point.interval[1] - point.interval[0]) / 2 / point.distance


def findings(made: Sequence[FrontPoint], compared: Sequence[BaselineComparison]) -> Iterator[str]:
    """What came out, in a few sentences; budgets that were exceeded first."""
    for point in made:
        late = point.budget is not None and point.time_share > point.budget * _ROOM
        if late and point.kind == "found":
            yield (
                f"{point.name} takes more than its budget of {point.budget:.3g}: "
                f"{point.time_share:.3f} of full depth's time as measured "
                f"({point.spread[0]:.3f} to {point.spread[1]:.3f})."
            )
    yield from _alone(made)
    named = {point.name: point for point in made}
    compared = [each for each in compared if each.baseline in named]
    for kind, what in (("ase", "the authors' schedule"), ("linear", "a linear schedule")):
        own = [each for each in compared if named[each.baseline].kind == kind]
        if own:
            best = min(own, key=lambda each: abs(1 - each.time_share))
            yield _sentence(best, f"{what} ({best.baseline})")
    steps = [each for each in compared if named[each.baseline].kind == "steps"]
    if steps:
        better = [each for each in steps if each.interval[1] < 1]
        worse = [each for each in steps if each.interval[0] > 1]
        names = ", ".join(dict.fromkeys(each.found for each in better))
        lost = ", ".join(f"{each.baseline} beat {each.found}" for each in worse)
        if better:
            yield f"Nearer to full depth than fewer steps in the same time: {names}."
        if worse:
            yield f"Fewer steps at full depth come nearer in the same time: {lost}."
        if not better and not worse:
            yield "No schedule can be told from fewer steps at full depth in the same time."


def _alone(made: Sequence[FrontPoint]) -> Iterator[str]:
    """What one kind of choice buys, and all of them together, for each budget."""
    for point in made:
        ones = [p for p in made if p.kind == "alone" and p.budget == point.budget]
        if point.kind == "found" and ones:
            parts = [f"{p.name.removesuffix(f' {p.budget:g}')} {number(p.distance)}" for p in ones]
            yield (
                f"Within {point.budget:g} of full depth's time, the distance is "
                f"{number(point.distance)} with every kind of choice; {', '.join(parts)}."
            )


def _sentence(each: BaselineComparison, what: str) -> str:
    low, high = each.interval
    share = f"(95 %: {low:.2f} to {high:.2f} of its)"
    by = f"{100 * abs(1 - each.distance_ratio):.0f} %"
    says = f"a distance to full depth that cannot be told from its {share}"
    if high < 1 or low > 1:
        says = f"{by} {'less' if high < 1 else 'more'} distance to full depth {share}"
    sentence = f"In {each.time_share:.2f} of the time of {what}, {each.found} has {says}"
    if each.time_share_at_distance is not None and each.time_share_at_distance * _ROOM < 1:
        sentence += (
            f"; in {each.time_share_at_distance:.2f} of its time, a found schedule is no farther"
        )
    return f"{sentence}."
