"""What a schedule chooses from, and when: choices, slots of time, and the schedules they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from eecompile.programs.choice import HIGHEST, OUTPUT, Choice, Exit, Forecast, Span
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule

_SKIPPED = (0.25, 0.5, 0.75)  # of the blocks, by the spans that are tried
_MOST = 100  # slots; more evaluations than that share one with their neighbours


def choices_of(
    exits: Sequence[int],
    engines: Sequence[str],
    use: Sequence[str],
    evaluations: int,
    spans: Sequence[tuple[int, int]] = (),
) -> tuple[Choice, ...]:
    """What a step may choose, full depth of the first engine set first.

    Args:
        exits: of the network, ascending.
        engines: names of the engine sets; one alone needs none.
        use: ``exits`` for more than the deepest one, ``forecasts`` and ``spans`` for those of
            every order.
        evaluations: of a sampling; a forecast needs one more than its order before it.
        spans: where the ones start and stop that the deepest exit may skip, in the first engine
            set.
    """
    names = ["", *engines[1:]]
    depths = exits[::-1] if "exits" in use else exits[-1:]
    made: list[Choice] = [Exit(depth, name) for name in names for depth in depths]
    orders = [order for order in range(HIGHEST + 1) if order + 1 < evaluations]
    if "forecasts" in use:
        made += map(Forecast, orders)
    if "spans" in use:
        made += [Span(*cuts, order, exits[-1]) for cuts in spans for order in orders]
    return tuple(made)


def spans_to_try(spans: Iterable[tuple[int, int]], depth: int) -> tuple[tuple[int, int], ...]:
    """At most three of the spans that may be skipped, the shortest first.

    Those that stop last; of these, the nearest to a quarter, a half and three quarters of the
    ``depth`` blocks. What is lost in late blocks passes through none of the others.
    """
    usable = sorted(spans, key=lambda cuts: cuts[1] - cuts[0])
    late = [cuts for cuts in usable if cuts[1] == max(stop for _, stop in usable)]
    shares = {cuts: (cuts[1] - cuts[0]) / depth for cuts in late}
    near = [min(late, key=lambda cuts: abs(shares[cuts] - s)) for s in _SKIPPED if late]
    return tuple(dict.fromkeys(near))


def kinds_of(choices: Sequence[Choice]) -> dict[str, list[int]]:
    """The choices of each kind beside full depth of the first engine set, by index.

    An exit of a further engine set is of two kinds at once, so of neither; kinds without any are
    left out.
    """
    full, kinds = choices[0], dict[str, list[int]]()
    for index, choice in enumerate(choices[1:], 1):
        if choice.memory is not None:
            kind = "forecasts" if choice.memory == OUTPUT else "spans"
        elif not choice.engine:
            kind = "exits"
        elif choice.blocks == full.blocks:
            kind = "engine sets"
        else:
            continue
        kinds.setdefault(kind, []).append(index)
    return kinds


def skipping(choices: Sequence[Choice]) -> dict[str, dict[int, Choice]]:
    """The choices that extrapolate something else than the prediction, by memory and index."""
    found: dict[str, dict[int, Choice]] = {}
    for index, choice in enumerate(choices):
        if choice.memory not in (None, OUTPUT):
            found.setdefault(str(choice.memory), {})[index] = choice
    return found


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
