"""What a schedule chooses from, and when: choices, slots of time, and the schedules they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from eecompile.programs.choice import HIGHEST, Choice, Exit, Forecast
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule

_MOST = 100  # slots; more evaluations than that share one with their neighbours


def choices_of(
    exits: Sequence[int], engines: Sequence[str], use: Sequence[str], evaluations: int
) -> tuple[Choice, ...]:
    """What a step may choose, full depth of the first engine set first.

    Args:
        exits: of the network, ascending.
        engines: names of the engine sets; one alone needs none.
        use: ``exits`` for more than the deepest one, ``forecasts`` for those of every order.
        evaluations: of a sampling; a forecast needs one more than its order before it.
    """
    names = ["", *engines[1:]]
    depths = exits[::-1] if "exits" in use else exits[-1:]
    made: list[Choice] = [Exit(depth, name) for name in names for depth in depths]
    if "forecasts" in use:
        made += [Forecast(order) for order in range(HIGHEST + 1) if order + 1 < evaluations]
    return tuple(made)


class Slots(NamedTuple):
    """The evaluations of a program, grouped by what a schedule can tell apart.

    Attributes:
        steps: of each slot, the program's steps in it; slots in the order of evaluation.
        bounds: between neighbouring slots by ascending time, as fractions of T.
        order: the slots by ascending time.
    """

    steps: tuple[tuple[int, ...], ...]
    bounds: tuple[float, ...]
    order: tuple[int, ...]


def slots_of(program: Program, timesteps: int, most: int = _MOST) -> Slots:
    """The slots of a program: evaluations at the same moment share one.

    Where there are more than ``most``, neighbours in time share one.
    """
    moments = [step.moment for step in program.steps]
    distinct = sorted(set(moments))
    count = min(len(distinct), most)
    groups = [
        distinct[index * len(distinct) // count : (index + 1) * len(distinct) // count]
        for index in range(count)
    ]
    of_moment = {moment: index for index, group in enumerate(groups) for moment in group}
    steps: dict[int, list[int]] = {}
    for index, moment in enumerate(moments):
        steps.setdefault(of_moment[moment], []).append(index)
    seen = list(steps)  # groups in the order of evaluation
    bounds = (_between(low[-1], high[0], timesteps) for low, high in pairwise(groups))
    return Slots(
        tuple(tuple(found) for found in steps.values()),
        tuple(bounds),
        tuple(seen.index(group) for group in range(count)),
    )


def _between(low: float, high: float, timesteps: int) -> float:
    """A short fraction of T that lies well between two moments."""
    middle, margin = (low + high) / 2 / timesteps, (high - low) / 4 / timesteps
    for digits in range(1, 12):
        short = round(middle, digits)
        if abs(short - middle) <= margin:
            return short
    return middle


def schedule_from_picks(
    picks: Sequence[int], candidates: Sequence[Choice], slots: Slots
) -> ExitSchedule:
    """The exit schedule that picks such a candidate, by index, in each slot."""
    return merged([candidates[picks[slot]] for slot in slots.order], slots.bounds)


def merged(choices: Sequence[Choice], bounds: Iterable[float]) -> ExitSchedule:
    """An exit schedule with one slice for neighbours that choose the same, t = 0 first."""
    kept, ends = [choices[0]], []
    for choice, bound in zip(choices[1:], bounds, strict=True):
        if choice != kept[-1]:
            kept.append(choice)
            ends.append(bound)
    return ExitSchedule(tuple(kept), tuple(ends))
