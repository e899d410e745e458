"""What a tuned schedule must beat: schedules that need no tuning, and fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from eecompile.errors import EecompileError
from eecompile.programs.choice import Choice
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.sampler import Sampler
from eecompile.tune.choices import Slots, merged, schedule_from_picks
from eecompile.tune.published import every_nth, published_schedules
from eecompile.tune.report import Kind

ASE = tuple(depth / 28 for depth in (28, 28, 24, 24, 20, 20, 16, 16, 12, 12))
"""Shares of depth over ten equal slices of time, t = 0 first: 28.6 % of the blocks left out.

The schedule in the public code of ASE (arXiv 2408.05927): ``exit_nums`` of 28 blocks in
DiT/drop_scheduler.py, https://github.com/taehong-moon/ee-diffusion, revision dbe38d3.
"""
_SLICES = 10
_EVEN = 0.005  # budgets that differ by less are one


class Baseline(NamedTuple):
    """A schedule that needs no tuning."""

    name: str
    kind: Kind
    schedule: ExitSchedule


def baseline_schedules(
    exits: Sequence[int], choices: Sequence[Choice], recipe: Mapping[str, ExitSchedule]
) -> list[Baseline]:
    """The schedules of usable choices that a tuned one is compared with, each once.

    The first choice is full depth, which is none of them. Schedules of the recipe go by name.
    """
    baselines: dict[ExitSchedule, Baseline] = {}
    for baseline in _every(exits, choices, recipe):
        used = set(baseline.schedule.choices)
        if used <= set(choices) and used != {choices[0]}:
            baselines.setdefault(baseline.schedule, baseline)
    return list(baselines.values())


def published_baselines(choices: Sequence[Choice], slots: Slots) -> Iterator[Baseline]:
    """Published rules for forecasts of usable choices, where a schedule can tell their steps apart.

    The first choice is full depth.
    """
    full, steps = choices[0], sum(map(len, slots.steps))
    rules = {"every 2nd": every_nth(steps, full), **published_schedules(steps, full)}
    for name, by_step in rules.items():
        by_slot = [{by_step[step] for step in own} for own in slots.steps]
        if all(len(each) == 1 for each in by_slot) and {full} < set(by_step) <= set(choices):
            picks = [choices.index(choice) for each in by_slot for choice in each]
            yield Baseline(name, "published", schedule_from_picks(picks, choices, slots))


def _every(
    exits: Sequence[int], choices: Sequence[Choice], recipe: Mapping[str, ExitSchedule]
) -> Iterator[Baseline]:
    for choice in (each for each in choices if each.memory is None):
        yield Baseline(f"exit {choice.text}", "exit", ExitSchedule.constant(choice))
    yield Baseline("ASE", "ase", _slices(exits, ASE))
    for last in reversed(exits[:-1]):
        low = last / exits[-1]
        shares = [1 - (1 - low) * place / (_SLICES - 1) for place in range(_SLICES)]
        yield Baseline(f"linear to {last}", "linear", _slices(exits, shares))
    for name, schedule in recipe.items():
        yield Baseline(name, "recipe", merged(schedule.choices, schedule.thresholds))


def _slices(exits: Sequence[int], shares: Sequence[float]) -> ExitSchedule:
    """The exits nearest to shares of the full depth; of two as near, the deeper."""
    depths = [min(exits, key=lambda depth: (abs(depth - s * exits[-1]), -depth)) for s in shares]
    even = ExitSchedule.from_slices(depths)
    return merged(even.choices, even.thresholds)


def fewer_steps(
    sampler: Sampler,
    solver: str,
    steps: int,
    budgets: Sequence[float],
    cost: Callable[[Program], float],
) -> Mapping[int, Program]:
    """Full-depth programs of fewer steps, by their number.

    For each budget, a share of the tuned schedule's time, the fewest that take as long, or
    longer: where the steps do not come out even, the advantage is theirs.
    """
    programs: dict[int, Program] = {}
    for count in range(steps - 1, 0, -1):
        try:
            programs[count] = sampler.program(solver, count, sampler.interface.exits[-1])
        except EecompileError:  # a number of steps that this solver cannot take
            continue
    found: dict[int, Program] = {}
    for budget in sorted(budgets, reverse=True):
        fitting = [n for n, made in programs.items() if cost(made) >= budget * (1 - _EVEN)]
        if fitting:
            found[min(fitting)] = programs[min(fitting)]
    return found
