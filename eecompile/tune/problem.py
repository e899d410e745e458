"""What schedules are chosen from: settings checked, choices measured, the model made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from eecompile.compiler.progress import Report
from eecompile.errors import UsageError
from eecompile.programs.choice import Choice, Exit, Forecast
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.baselines import Baseline
from eecompile.tune.choices import Slots, choices_of, schedule_from_picks, slots_of
from eecompile.tune.findings import Entry
from eecompile.tune.influence import local_errors, measured_influence
from eecompile.tune.latency import StepLatency, measured_costs
from eecompile.tune.model import Model
from eecompile.tune.probe import Experiment, Prober
from eecompile.tune.report import TuningSettings
from eecompile.tune.work import Work

_TIMING = 15.0  # seconds for what choices cost, a minute of refinement


class Problem(NamedTuple):
    """What is chosen from, and what it costs and loses.

    Attributes:
        experiment: at the samples that schedules are chosen by.
        settings: how to look.
        broken: choices that do not give finite outputs, by index, and the step of the first.
        slots: of the program.
        model: predicts cost and distance.
        latencies: of every choice.
    """

    experiment: Experiment
    settings: TuningSettings
    broken: dict[int, int]
    slots: Slots
    model: Model
    latencies: list[StepLatency]

    @property
    def usable(self) -> list[Exit]:
        """The choices that give finite outputs."""
        return [c for index, c in enumerate(self.experiment.choices) if index not in self.broken]

    def schedule(self, picks: Sequence[int]) -> ExitSchedule:
        """The exit schedule that makes these picks."""
        return schedule_from_picks(picks, (*self.experiment.choices, Forecast()), self.slots)

    def compiled(self, schedule: ExitSchedule) -> Program:
        """The program of a schedule."""
        settings = self.settings
        return self.experiment.sampler.program(settings.solver, settings.steps, schedule)

    def picks(self, program: Program) -> tuple[int, ...]:
        """The choices that such a program makes, where every slot evaluates."""
        places: dict[Choice, int] = {c: index for index, c in enumerate(self.experiment.choices)}
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
    exits = sampler.interface.exits
    if len(exits) * max(1, len(sampler.engines)) < 2 and not settings.reuse:
        raise UsageError(
            found=f"a network with one exit ({exits[0]}), in one engine set",
            expected="something to choose from",
            remedy="export it with more exits, add another engine set (--engines), or allow "
            "the previous output (--reuse)",
        )
    whole = msgspec.structs.replace(samples, n=settings.seeds + settings.held_out)
    sampler.check(whole.part(sampler.interface, whole.first, whole.n))
    return whole


def posed(
    sampler: Sampler, settings: TuningSettings, samples: SampleRequest, work: Work, report: Report
) -> Problem:
    """Measure what every choice costs and loses.

    Raises:
        UsageError: the solver's evaluations cannot be used again, and are to be.
        NonFiniteError: full depth gives NaN or infinity.
    """
    interface, reuse = sampler.interface, settings.reuse
    program = sampler.program(settings.solver, settings.steps, interface.exits[-1])
    choices = choices_of(interface.exits, sampler.engines)
    slots = slots_of(program, interface.process.timesteps)
    apart = len(slots.steps) == len({step.moment for step in program.steps})
    if reuse and not (slots.falls and apart):
        raise UsageError(
            found=f"--reuse with {settings.solver}, {settings.steps} steps",
            expected="at most 100 evaluations, at times that fall from one to the next",
            remedy="take fewer steps, another solver, or leave --reuse out",
        )
    experiment = Experiment(
        sampler, Prober(sampler), program, choices, samples, reuse, work, report
    )
    errors = local_errors(experiment)
    influence = measured_influence(experiment, errors)
    costs, latencies = measured_costs(
        experiment.part(samples.first, settings.batch),
        skip=list(errors.broken),
        seconds=_TIMING * settings.minutes,
    )
    depths, monotone = [c.depth for c in choices], settings.monotone
    model = Model(slots, costs, errors, influence, depths, reuse=reuse, monotone=monotone)
    return Problem(experiment, settings, errors.broken, slots, model, latencies)
