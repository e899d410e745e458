"""What predictions are off by when what a span adds is extrapolated.

Every span is skipped once with every order at every step of a full-depth trajectory, on full
depth's own state, from the steps just before. A program does that on any sampler: where it takes
a step, it first leaves each prediction in the place of the state, where it can be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from eecompile.arrays import Array
from eecompile.interrupt import check
from eecompile.programs.choice import Choice, Forecast
from eecompile.programs.forecasts import SAME, Weights, extrapolation
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.tune.probe import Experiment

_STATE = "state"
_ASIDE = "state aside"  # the buffer that keeps the state meanwhile


def first_at(step: int, places: Sequence[float]) -> int:
    """The first step at a step's place."""
    own = places[step]
    return next(
        i for i, at in enumerate(places) if math.isclose(at, own, rel_tol=SAME, abs_tol=SAME)
    )


def from_before(step: int, order: int, places: Sequence[float]) -> Weights:
    """An extrapolation from the last steps at other places before the first one at a step's.

    Of a lower order where there are too few.
    """
    return extrapolation(places, range(first_at(step, places))[::-1], order, places[step])


def looked_at(step: int, order: int, places: Sequence[float]) -> bool:
    """Whether a step is the first at its place, and enough places come before it."""
    return first_at(step, places) == step and len(from_before(step, order, places)) > order


def additions_recorded(
    experiment: Experiment, kinds: Mapping[int, Choice], places: Sequence[float]
) -> Iterator[tuple[int, dict[int, Array]]]:
    """What choices of one memory predict on the states of a full-depth trajectory.

    Of steps at one place, only the first is looked at. Solvers that draw noise draw other noise
    than they do for full depth alone.

    Args:
        experiment: whose sampler is run.
        kinds: the choices, by any number; all extrapolate the same.
        places: the variable of the polynomials at every step.

    Yields:
        A step, and by the choices' numbers the difference of their predictions to full depth's,
        float32 [n, *shape].

    Raises:
        NonFiniteError: one of them gave NaN or infinity.
    """
    program, full = experiment.program, experiment.choices[0]
    jobs = [
        [kind for kind, choice in kinds.items() if looked_at(step, choice.order, places)]
        for step in range(len(program.steps))
    ]
    steps: list[Step] = []
    for each, own in zip(program.steps, jobs, strict=True):
        steps += _shown(each, [*(kinds[kind] for kind in own), full]) if own else [each]
    looking = msgspec.structs.replace(program, steps=tuple(steps))
    states = _stepped(experiment, looking)
    for step, own in enumerate(jobs):
        check()
        if own:
            found = {kind: next(states) for kind in own}
            right = next(states)
            yield step, {kind: made - right for kind, made in found.items()}
        next(states)


def _shown(step: Step, choices: Sequence[Choice]) -> Iterator[Step]:
    """Steps that leave each choice's prediction in the place of the state, and then the step.

    The step itself takes the prediction of the last one again.
    """
    aside = tuple(
        Term(_ASIDE, term.coefficient) if term.buffer == _STATE else term for term in step.input
    )
    shown, back = Update(_STATE, (Term("output", 1.0),)), Update(_STATE, (Term(_ASIDE, 1.0),))
    for place, choice in enumerate(choices):
        kept = () if place else (Update(_ASIDE, (Term(_STATE, 1.0),)),)
        yield msgspec.structs.replace(
            step,
            choice=choice,
            input=aside if place else step.input,
            updates=(*kept, shown),
            log_variances=None,
        )
    yield msgspec.structs.replace(
        step, choice=Forecast(), input=aside, updates=(back, *step.updates)
    )


def _stepped(experiment: Experiment, program: Program) -> Iterator[Array]:
    """The states after each step of a program."""
    samples = experiment.samples
    conditions: dict[str, Any] = {**samples.conditions}
    results = experiment.sampler.steps(
        samples.n,
        solver=program,
        seed=samples.seed,
        guidance=samples.guidance,
        guidance_interval=samples.guidance_interval,
        nulls=samples.nulls,
        shape=samples.shape,
        first=samples.first,
        **conditions,
    )
    return (result.state for result in results)
