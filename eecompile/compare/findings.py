"""What a comparison found, in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from eecompile.compare.report import Candidate, Comparison, TrajectoryFigures, largest
from eecompile.show.table import duration, number


def findings(report: Comparison) -> Iterator[str]:
    """Sentences: the fastest evaluation, the fastest trajectory, and how far outputs are."""
    yield from _fastest_evaluation(report)
    yield from _fastest_trajectory(report.trajectories)
    yield from _accuracy(report)


def _fastest_evaluation(report: Comparison) -> Iterator[str]:
    """At the deepest exit and the largest batch."""
    found = [
        (exit_.depth, row.batch, row.median, candidate.name)
        for candidate in report.candidates
        for exit_ in candidate.exits
        for row in exit_.latencies
    ]
    if not found:
        return
    depth = max(row[0] for row in found)
    batch = max(row[1] for row in found if row[0] == depth)
    medians = {name: median for *place, median, name in found if place == [depth, batch]}
    name = min(medians, key=medians.__getitem__)
    sentence = (
        f"The fastest at full depth and batch {batch} is {name}: {number(medians[name])} ms an "
        "evaluation"
    )
    base = medians.get(report.reference)
    if base and medians[name] and name != report.reference:
        sentence += (
            f", {number(base / medians[name])} times as fast as {report.reference} "
            f"({number(base)} ms)"
        )
    yield f"{sentence}."


def _fastest_trajectory(trajectories: Sequence[TrajectoryFigures]) -> Iterator[str]:
    if not trajectories:
        return
    best = min(trajectories, key=lambda row: row.seconds_per_sample)
    unit, scale = duration(best.seconds_per_sample)
    sentence = (
        f"The fastest sampling is {best.candidate} with schedule {best.schedule} at batch "
        f"{best.batch}: {number(best.seconds_per_sample * scale)} {unit} a sample"
    )
    if best.psnr is not None:
        sentence += (
            f", {number(best.speed_up)} times as fast as its full depth "
            f"(ideal {number(best.ideal_speed_up)}), PSNR {number(best.psnr)} dB to it"
        )
    yield f"{sentence}."


def _accuracy(report: Comparison) -> Iterator[str]:
    compared = [one for one in report.candidates if any(exit_.errors for exit_ in one.exits)]
    if not compared:
        return
    outside = [
        f"{candidate.name} at {'exits' if len(depths) > 1 else 'exit'} {', '.join(depths)}"
        for candidate in compared
        if (depths := [str(exit_.depth) for exit_ in candidate.exits if not exit_.passed])
    ]
    errors = {candidate.name: _relative(candidate) for candidate in compared}
    broken = [name for name, error in errors.items() if math.isinf(error)]
    errors = {name: error for name, error in errors.items() if name not in broken}
    yield (
        f"Outside the tolerance: {'; '.join(outside)}."
        if outside
        else f"All outputs are within the tolerance of {report.reference}'s."
    )
    if broken:
        yield f"Not a finite number everywhere: outputs of {', '.join(broken)}."
    if errors:
        worst = max(errors, key=errors.__getitem__)
        yield f"The largest relative error is {number(errors[worst])}, of {worst}."


def _relative(candidate: Candidate) -> float:
    """The largest relative error; infinite where outputs are not finite."""
    return largest(exit_.relative for exit_ in candidate.exits if exit_.errors) or 0.0
