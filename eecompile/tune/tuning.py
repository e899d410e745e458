"""Exit schedules by measurement: the whole of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set
from functools import partial
from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np

import eecompile
from eecompile.compiler.progress import Report, silent
from eecompile.errors import UsageError
from eecompile.measure.machine import machine_facts
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.baselines import baseline_schedules, fewer_steps, published_baselines
from eecompile.tune.choices import kinds_of, skipping
from eecompile.tune.findings import Entry, comparisons, points, warnings
from eecompile.tune.held_out import FULL, measured
from eecompile.tune.model import Picks
from eecompile.tune.optimise import found
from eecompile.tune.problem import Problem, checked, posed, used
from eecompile.tune.report import Front, FrontPoint, Kind, TuningSettings
from eecompile.tune.search import STARTS, Trials, improved, refined
from eecompile.tune.work import Work

_BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_ALONE = (0.7, 0.5, 0.3)  # of these, for what each kind of choice alone can do
_ROOM = 1.01  # of a budget: times are not measured more closely
_NEAR = 0.005  # budgets that differ by less are one
_AGAIN = 60.0  # seconds for the held-out samples and timing again, a minute of refinement
_TRIED = 12  # of the picks that are predicted to be nearest, where time allows


def tune(
    sampler: Sampler,
    settings: TuningSettings,
    samples: SampleRequest | None = None,
    *,
    work: Work | None = None,
    identity: str = "",
    report: Report = silent,
) -> Front:
    """The schedules that lose least within budgets, beside those that need no tuning.

    Args:
        sampler: the engines that will run; of several engine sets, full depth of the first
            is what times and distances are relative to.
        settings: how to look.
        samples: which ones: those that schedules are chosen by, and then the held-out ones;
            their number is that of the settings.
        work: keeps what has been measured.
        identity: digest of the settings and the engine sets.
        report: told of each phase.

    Raises:
        UsageError: a setting is out of range, a budget cannot be met, or there is nothing
            to choose from.
        NonFiniteError: full depth gives NaN or infinity.
    """
    whole = checked(sampler, settings, samples or SampleRequest())
    facts = whole.facts(sampler.interface)
    settings = msgspec.structs.replace(settings, use=used(sampler, settings), **facts)
    work = work or Work(None)
    started, before = time.perf_counter(), float(work.get("elapsed") or 0.0)
    chosen_by = whole.part(sampler.interface, whole.first, settings.seeds)
    held_out = whole.part(sampler.interface, whole.first + settings.seeds, settings.held_out)
    try:
        problem = posed(sampler, settings, chosen_by, work, report)
        usable = problem.usable
        recipe = sampler.interface.schedules_for(settings.solver, settings.steps)
        baselines = [
            problem.entry(each)
            for each in (
                *baseline_schedules(sampler.interface.exits, usable, recipe),
                *published_baselines(usable, problem.slots),
            )
        ]
        searched, scale = _searched(problem, baselines)
        entries = [*searched, *baselines, *_fewer_steps(problem, searched)]
        results = measured(
            problem.experiment._replace(samples=held_out),
            {entry.name: entry.program for entry in entries},
            settings.batch,
            seconds=_AGAIN * settings.minutes,
        )
    finally:
        work.put("elapsed", before + time.perf_counter() - started)
    made = points(entries, results, scale, sampler.interface, settings)
    told = warnings(made, entries, problem.broken, problem.experiment.choices, settings)
    return _front(
        problem,
        scale,
        identity=identity,
        seconds=float(work.get("elapsed")),
        points=tuple(made),
        comparisons=tuple(comparisons(made, results, settings.seed)),
        warnings=tuple(told),
    )


def _front(problem: Problem, scale: float, *, points: tuple[FrontPoint, ...], **more: Any) -> Front:
    experiment, settings = problem.experiment, problem.settings
    sampler = experiment.sampler
    kept = [index for index in range(1, len(experiment.choices)) if index not in problem.broken]
    return Front(
        eecompile=eecompile.__version__,
        network=sampler.interface.name,
        engines=sampler.engines or (sampler.name,),
        machine=machine_facts(),
        settings=settings,
        unit="range" if sampler.interface.state.range else "deviation",
        latencies=tuple(problem.latencies),
        moments=tuple(step.moment for step in experiment.program.steps),
        error_terms=tuple(experiment.choices[index].text for index in kept),
        errors=tuple(map(tuple, (problem.alone.T[kept] / scale).tolist())),
        points=points,
        **more,
    )


def _targets(
    settings: TuningSettings, can: Set[str], baselines: Sequence[Entry], cheapest: float
) -> list[tuple[str, float]]:
    """Names and budgets to find a schedule for, the smallest first."""
    for budget in settings.budgets:
        if budget * _ROOM < cheapest:
            raise UsageError(
                found=f"a budget of {budget:g} of full depth's time",
                expected=f"at least {np.ceil(1000 * cheapest) / 1000:g}, what the cheapest "
                "schedule takes",
                remedy="choose a larger budget"
                + (", or allow more (--use)" if set(settings.use) < can else ""),
            )
    wanted = settings.budgets or [budget for budget in _BUDGETS if budget >= cheapest]
    targets = [(f"budget-{100 * budget:.4g}", budget) for budget in dict.fromkeys(wanted)]
    if not settings.budgets:  # as long as the baselines take, so that they can be compared
        for name, share in _beside(baselines):
            if all(abs(share - budget) > _NEAR for _, budget in targets) and share >= cheapest:
                targets.append((f"as-{name.lower().replace(' ', '-')}", share))
    return sorted(targets, key=lambda target: target[1])


def _beside(baselines: Sequence[Entry]) -> Iterator[tuple[str, float]]:
    """The authors' schedule and the linear one that is most like it, with their costs."""
    linear = [each for each in baselines if each.kind == "linear"]
    for ase in (each for each in baselines if each.kind == "ase"):
        yield ase.name, ase.predicted
        if linear:
            like = min(linear, key=lambda other: abs(other.predicted - ase.predicted))
            yield like.name, like.predicted


def _searched(problem: Problem, baselines: Sequence[Entry]) -> tuple[list[Entry], float]:
    """Full depth, what was found for every budget, each kind alone; and the unit of distances."""
    model, settings, experiment = problem.model, problem.settings, problem.experiment
    front = found(model)
    can = set(used(experiment.sampler, msgspec.structs.replace(settings, use=())))
    targets = _targets(settings, can, baselines, float(front.costs.min()))
    trials = Trials(
        experiment, lambda picks: problem.compiled(problem.schedule(picks)), problem.slots.steps
    )
    scale = _scale(problem)
    full = experiment.program
    entries = [Entry(FULL, "full", full, _deepest(problem), settings.steps, 1.0)]
    spans = [kind for kinds in skipping(model.choices).values() for kind in kinds]
    alone = list(_alone(problem, trials, targets))
    picks: Picks | None = None
    for index, (name, budget) in enumerate(targets):
        tell = partial(experiment.report, "trying schedules", index, len(targets))
        tell()
        most = budget * _ROOM
        nearest, plain = front.best(most, _TRIED), front.best(most, _TRIED, spans)
        starts = [improved(nearest[0], model, most)]
        starts += plain[:1] if plain[:1] != nearest[:1] else []
        starts += [picks] if picks is not None else []  # the last one's is cheaper
        starts += [each for _, within, each in alone if within == budget]
        starts += _affordable(problem, baselines, most)
        starts += [each for pair in zip_longest(nearest, plain) for each in pair if each]
        picks = refined(
            starts,
            model,
            most,
            trials,
            seconds=60 * settings.minutes / len(targets),
            report=tell,
        )
        entry = _chosen(problem, trials, scale, name, "found", budget, picks)
        same = [each.kind for each in entries if each.program.steps == entry.program.steps]
        if not same or (name.startswith("budget") and "full" not in same):
            entries.append(entry)
    for kind, budget, each in alone:
        name = f"{kind} alone {budget:g}"
        entries.append(_chosen(problem, trials, scale, name, "alone", budget, each))
    return entries, scale


def _chosen(
    problem: Problem,
    trials: Trials,
    scale: float,
    name: str,
    kind: Kind,
    budget: float,
    picks: Picks,
) -> Entry:
    schedule = problem.schedule(picks)
    program, cost = problem.compiled(schedule), problem.model.cost(picks)
    distance = trials.distance(picks) / scale
    return Entry(name, kind, program, schedule, problem.settings.steps, cost, budget, distance)


def _alone(
    problem: Problem, trials: Trials, targets: Sequence[tuple[str, float]]
) -> Iterator[tuple[str, float, Picks]]:
    """What one kind of choice can do beside full depth: kind, budget and picks.

    Of the few that are predicted to be nearest, the nearest; nothing where there is one kind.
    """
    kinds, settings = kinds_of(problem.model.choices), problem.settings
    budgets = [b for name, b in targets if name.startswith("budget")]
    wanted = [b for b in budgets if settings.budgets or b in _ALONE]
    for kind, own in kinds.items() if len(kinds) > 1 else ():
        tell = partial(problem.experiment.report, f"trying {kind} alone", 0, 0)
        model = problem.model.only([0, *own])
        front = found(model)
        for budget in wanted:
            most = budget * _ROOM
            if nearest := front.best(most, STARTS):
                starts = [improved(nearest[0], model, most), *nearest[1:]]
                yield kind, budget, refined(starts, model, most, trials, seconds=0, report=tell)


def _affordable(problem: Problem, baselines: Sequence[Entry], budget: float) -> list[Picks]:
    """Baselines within the budget: those that are predicted to be best."""
    every = [problem.picks(each.program) for each in baselines if each.predicted <= budget]
    paths = problem.model.assessed(every)
    nearest = np.argsort(paths.distances, kind="stable")[:2]
    return [tuple(row) for row in paths.picks[nearest].tolist()]


def _deepest(problem: Problem) -> ExitSchedule:
    return ExitSchedule.constant(problem.experiment.choices[0])


def _scale(problem: Problem) -> float:
    """The unit of distances: the data's range, or the deviation of full depth's samples."""
    experiment = problem.experiment
    if bounds := experiment.sampler.interface.state.range:
        return bounds[1] - bounds[0]

    def measure() -> float:
        return float(experiment.prober.run(experiment.program, experiment.samples).std()) or 1.0

    return float(experiment.work.recall("scale", measure))


def _fewer_steps(problem: Problem, searched: Sequence[Entry]) -> list[Entry]:
    """Fewer steps at full depth for every budget that was met."""
    settings, model = problem.settings, problem.model
    start, step = model.costs.start, float(model.costs.steps[:, 0].mean())

    def cost(program: Program) -> float:
        return start + step * len(program.steps)

    budgets = [e.budget for e in searched if e.budget and e.name.startswith("budget")]
    sampler, deepest = problem.experiment.sampler, _deepest(problem)
    fewer = fewer_steps(sampler, settings.solver, settings.steps, budgets, cost)
    return [
        Entry(f"{count} steps", "steps", program, deepest, count, cost(program))
        for count, program in fewer.items()
    ]
