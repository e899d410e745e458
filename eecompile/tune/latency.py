"""What each choice costs: whole steps of a sampler, measured in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from eecompile.measure.timing import interleaved
from eecompile.programs.choice import Choice, Exit, Forecast
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program, Step
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.model import Costs
from eecompile.tune.work import Work

Progress = Callable[[str, int, int], Any]
_STEPS = 6  # of a sampling that is timed
_LEAST, _MOST = 5, 25  # rounds


class StepLatency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Milliseconds that a step takes with a choice, the solver's arithmetic included.

    Attributes:
        choice: what is evaluated.
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
    sampler: Sampler,
    program: Program,
    choices: Sequence[Exit],
    samples: SampleRequest,
    *,
    reuse: bool,
    skip: Sequence[int] = (),
    seconds: float,
    work: Work,
    report: Progress,
) -> tuple[Costs, list[StepLatency]]:
    """The costs of every choice at every step.

    Args:
        sampler: to be measured.
        program: at full depth.
        choices: of which the first is full depth.
        samples: of one batch.
        reuse: also of steps that evaluate nothing.
        skip: choices that cannot be used.
        seconds: for all rounds, after the least number of them.
        work: keeps what has been measured.
        report: told of each round.

    Returns:
        The costs, and what was measured.
    """
    usable = [c for index, c in enumerate(choices) if index not in skip]
    cheap = min(usable, key=lambda choice: choice.depth)
    wanted: list[Choice] = [*usable, *([Forecast()] if reuse else [])]
    acting = [acts(step, sampler.interface, samples) for step in program.steps]
    jobs = {f"{kind:d} {choice.text}": (kind, choice) for kind in set(acting) for choice in wanted}
    timed = work.get("seconds")
    if timed is None:
        programs = {
            name: _repeated(program, acting.index(kind), choice, first=cheap)
            for name, (kind, choice) in jobs.items()
        }
        programs["start"] = _repeated(program, 0, choices[0], steps=1)
        timings = interleaved(
            {name: _drawing(sampler, made, samples) for name, made in programs.items()},
            seconds=seconds,
            least=_LEAST,
            most=_MOST,
            twice=True,
            warm=True,
            report=lambda done, total: report("measuring what every choice costs", done, total),
        )
        for error in timings.failures.values():
            raise error
        timed = timings.seconds
        work.put("seconds", timed)
    count = min(_STEPS, len(program.steps))
    start, each = _split(timed, jobs, choices[0], cheap, acting[0], count)
    full = start + sum(each[acting[index], choices[0]] for index in range(len(acting)))
    steps = np.array([[each.get((kind, c), np.inf) for c in choices] for kind in acting])
    again = np.array([each.get((kind, Forecast()), 0.0) for kind in acting])
    found = [
        _latency(choice, kind, each[kind, choice], timed[name], count)
        for name, (kind, choice) in jobs.items()
    ]
    return Costs(start / full, steps / full, again / full), found


def acts(step: Step, interface: Interface, samples: SampleRequest) -> bool:
    """Whether guidance acts in a step."""
    interval = samples.guidance_interval or interface.sampling.guidance_interval
    if samples.guidance == 1:
        return False
    return interval is None or interval[0] <= step.moment <= interval[1]


def _drawing(sampler: Sampler, program: Program, samples: SampleRequest) -> Callable[[], object]:
    return lambda: sampler.sample_requests([samples], solver=program)


def _repeated(
    program: Program,
    moment: int,
    choice: Choice,
    *,
    steps: int = _STEPS,
    first: Choice | None = None,
) -> Program:
    """The program's first steps, all with one choice, and at one moment.

    Where the choice reads what earlier steps wrote, the first step takes ``first``.
    """
    like = program.steps[moment]
    made = [
        msgspec.structs.replace(step, choice=choice, timestep=like.timestep, time=like.moment)
        for step in program.steps[:steps]
    ]
    if choice.reads:
        made[0] = msgspec.structs.replace(made[0], choice=first or program.steps[0].chosen)
    return msgspec.structs.replace(program, steps=tuple(made))


def _split(
    seconds: Mapping[str, Sequence[float]],
    jobs: Mapping[str, tuple[bool, Choice]],
    full: Choice,
    cheap: Choice,
    acting: bool,
    count: int,
) -> tuple[float, dict[tuple[bool, Choice], float]]:
    """Seconds once a sampling, and a step of each choice."""
    median = {name: float(np.median(found)) for name, found in seconds.items()}
    whole = {job: median[name] for name, job in jobs.items()}
    once = whole[acting, full]
    start = 0.0
    if count > 1:
        start = max(0.0, median["start"] - (once - median["start"]) / (count - 1))
    each = {
        job: max(0.0, found - start) / count for job, found in whole.items() if job[1].evaluates
    }
    for (kind, choice), found in whole.items():
        if not choice.evaluates:
            rest = found - start - each[kind, cheap]
            each[kind, choice] = max(0.0, rest) / max(1, count - 1)
    return start, each


def _latency(
    choice: Choice, kind: bool, median: float, seconds: Sequence[float], count: int
) -> StepLatency:
    """A step's figures; the spread is that of the samplings that were timed."""
    middle = float(np.median(seconds))
    low, high = (float(np.quantile(seconds, share)) / middle for share in (0.1, 0.9))
    return StepLatency(
        choice=choice,
        guided=kind,
        median=1e3 * median,
        p10=1e3 * median * low,
        p90=1e3 * median * high,
        rounds=len(seconds),
    )
