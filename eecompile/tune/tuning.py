"""Exit schedules by measurement: the whole of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

import eecompile
from eecompile.errors import UsageError
from eecompile.measure.machine import machine_facts
from eecompile.programs.choice import Forecast
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.baselines import Baseline, baseline_schedules, fewer_steps
from eecompile.tune.findings import Entry, comparisons, points, warnings
from eecompile.tune.held_out import FULL, measured
from eecompile.tune.influence import STALE
from eecompile.tune.optimise import front, objective
from eecompile.tune.probe import Prober
from eecompile.tune.problem import Problem, checked, posed
from eecompile.tune.report import Front, FrontPoint, TuningSettings
from eecompile.tune.search import Picks, Trials, proposed, refined
from eecompile.tune.work import Work

Progress = Callable[[str, int, int], Any]
_BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_WITHIN = 1e-9
_NEAR = 0.005  # budgets that differ by less are one
_AGAIN = 60.0  # seconds for the held-out samples and timing again, a minute of refinement
_TRIED = 3  # of the picks that are predicted to be best


def _silent(phase: str, done: int = 0, total: int = 0) -> None:
    pass


def tune(
    sampler: Sampler,
    settings: TuningSettings,
    samples: SampleRequest | None = None,
    *,
    work: Work | None = None,
    identity: str = "",
    report: Progress = _silent,
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
    settings = msgspec.structs.replace(settings, **whole.facts(sampler.interface))
    work = work or Work(None)
    started, before = time.perf_counter(), float(work.get("elapsed") or 0.0)
    chosen_by = whole.part(sampler.interface, whole.first, settings.seeds)
    held_out = whole.part(sampler.interface, whole.first + settings.seeds, settings.held_out)
    try:
        problem = posed(sampler, settings, chosen_by, work, report)
        baselines = baseline_schedules(sampler.interface, problem.usable)
        found, scale = _searched(problem, baselines, work, report)
        entries = [*found, *_baselines(problem, baselines, found)]
        results = measured(
            sampler,
            {entry.name: entry.program for entry in entries},
            held_out,
            settings.batch,
            work,
            lambda done, total: report("measuring on the held-out samples", done, total),
            seconds=_AGAIN * settings.minutes,
        )
    finally:
        work.put("elapsed", before + time.perf_counter() - started)
    made = points(entries, results, scale, sampler.interface, settings)
    return _front(
        problem,
        scale,
        identity=identity,
        seconds=float(work.get("elapsed")),
        points=tuple(made),
        comparisons=tuple(comparisons(made, results, settings.seed)),
        warnings=tuple(warnings(made, entries, problem.broken, problem.choices, settings)),
    )


def _front(problem: Problem, scale: float, *, points: tuple[FrontPoint, ...], **more: Any) -> Front:
    sampler, settings = problem.sampler, problem.settings
    terms = [choice.text for choice in problem.choices[1:]]
    terms += [f"{Forecast().text} {age + 1}" for age in range(STALE)] if settings.reuse else []
    return Front(
        eecompile=eecompile.__version__,
        network=sampler.interface.name,
        engines=sampler.engines or (sampler.name,),
        machine=machine_facts(),
        settings=settings,
        unit="range" if sampler.interface.state.range else "deviation",
        latencies=tuple(problem.latencies),
        moments=tuple(step.moment for step in problem.program.steps),
        error_terms=tuple(terms),
        errors=tuple(map(tuple, (problem.model.alone.T / scale).tolist())),
        points=points,
        **more,
    )


def _targets(
    problem: Problem, baselines: Sequence[Baseline], cheapest: float
) -> list[tuple[str, float]]:
    """Names and budgets to find a schedule for, the largest first."""
    settings = problem.settings
    for budget in settings.budgets:
        if budget < cheapest * (1 - _WITHIN):
            raise UsageError(
                found=f"a budget of {budget:g} of full depth's time",
                expected=f"at least {np.ceil(1000 * cheapest) / 1000:g}, what the cheapest "
                "schedule takes",
                remedy="choose a larger budget"
                + ("" if settings.reuse else ", or allow the previous output (--reuse)"),
            )
    wanted = settings.budgets or [budget for budget in _BUDGETS if budget >= cheapest]
    found = [(f"budget-{100 * budget:.4g}", budget) for budget in dict.fromkeys(wanted)]
    if not settings.budgets:  # as long as the baselines take, so that they can be compared
        for name, share in _beside(problem, baselines):
            if all(abs(share - budget) > _NEAR for _, budget in found) and share >= cheapest:
                found.append((f"as-{name.lower().replace(' ', '-')}", share))
    return sorted(found, key=lambda target: -target[1])


def _beside(problem: Problem, baselines: Sequence[Baseline]) -> Iterator[tuple[str, float]]:
    """The authors' schedule and the linear one that is most like it, with their costs."""
    shares = {each: problem.predicted(problem.compiled(each.schedule)) for each in baselines}
    of_kind = {kind: [e for e in baselines if e.kind == kind] for kind in ("ase", "linear")}
    for each in of_kind["ase"]:
        yield each.name, shares[each]
        if of_kind["linear"]:
            like = min(of_kind["linear"], key=lambda other: abs(shares[other] - shares[each]))
            yield like.name, shares[like]


def _searched(
    problem: Problem, baselines: Sequence[Baseline], work: Work, report: Progress
) -> tuple[list[Entry], float]:
    """Full depth and the best schedule for every budget; and the unit of distances."""
    model, settings, full = problem.model, problem.settings, problem.program
    fronts = [front(model.table, monotone=settings.monotone)]
    targets = _targets(problem, baselines, float(fronts[0].costs[0]) + model.start)
    if settings.reuse:  # what is predicted of former outputs is less sure
        fronts.append(front(model.table._replace(reuse=None), monotone=settings.monotone))
    prober = Prober(problem.sampler)
    trials = Trials(
        prober,
        lambda picks: problem.compiled(problem.schedule(picks)),
        problem.samples,
        problem.slots.steps,
        work,
    )
    scale = _scale(problem, prober, work)
    entries = [Entry(FULL, "full", full, _deepest(problem), settings.steps, 1.0)]
    for index, (name, budget) in enumerate(targets):

        def tell(index: int = index) -> None:
            report("trying schedules", index, len(targets))

        tell()
        starts = [each.best(budget - model.start) for each in fronts]
        picks = refined(
            [*_candidates(problem, starts, budget), *_affordable(problem, baselines, budget)],
            model,
            budget,
            trials,
            monotone=settings.monotone,
            seconds=60 * settings.minutes / len(targets),
            report=tell,
        )
        schedule = problem.schedule(picks)
        program = problem.compiled(schedule)
        if all(program.steps != entry.program.steps for entry in entries):
            cost, distance = model.cost(picks), trials.distance(picks) / scale
            entries.append(
                Entry(name, "found", program, schedule, settings.steps, cost, budget, distance)
            )
    return entries, scale


def _candidates(problem: Problem, starts: Sequence[Picks | None], budget: float) -> list[Picks]:
    """Picks worth a trial: of each start the few that are predicted to be best."""
    settings, found = problem.settings, []
    for start in starts:
        if start is not None:
            made = proposed(
                start, problem.model, budget, monotone=settings.monotone, seed=settings.seed
            )
            found += made[:_TRIED]
    return found


def _affordable(problem: Problem, baselines: Sequence[Baseline], budget: float) -> list[Picks]:
    """Baselines within the budget: those that are predicted to be best."""
    model, found = problem.model, []
    for each in baselines:
        picks = problem.picks(problem.compiled(each.schedule))
        allowed = objective(model.table, picks, monotone=problem.settings.monotone)[1]
        if np.isfinite(allowed) and model.cost(picks) <= budget:
            found.append((model.distance(picks), picks))
    return [picks for _, picks in sorted(found)[:_TRIED]]


def _deepest(problem: Problem) -> ExitSchedule:
    return ExitSchedule.constant(problem.choices[0].depth)


def _scale(problem: Problem, prober: Prober, work: Work) -> float:
    """The unit of distances: the data's range, or the deviation of full depth's samples."""
    if bounds := problem.sampler.interface.state.range:
        return bounds[1] - bounds[0]
    found = work.get("scale")
    if found is None:
        found = float(prober.run(problem.program, problem.samples).std()) or 1.0
        work.put("scale", found)
    return float(found)


def _baselines(
    problem: Problem, baselines: Sequence[Baseline], found: Sequence[Entry]
) -> list[Entry]:
    """Schedules that need no tuning, and fewer steps for every budget that was met."""
    settings, model = problem.settings, problem.model
    entries = []
    for each in baselines:
        program = problem.compiled(each.schedule)
        share = problem.predicted(program)
        entries.append(Entry(each.name, each.kind, program, each.schedule, settings.steps, share))
    step = float(model.table.costs[:, 0].sum()) / len(problem.program.steps)

    def cost(program: Program) -> float:
        return model.start + step * len(program.steps)

    budgets = [e.budget for e in found if e.budget and e.name.startswith("budget")]
    fewer = fewer_steps(problem.sampler, settings.solver, settings.steps, budgets, cost)
    for count, program in fewer.items():
        entries.append(
            Entry(f"{count} steps", "steps", program, _deepest(problem), count, cost(program))
        )
    return entries
