"""What each choice costs: whole steps of a sampler, measured in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from eecompile.measure.timing import interleaved, percentiles
from eecompile.programs.choice import Choice
from eecompile.programs.program import Program, Step
from eecompile.tune.model import Costs
from eecompile.tune.probe import Experiment

_STEPS = 6  # of a sampling that is timed
_LEAST, _MOST = 5, 25  # rounds


class StepLatency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Milliseconds that a step takes with a choice, the solver's arithmetic included.

    Attributes:
        choice: what the step makes its prediction from.
        guided: whether guidance doubles the batch.
        median: of all rounds.
        p10: a tenth of the rounds took no longer.
        p90: nine tenths of the rounds took no longer.
        rounds: how often it was measured.
    """

    choice: Choice
    guided: bool
    median: float
    p10: float
    p90: float
    rounds: int


def measured_costs(
    experiment: Experiment, *, skip: Sequence[int] = (), seconds: float
) -> tuple[Costs, list[StepLatency]]:
    """The costs of every choice at every step for one batch, and what was measured.

    Choices to skip cannot be used. The seconds are for all rounds, after the least number of
    them.
    """
    program, choices = experiment.program, experiment.choices
    usable = [choice for index, choice in enumerate(choices) if index not in skip]
    sources = {choice: _source(choice, usable) for choice in usable if choice.memory is not None}
    acting = [acts(step, experiment) for step in program.steps]
    jobs = {
        f"{kind:d} {choice.text}": (kind, choice)
        for kind in dict.fromkeys(acting)
        for choice in usable
        if choice.evaluates or kind == acting[0]  # a forecast has no rows for guidance
    }

    def measure() -> dict[str, list[float]]:
        programs = {
            name: _repeated(program, _moments(acting, kind, choice), choice, sources.get(choice))
            for name, (kind, choice) in jobs.items()
        }
        programs["start"] = _repeated(program, [0], choices[0])
        return _timed(experiment, programs, seconds)

    timed = experiment.work.recall("seconds", measure)
    count = min(_STEPS, len(program.steps))
    start, each = _split(timed, jobs, choices[0], sources, acting)
    full = start + sum(each[kind, choices[0]] for kind in acting)
    known = {choice: each[acting[0], choice] for choice in usable if not choice.evaluates}
    steps = np.array([[each.get((kind, c), known.get(c, np.inf)) for c in choices]
                      for kind in acting])  # fmt: skip
    latencies = [
        _latency(choice, kind and choice.evaluates, each[kind, choice], timed[name], count)
        for name, (kind, choice) in jobs.items()
    ]
    return Costs(start / full, steps / full), latencies


def acts(step: Step, experiment: Experiment) -> bool:
    """Whether guidance acts in a step."""
    samples, sampling = experiment.samples, experiment.sampler.interface.sampling
    interval = samples.guidance_interval or sampling.guidance_interval
    if samples.guidance == 1:
        return False
    return interval is None or interval[0] <= step.moment <= interval[1]


def _timed(
    experiment: Experiment, programs: Mapping[str, Program], seconds: float
) -> dict[str, list[float]]:
    """Seconds of each program's samplings, in turns."""

    def drawing(program: Program) -> Callable[[], object]:
        return lambda: experiment.sampler.sample_requests([experiment.samples], solver=program)

    timings = interleaved(
        {name: drawing(program) for name, program in programs.items()},
        seconds=seconds,
        least=_LEAST,
        most=_MOST,
        twice=True,
        warm=True,
        report=lambda done, total: experiment.report(
            "measuring what every choice costs", done, total
        ),
    )
    return timings.checked().seconds


def _source(choice: Choice, usable: Sequence[Choice]) -> Choice:
    """The cheapest choice that makes what another extrapolates."""
    fitting = (c for c in usable if c.memory is None and c.makes(choice.memory or ""))
    return min(fitting, key=lambda each: each.blocks)


def _moments(acting: Sequence[bool], kind: bool, choice: Choice) -> list[int]:
    """At which steps' moments a choice is timed: one, or several where it extrapolates.

    What it extrapolates is made at the first ones; a step that evaluates nothing takes so little
    time that as many are timed as there are.
    """
    alike = [step for step, acts in enumerate(acting) if acts == kind]
    if choice.memory is None:
        return alike[:1] * min(_STEPS, len(acting))
    if not choice.evaluates:
        return list(range(len(acting)))
    count = min(choice.order + 1 + _STEPS, len(acting))
    return [alike[place % len(alike)] for place in range(count)]


def _repeated(
    program: Program, moments: Sequence[int], choice: Choice, source: Choice | None = None
) -> Program:
    """The program's first steps, at the moments of some of its steps, all with one choice.

    Where the choice reads what earlier steps made, these take ``source``.
    """
    first = choice.order + 1 if source else 0
    made = []
    for place, (step, moment) in enumerate(zip(program.steps, moments, strict=False)):
        like = program.steps[moment]
        taken = source if place < first else choice
        made.append(
            msgspec.structs.replace(step, choice=taken, timestep=like.timestep, time=like.moment)
        )
    return msgspec.structs.replace(program, steps=tuple(made))


def _split(
    seconds: Mapping[str, Sequence[float]],
    jobs: Mapping[str, tuple[bool, Choice]],
    full: Choice,
    sources: Mapping[Choice, Choice],
    acting: Sequence[bool],
) -> tuple[float, dict[tuple[bool, Choice], float]]:
    """Seconds once a sampling, and a step of each choice."""
    median = {name: float(np.median(found)) for name, found in seconds.items()}
    whole = {job: median[name] for name, job in jobs.items()}
    once, count = whole[acting[0], full], min(_STEPS, len(acting))
    start = 0.0
    if count > 1:
        start = max(0.0, median["start"] - (once - median["start"]) / (count - 1))
    each = {
        job: max(0.0, found - start) / count
        for job, found in whole.items()
        if job[1].memory is None
    }
    for (kind, choice), found in whole.items():
        if choice.memory is not None:
            first = choice.order + 1
            rest = found - start - first * each[kind, sources[choice]]
            each[kind, choice] = max(0.0, rest) / (len(_moments(acting, kind, choice)) - first)
    return start, each


def _latency(
    choice: Choice, kind: bool, median: float, seconds: Sequence[float], count: int
) -> StepLatency:
    """A step's figures; the spread is that of the samplings that were timed."""
    low, middle, high = percentiles(seconds)
    return StepLatency(
        choice=choice,
        guided=kind,
        median=1e3 * median,
        p10=1e3 * median * low / middle,
        p90=1e3 * median * high / middle,
        rounds=len(seconds),
    )
