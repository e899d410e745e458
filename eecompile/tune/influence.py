"""How far each choice moves the next state, and how far that moves the samples.

On a full-depth trajectory all exits are evaluated on the same states. Their differences to full
depth are their local errors; those of forecasts, which are sums of recorded predictions, need no
further evaluation. What a local error does to the samples is measured: at some steps one choice
is taken instead, the rest runs at full depth, and the ratio of the samples' distance to the
movement of the state is interpolated between those steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np

from eecompile.arrays import Array, Floats, Inputs
from eecompile.errors import NonFiniteError
from eecompile.interrupt import check
from eecompile.programs.choice import OUTPUT, Choice
from eecompile.programs.forecasts import Weights, extrapolation, variable
from eecompile.programs.program import Program, Step
from eecompile.tune.additions import additions_recorded, first_at, looked_at
from eecompile.tune.choices import skipping
from eecompile.tune.probe import Experiment, Outputs, rms

_KEPT = 1 << 14  # elements of a prediction that are compared
_SAMPLES = 8  # for influence
_PROBES = 48  # influences measured, in all; at least 5 and at most 10 steps
_SMALL = 1e-6  # of squares, as a share of the largest: directions that are left out


class Recorded(NamedTuple):
    """What full depth and the other exits predict on the states of a full-depth trajectory.

    Predictions are given by coordinates in the directions in which they differ; the length of
    a difference is its root mean square.

    Attributes:
        predictions: full depth's, relative to the first step's, [E, R].
        errors: differences to full depth's of each choice that is evaluated, [E, K, R]; 0 for
            those that are not. Of choices that skip blocks: where these are extrapolated from the
            steps just before.
        broken: choices that gave NaN or infinity, and the step where they did.
    """

    predictions: Floats
    errors: Floats
    broken: dict[int, int]

    def forecast_error(self, made_of: Weights, step: int) -> Floats:
        """What predictions of other steps, times weights, are off by in a step, [R]."""
        made: Floats = -self.predictions[step]
        for source, weight in made_of:
            made = made + weight * self.predictions[source]
        return made


def recorded(experiment: Experiment) -> Recorded:
    """Every choice on the states of a full-depth trajectory.

    Raises a NonFiniteError where full depth gives NaN or infinity.
    """
    prober, program, work = experiment.prober, experiment.program, experiment.work
    rows: list[Array] = []
    broken: dict[int, int] = {}
    others = [c for c in experiment.choices[1:] if c.memory is None]

    def watch(step: int, outputs: Outputs, x: Array, t: Array, given: Inputs) -> None:
        check()
        experiment.report("evaluating every choice at every step", step, len(program.steps))
        full = _guided(outputs[0], experiment)
        kept = work.get(f"recorded {step}")
        if kept is None:
            differences = [_difference(experiment, each, full, x, t, given) for each in others]
            kept = _part(np.stack([full, *differences]).reshape(1 + len(others), -1))
            work.put(f"recorded {step}", kept)
        for index in np.flatnonzero(~np.isfinite(kept).all(axis=1)).tolist():
            broken.setdefault(index, step)
        rows.append(np.nan_to_num(kept, posinf=0.0, neginf=0.0))

    prober.watch = watch
    try:
        prober.run(program, experiment.samples)
    finally:
        prober.watch = None
    every = np.stack(rows)
    every[:, 0] = np.diff(every[:, 0], axis=0, prepend=every[:1, 0])  # forecasts read differences
    columns = list(range(every.shape[1]))
    for memory, kinds in skipping(experiment.choices).items():
        added = work.recall(
            f"recorded {memory}", partial(_added, experiment, kinds, every.shape[2])
        )
        for kind, found in zip(kinds, added.swapaxes(0, 1), strict=True):
            if not (finite := np.isfinite(found).all(axis=1)).all():
                broken[kind] = int(np.argmin(finite))
        every = np.concatenate([every, np.nan_to_num(added)], axis=1)
        columns += kinds
    steps, choices = len(rows), len(experiment.choices)
    coordinates = _coordinates(every.reshape(steps * every.shape[1], -1))
    coordinates = coordinates.reshape(steps, every.shape[1], -1)
    errors = np.zeros((steps, choices, coordinates.shape[2]))
    errors[:, columns[1:]] = coordinates[:, 1:]
    return Recorded(np.cumsum(coordinates[:, 0], axis=0), errors, broken)


def _added(experiment: Experiment, kinds: Mapping[int, Choice], elements: int) -> Array:
    """Differences to full depth's predictions, [E, kinds, elements]; NaN from a failure on."""
    program = experiment.program
    places = [variable(program.process, step) for step in program.steps]
    made = np.zeros((len(places), len(kinds), elements), np.float32)
    order, step = list(kinds), -1
    try:
        for step, found in additions_recorded(experiment, kinds, places):
            experiment.report("evaluating every span at every step", step, len(places))
            for kind, difference in found.items():
                made[step, order.index(kind)] = _part(difference.reshape(1, -1))[0]
    except NonFiniteError:
        made[step + 1 :] = np.nan
    return made[[first_at(step, places) for step in range(len(places))]]


def _difference(
    experiment: Experiment, choice: Choice, full: Array, x: Array, t: Array, given: Inputs
) -> Array:
    """Of a choice's prediction to full depth's; NaN where any output is not finite."""
    found = experiment.prober.ask(choice, x, t, given)
    if not all(np.isfinite(output).all() for output in found):
        return np.full_like(full, np.nan)
    difference: Array = _guided(found[0], experiment) - full
    return difference


def _part(rows: Array) -> Array:
    """The same elements of every row, no more than :data:`_KEPT`."""
    if rows.shape[1] <= _KEPT:
        return rows
    chosen = np.random.default_rng(0).choice(rows.shape[1], _KEPT, replace=False)
    return rows[:, np.sort(chosen)]


def _coordinates(rows: Array) -> Floats:
    """Rows with the angles of the given ones, whose length is their root mean square."""
    wide = rows.astype(np.float64)
    squares, directions = np.linalg.eigh(wide @ wide.T / wide.shape[1])
    kept = squares > max(_SMALL * float(squares[-1]), 0.0)
    made: Floats = directions[:, kept] * np.sqrt(squares[kept])
    return made


def _guided(prediction: Array, experiment: Experiment) -> Array:
    """The prediction that the solver reads: with guidance, of both halves of the rows."""
    samples = experiment.samples
    if len(prediction) == samples.n:
        return prediction.copy()
    channels = experiment.sampler.interface.sampling.guided_channels
    part = (slice(None),) if channels is None else (slice(None), slice(channels))
    given, without = prediction[: samples.n].copy(), prediction[samples.n :]
    scale = np.asarray(samples.guidance, np.float32)
    given[part] = without[part] + scale * (given[part] - without[part])
    return given


class Influence(NamedTuple):
    """What each choice does where it is taken at one step alone.

    Attributes:
        sizes: root mean square of its local error, [E, K]; 0 where it cannot be taken.
        ratios: distance of the samples over that, [E, K].
        probes: steps at which the ratio was measured; between them it is interpolated.
    """

    sizes: Floats
    ratios: Floats
    probes: tuple[int, ...]


def measured_influence(experiment: Experiment, record: Recorded) -> Influence:
    """What a local error does to the samples, measured at some steps."""
    experiment = experiment.part(experiment.samples.first, min(experiment.samples.n, _SAMPLES))
    program, choices = experiment.program, experiment.choices
    places = [variable(program.process, step) for step in program.steps]
    outputs: dict[int, Outputs] = {}
    full = experiment.prober.run(program, experiment.samples, record=outputs)
    alike = [_measured_for(index, choices) for index in range(len(choices))]
    kinds = sorted({alike[index] for index in range(1, len(choices))} - set(record.broken))
    plain = [kind for kind in kinds if not choices[kind].cuts]
    count = max(5, min(10, _PROBES // max(1, len(plain))))
    roles = [_role(step) for step in program.steps]
    probes = sorted({step for role in set(roles) for step in _spread(roles, role, count)})
    sizes = np.array([
        [_size(record, step, kind, choice, places) for kind, choice in enumerate(choices)]
        for step in range(len(program.steps))
    ])  # fmt: skip
    half = probes[1::2]  # for spans, whose programs replay nothing
    jobs = [
        (step, kind)
        for step in probes
        for kind in kinds
        if sizes[step, kind] > 0 and (step in half or not choices[kind].cuts)
    ]
    distances: dict[tuple[int, int], float] = {}

    def moved(step: int, kind: int) -> float:
        changed = _with_step(program, step, choices[kind])
        shared = {known: each for known, each in outputs.items() if known < step}
        return rms(experiment.prober.run(changed, experiment.samples, replay=shared) - full)

    for index, (step, kind) in enumerate(jobs):
        check()
        experiment.report("measuring what an error does to the samples", index, len(jobs))
        key, measure = f"influence {step} {kind}", partial(moved, step, kind)
        distances[step, kind] = experiment.work.recall(key, measure)
    ratios = _interpolated(program, roles, sizes, distances)
    return Influence(sizes, ratios[:, alike], tuple(probes))


def _measured_for(kind: int, choices: Sequence[Choice]) -> int:
    """Whose influence stands for a choice's: its own, or that of the highest order of its span."""
    same = skipping(choices).get(choices[kind].memory or "", {kind: choices[kind]})
    return max(same, key=lambda other: same[other].order)


def _size(record: Recorded, step: int, kind: int, choice: Choice, places: Sequence[float]) -> float:
    """Root mean square of the error of a choice that is taken at one step alone."""
    if choice.memory != OUTPUT:
        known = choice.memory is None or looked_at(step, choice.order, places)
        return float(np.linalg.norm(record.errors[step, kind])) if known else 0.0
    if step <= choice.order:
        return 0.0
    made_of = extrapolation(places, range(step)[::-1], choice.order, places[step])
    return float(np.linalg.norm(record.forecast_error(made_of, step)))


def _role(step: Step) -> str:
    """What a step does with the output; steps of one role are alike but for their figures."""
    updates = [
        (update.into.partition(".")[0], sorted(t.buffer.partition(".")[0] for t in update.terms))
        for update in step.updates
    ]
    return repr((sorted(term.buffer.partition(".")[0] for term in step.input), sorted(updates)))


def _spread(roles: Sequence[str], role: str, count: int) -> set[int]:
    """Steps of a role at which to measure: their share of ``count``, but two at least."""
    own = [step for step, other in enumerate(roles) if other == role]
    wanted = max(2, round(count * len(own) / len(roles)))
    return {own[round(place)] for place in np.linspace(0, len(own) - 1, wanted)}


def _with_step(program: Program, index: int, choice: Choice) -> Program:
    """The program with another choice in one step."""
    steps = list(program.steps)
    steps[index] = msgspec.structs.replace(steps[index], choice=choice)
    return msgspec.structs.replace(program, steps=tuple(steps))


def _interpolated(
    program: Program, roles: Sequence[str], sizes: Floats, distances: dict[tuple[int, int], float]
) -> Floats:
    """Ratios of distance to local error at every step.

    Between the steps of a role where they were measured, their logarithm is linear.
    """
    moves = np.array([movement(step) for step in program.steps])
    ratios = np.full(sizes.shape, np.nan)
    for kind in range(sizes.shape[1]):
        known = {
            step: np.log(distance / (sizes[step, kind] * moves[step]))
            for (step, measured), distance in distances.items()
            if measured == kind and distance > 0
        }
        for role in set(roles):
            own = [step for step, other in enumerate(roles) if other == role]
            places = sorted(step for step in known if roles[step] == role)
            if places:
                logs = np.interp(own, places, [known[step] for step in places])
                ratios[own, kind] = moves[own] * np.exp(logs)
    typical = [row[np.isfinite(row)].mean() if np.isfinite(row).any() else move
               for row, move in zip(ratios, moves, strict=True)]  # fmt: skip
    return np.where(np.isnan(ratios), np.array(typical)[:, None], ratios)


def movement(step: Step) -> float:
    """How far one unit of the network's output moves the next state; positive.

    Where a step leaves the state alone, how far it moves what it keeps.
    """
    slopes = {"output": 1.0}
    for update in step.updates:
        slopes[update.into] = sum(
            term.coefficient * slopes.get(term.buffer, 0.0) for term in update.terms
        )
    kept = [abs(slope) for name, slope in slopes.items() if name != "output"]
    return abs(slopes.get("state", 0.0)) or max(kept, default=0.0) or 1.0
