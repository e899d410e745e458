"""How far each choice moves the next state, and how far that moves the samples.

At every step of a full-depth trajectory all choices are evaluated on the same state; their
differences to full depth are the local errors. What a local error does to the samples is
measured: at some steps one choice is taken instead, the rest runs at full depth, and the
ratio of the samples' distance to the movement of the state is interpolated between those
steps. Errors of neighbouring steps point the same way, so a schedule's distance is neither
their sum nor the root of their squares; the angles between the local errors say how they
add up::

    distance^2  =  sum over steps i, j of  d_i d_j cos(e_i, e_j)

with d_i the distance that the choice at step i leads to by itself, and e_i its local error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np

from eecompile.arrays import Array, Floats, Inputs
from eecompile.interrupt import check
from eecompile.programs.choice import Choice, Forecast
from eecompile.programs.program import Program, Step
from eecompile.tune.probe import Experiment, Outputs, rms

STALE = 3  # evaluations for which one output is used again at most
_KEPT = 1 << 14  # elements of an error by which angles are measured
_SAMPLES = 8  # for influence
_PROBES = 40  # influences measured, in all; at least 5 and at most 10 steps


class Errors(NamedTuple):
    """Local errors, of each step and way: choices 1 to C - 1, then reuse 1 to K stale.

    Attributes:
        sizes: root of the mean square of each, [E, W].
        cosines: of the angles between them, [E W, E W].
        broken: choices that gave NaN or infinity, and the step where they did.
    """

    sizes: Floats
    cosines: Floats
    broken: dict[int, int]


class Influence(NamedTuple):
    """Distance of the samples over the size of a local error, [E, W]; and what was measured.

    Attributes:
        ratios: of each step and way.
        probes: steps at which it was measured; between them it is interpolated.
    """

    ratios: Floats
    probes: tuple[int, ...]


def local_errors(experiment: Experiment) -> Errors:
    """Every choice's error on the states of a full-depth trajectory.

    With reuse also the errors of former outputs. Raises a NonFiniteError where full depth gives
    NaN or infinity.
    """
    prober, program, work = experiment.prober, experiment.program, experiment.work
    former: list[Array] = []
    vectors: list[Array] = []
    sizes: list[Floats] = []

    def watch(step: int, outputs: Outputs, x: Array, t: Array, given: Inputs) -> None:
        check()
        experiment.report("evaluating every choice at every step", step, len(program.steps))
        full = _guided(outputs[0], experiment)
        kept, size = work.get(f"errors {step}"), work.get(f"sizes {step}")
        if kept is None:
            differences = _differences(experiment, full, former, x, t, given)
            size = np.sqrt(np.square(differences, dtype=np.float64).mean(axis=_rest(full)))
            kept = _part(differences.reshape(len(differences), -1))
            work.put(f"errors {step}", kept)
            work.put(f"sizes {step}", size)
        vectors.append(np.nan_to_num(kept))
        sizes.append(size)
        former[:] = [*former, full][-STALE:] if experiment.reuse else []

    prober.watch = watch
    try:
        prober.run(program, experiment.samples)
    finally:
        prober.watch = None
    found = np.array(sizes)
    broken: dict[int, int] = {}
    for step, way in np.argwhere(~np.isfinite(found)).tolist():
        broken.setdefault(way + 1, step)
    return Errors(np.nan_to_num(found), _cosines(np.concatenate(vectors)), broken)


def _differences(
    experiment: Experiment,
    full: Array,
    former: Sequence[Array],
    x: Array,
    t: Array,
    given: Inputs,
) -> Array:
    """To full depth, of each other choice and of former outputs, [W, n, *shape]."""
    others = experiment.choices[1:]
    ways = len(others) + (STALE if experiment.reuse else 0)
    differences = np.zeros((ways, *full.shape), np.float32)
    for place, choice in enumerate(others):
        found = experiment.prober.ask(choice, x, t, given)
        differences[place] = _guided(found[0], experiment) - full
        if not all(np.isfinite(output).all() for output in found):
            differences[place] = np.nan
    for age, output in enumerate(reversed(former)):
        differences[len(others) + age] = output - full
    return differences


def _rest(full: Array) -> tuple[int, ...]:
    return tuple(range(1, full.ndim + 1))


def _part(rows: Array) -> Array:
    """The same elements of every row, no more than :data:`_KEPT`."""
    if rows.shape[1] <= _KEPT:
        return rows
    chosen = np.random.default_rng(0).choice(rows.shape[1], _KEPT, replace=False)
    return rows[:, np.sort(chosen)]


def _cosines(vectors: Array) -> Floats:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, 1e-30)
    return np.asarray(unit @ unit.T, np.float64)


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


def measured_influence(experiment: Experiment, errors: Errors) -> Influence:
    """What a local error does to the samples, measured at some steps."""
    experiment = experiment.part(experiment.samples.first, min(experiment.samples.n, _SAMPLES))
    program, choices = experiment.program, experiment.choices
    record: dict[int, Outputs] = {}
    full = experiment.prober.run(program, experiment.samples, record=record)
    kinds = [
        kind for kind in range(1, len(choices) + experiment.reuse) if kind not in errors.broken
    ]
    count = max(5, min(10, _PROBES // max(1, len(kinds))))
    roles = [_role(step) for step in program.steps]
    probes = sorted({step for role in set(roles) for step in _spread(roles, role, count)})
    jobs = [(step, kind) for step in probes for kind in kinds]
    distances: dict[tuple[int, int], float] = {}
    candidates: list[Choice] = [*choices, Forecast()]

    def moved(step: int, kind: int) -> float:
        changed = _with_step(program, step, candidates[kind])
        shared = {known: outputs for known, outputs in record.items() if known < step}
        return rms(experiment.prober.run(changed, experiment.samples, replay=shared) - full)

    for index, (step, kind) in enumerate(jobs):
        check()
        experiment.report("measuring what an error does to the samples", index, len(jobs))
        if kind < len(choices) or step:  # the first step has no former output
            key, measure = f"influence {step} {kind}", partial(moved, step, kind)
            distances[step, kind] = experiment.work.recall(key, measure)
    ratios = _interpolated(program, roles, errors, distances, len(choices))
    return Influence(ratios, tuple(probes))


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
    program: Program,
    roles: Sequence[str],
    errors: Errors,
    distances: dict[tuple[int, int], float],
    choices: int,
) -> Floats:
    """Ratios of distance to local error at every step.

    Between the steps of a role where they were measured, their logarithm is linear.
    """
    moves = np.array([movement(step) for step in program.steps])
    steps, ways = errors.sizes.shape
    ratios = np.full((steps, ways), np.nan)
    for way in range(ways):
        kind = min(way + 1, choices)  # reuse was measured one evaluation old
        known = {
            step: np.log(distance / (errors.sizes[step, kind - 1] * moves[step]))
            for (step, measured), distance in distances.items()
            if measured == kind and distance > 0 and errors.sizes[step, kind - 1] > 0
        }
        for role in set(roles):
            own = [step for step in range(steps) if roles[step] == role]
            places = sorted(step for step in known if roles[step] == role)
            if places:
                logs = np.interp(own, places, [known[step] for step in places])
                ratios[own, way] = moves[own] * np.exp(logs)
    typical = np.nanmean(ratios, axis=1) if np.isfinite(ratios).any() else moves
    return np.where(np.isnan(ratios), np.broadcast_to(typical[:, None], ratios.shape), ratios)


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
