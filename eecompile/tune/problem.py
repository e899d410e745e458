"""What schedules are chosen from: settings checked, choices measured, the model made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from eecompile.arrays import Floats
from eecompile.compiler.progress import Report
from eecompile.errors import UsageError
from eecompile.programs.choice import Choice
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.baselines import Baseline
from eecompile.tune.choices import (
    Slots,
    choices_of,
    schedule_from_picks,
    slots_of,
    spans_to_try,
)
from eecompile.tune.findings import Entry
from eecompile.tune.influence import measured_influence, recorded
from eecompile.tune.latency import StepLatency, measured_costs
from eecompile.tune.model import Model
from eecompile.tune.probe import Experiment, Prober, engines_of
from eecompile.tune.report import USES, TuningSettings
from eecompile.tune.work import Work

_LONGEST = 250  # steps for which spans are tried
_TIMING = 15.0  # seconds for what choices cost, a minute of refinement


class Problem(NamedTuple):
    """What is chosen from, and what it costs and loses.

    Attributes:
        experiment: at the samples that schedules are chosen by.
        settings: how to look.
        broken: choices that do not give finite outputs, by index, and the step of the first.
        slots: of the program.
        model: predicts cost and distance.
        alone: predicted distance where a choice is taken at one step alone, [E, K]; 0 where it
            cannot be.
        latencies: of every choice.
    """

    experiment: Experiment
    settings: TuningSettings
    broken: dict[int, int]
    slots: Slots
    model: Model
    alone: Floats
    latencies: list[StepLatency]

    @property
    def usable(self) -> list[Choice]:
        """The choices that give finite outputs."""
        return [c for index, c in enumerate(self.experiment.choices) if index not in self.broken]

    def schedule(self, picks: Sequence[int]) -> ExitSchedule:
        """The exit schedule that makes these picks."""
        return schedule_from_picks(picks, self.experiment.choices, self.slots)

    def compiled(self, schedule: ExitSchedule) -> Program:
        """The program of a schedule."""
        settings = self.settings
        return self.experiment.sampler.program(settings.solver, settings.steps, schedule)

    def picks(self, program: Program) -> tuple[int, ...]:
        """The choices that such a program makes."""
        places = {choice: index for index, choice in enumerate(self.experiment.choices)}
        return tuple(places[program.steps[steps[0]].chosen] for steps in self.slots.steps)

    def entry(self, baseline: Baseline) -> Entry:
        """A schedule that needs no tuning, with its program and its predicted time."""
        program = self.compiled(baseline.schedule)
        predicted = self.model.cost(self.picks(program))
        return Entry(*baseline[:2], program, baseline.schedule, self.settings.steps, predicted)


def checked(sampler: Sampler, settings: TuningSettings, samples: SampleRequest) -> SampleRequest:
    """The samples in the number of the settings, when schedules can be looked for.

    Raises:
        UsageError: a setting is out of range, there is nothing to choose from, or the network
            does not take such samples.
    """
    largest = sampler.engine.max_batch
    ranges: tuple[tuple[str, float, float, float], ...] = (
        ("samples to choose by (--seeds)", settings.seeds, 2, 100_000),
        ("held-out samples (--held-out)", settings.held_out, 2, 100_000),
        ("batch size", settings.batch, 1, largest),
        ("minutes for refinement", settings.minutes, 0, 10_000),
        *(("budget", budget, 1e-6, 1) for budget in settings.budgets),
    )
    for what, value, low, high in ranges:
        if not low <= value <= high:
            share = "above 0, and at most 1: a share of full depth's time"
            raise UsageError(
                found=f"{what} {value:g}",
                expected=share if what == "budget" else f"{low:g} to {high:g}",
                remedy="choose another",
            )
    if unknown := sorted(set(settings.use) - set(USES)):
        raise UsageError(
            found=f"{', '.join(map(repr, unknown))} among what schedules may use",
            expected=f"some of {', '.join(USES)}",
            remedy="choose among these",
        )
    use, spans = used(sampler, settings), spans_of(sampler, settings.steps)
    if "spans" in use and not spans:
        raise _no_spans(sampler, settings.steps)
    exits = sampler.interface.exits
    if len(choices_of(exits, sampler.engines, use, settings.steps, spans)) < 2:
        raise UsageError(
            found=f"full depth alone to choose from: exits {', '.join(map(str, exits))} in "
            f"{max(1, len(sampler.engines))} engine set, {settings.steps} steps, schedules that "
            f"may use {', '.join(use)}",
            expected="something to choose from",
            remedy="allow forecasts (--use forecasts), add another engine set (--engines), or "
            "export the network with more exits",
        )
    whole = msgspec.structs.replace(samples, n=settings.seeds + settings.held_out)
    sampler.check(whole.part(sampler.interface, whole.first, whole.n))
    return whole


def used(sampler: Sampler, settings: TuningSettings) -> tuple[str, ...]:
    """What schedules may use: as the settings say, or all that the engine sets can do."""
    return settings.use or (USES if spans_of(sampler, settings.steps) else USES[:-1])


def spans_of(sampler: Sampler, steps: int) -> tuple[tuple[int, int], ...]:
    """The spans to try: of those that every engine set can skip, with the same tensors.

    None where so many steps are taken that recording them would take too long.
    """
    if steps > _LONGEST:
        return ()
    shapes = [
        {cuts: [tensor.shape for tensor in tensors] for cuts, tensors in engine.spans.items()}
        for engine in engines_of(sampler).values()
    ]
    shared = [
        cuts
        for cuts in sampler.interface.spans
        if cuts in shapes[0] and all(each.get(cuts) == shapes[0][cuts] for each in shapes)
    ]
    return spans_to_try(shared, sampler.interface.exits[-1])


def _no_spans(sampler: Sampler, steps: int) -> UsageError:
    if steps > _LONGEST:
        return UsageError(
            found=f"schedules that may use spans, and {steps} steps",
            expected=f"at most {_LONGEST} steps",
            remedy="take fewer steps, or leave spans out (--use exits,forecasts)",
        )
    return UsageError(
        found="schedules that may use spans, of which "
        + ("no engine set" if len(sampler.engines) < 2 else "not every engine set")
        + " has any",
        expected="engine sets that can skip the same blocks",
        remedy="build with layout = 'chained' in the target, export with network.cuts in the "
        "recipe, or leave spans out (--use exits,forecasts)",
    )


def posed(
    sampler: Sampler, settings: TuningSettings, samples: SampleRequest, work: Work, report: Report
) -> Problem:
    """Measure what every choice costs and loses.

    Raises:
        NonFiniteError: full depth gives NaN or infinity.
    """
    interface = sampler.interface
    program = sampler.program(settings.solver, settings.steps, interface.exits[-1])
    spans = spans_of(sampler, settings.steps)
    choices = choices_of(interface.exits, sampler.engines, settings.use, len(program.steps), spans)
    slots = slots_of(program, interface.process.timesteps)
    experiment = Experiment(sampler, Prober(sampler), program, choices, samples, work, report)
    record = recorded(experiment)
    influence = measured_influence(experiment, record)
    costs, latencies = measured_costs(
        experiment.part(samples.first, settings.batch),
        skip=list(record.broken),
        seconds=_TIMING * settings.minutes,
    )
    model = Model(program, slots, choices, costs, record, influence, monotone=settings.monotone)
    alone = influence.sizes * influence.ratios
    return Problem(experiment, settings, record.broken, slots, model, alone, latencies)
