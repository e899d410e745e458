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
import numpy as np

from eecompile.arrays import Array, Floats
from eecompile.interrupt import check
from eecompile.programs.choice import Choice, Forecast
from eecompile.programs.forecasts import SAME, extrapolation
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.tune.probe import Experiment

_STATE = "state"
_ASIDE = "state aside"  # the buffer that keeps the state meanwhile


class Additions:
    """What a span adds; a :class:`eecompile.tune.model.Memory`.

    From other steps than those just before, an extrapolation of order m is off by the same
    vector, times the ratio of the remainders of Lagrange's form where the derivative of order
    m + 1 is the same: of the products of the distances, in the variable of the polynomials, from
    the step to its sources.

    Args:
        errors: by order, what predictions are off by from the steps just before, [E, R].
        places: the variable at every step, [E].
    """

    def __init__(self, errors: Mapping[int, Floats], places: Floats) -> None:
        self._errors, self._places = errors, places
        first = first_at(places)
        self._usual = {
            order: [
                self._product(step, steps_before(first[step], order, places))
                for step in range(len(own))
            ]
            for order, own in errors.items()
        }

    def error(self, step: int, sources: np.ndarray, weights: Floats) -> Floats:
        """See :meth:`eecompile.tune.model.Memory.error`."""
        order = sources.shape[1] - 1
        scales = self._product(step, sources) / self._usual[order][step]
        made: Floats = scales[:, None] * self._errors[order][step]
        return made

    def _product(self, step: int, sources: np.ndarray | list[int]) -> Floats:
        distances: Floats = self._places[sources] - self._places[step]
        return np.asarray(distances.prod(axis=-1))


def first_at(places: Sequence[float] | Floats) -> list[int]:
    """For each step, the first one at its place."""
    return [
        next(i for i, p in enumerate(places) if math.isclose(p, own, rel_tol=SAME, abs_tol=SAME))
        for own in places
    ]


def steps_before(step: int, order: int, places: Sequence[float] | Floats) -> list[int]:
    """The last steps before the first one at a place, ``order`` + 1, or as many as there are."""
    made_of = extrapolation([*places], range(step)[::-1], order, places[step])
    return [source for source, _ in made_of]


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
    first = first_at(places)
    jobs = [
        [
            kind
            for kind, choice in kinds.items()
            if first[step] == step and len(steps_before(step, choice.order, places)) > choice.order
        ]
        for step in range(len(program.steps))
    ]
    steps: list[Step] = []
    for each, own in zip(program.steps, jobs, strict=True):
        steps += _looked_at(each, [*(kinds[kind] for kind in own), full]) if own else [each]
    looking = msgspec.structs.replace(program, steps=tuple(steps))
    states = _stepped(experiment, looking)
    for step, own in enumerate(jobs):
        check()
        if own:
            found = {kind: next(states) for kind in own}
            right = next(states)
            yield step, {kind: made - right for kind, made in found.items()}
        next(states)


def _looked_at(step: Step, choices: Sequence[Choice]) -> Iterator[Step]:
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
