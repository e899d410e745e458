"""Programs measured on samples that no schedule was chosen by: time and distance."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eecompile.arrays import Array, Floats
from eecompile.errors import NonFiniteError
from eecompile.interrupt import check
from eecompile.programs.program import Program
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.probe import Experiment

FULL = "full"
_ROUNDS = 7  # that are timed, where time allows
_Sampled = Sequence[Any]  # seconds, and the mean squared difference of each sample


class Measured(NamedTuple):
    """A program on the held-out samples.

    Attributes:
        seconds: of each round, without what slowed the round as a whole.
        times: the same over full depth's median.
        squares: mean squared difference to full depth, of each sample.
    """

    seconds: Floats
    times: Floats
    squares: Floats


def measured(
    experiment: Experiment, programs: Mapping[str, Program], batch: int, *, seconds: float
) -> dict[str, Measured]:
    """Every program on every sample, a batch a round, in turns; those that gave finite samples.

    The last round may have fewer samples, and is not timed then. Where there are few rounds,
    the first batches are timed again, until the seconds are over. Times and distances are
    relative to :data:`FULL`.
    """
    samples = experiment.samples
    starts = list(range(samples.first, samples.first + samples.n, batch))
    sizes = [min(batch, samples.first + samples.n - start) for start in starts]
    own, began = len(starts), time.perf_counter()
    rounds: list[dict[str, _Sampled]] = []
    for index in range(max(own, _ROUNDS)):
        if index >= own and time.perf_counter() - began > seconds:
            break
        part = experiment.part(starts[index % own], sizes[index % own])
        rounds.append(_round(part, programs, index, max(own, _ROUNDS)))
    squares = {
        name: np.concatenate([np.asarray(each[name][1]) for each in rounds[:own]])
        for name in programs
    }
    kept = [name for name in programs if np.isfinite(squares[name]).all()]
    timed = [each for index, each in enumerate(rounds) if sizes[index % own] == sizes[0]]
    spent = {name: np.array([each[name][0] for each in timed]) for name in kept}
    return corrected(spent, squares)


def corrected(seconds: Mapping[str, Floats], squares: Mapping[str, Floats]) -> dict[str, Measured]:
    """Results by program, from the seconds of each round and the squares of each sample."""
    spent = dict(zip(seconds, steadied(np.array(list(seconds.values()))), strict=True))
    full = np.median(spent[FULL])
    return {name: Measured(own, own / full, squares[name]) for name, own in spent.items()}


def steadied(seconds: Floats) -> Floats:
    """Seconds of each program and round, without what slowed a round as a whole.

    Each round took a factor more or less than usual: the median over all programs. Full
    depth alone would tell that less well. Seconds are [programs, rounds].
    """
    usual = np.median(seconds, axis=1, keepdims=True)
    made: Floats = seconds / np.median(seconds / usual, axis=0)
    return made


def _round(
    experiment: Experiment, programs: Mapping[str, Program], index: int, rounds: int
) -> dict[str, _Sampled]:
    """One batch of all programs; full depth first, the others in another order each round."""
    work, part = experiment.work, experiment.samples
    names = [name for name in programs if name != FULL]
    names = [FULL, *np.random.default_rng(index).permutation(names).tolist()]
    right: Array | None = None
    found: dict[str, _Sampled] = {}
    for place, name in enumerate(names):
        check()
        done, total = len(programs) * index + place, len(programs) * rounds
        experiment.report("measuring on the held-out samples", done, total)
        key = f"held out {index} {part.n} {_key(programs[name])}"
        known = work.get(key)
        if known is None and right is None and name != FULL:  # after an interruption
            (right,) = experiment.sampler.sample_requests([part], solver=programs[FULL])
        if known is None:
            seconds, made = _timed(experiment.sampler, programs[name], part)
            right = made if name == FULL else right
            squares = np.full(part.n, np.inf)
            if made is not None and right is not None:
                difference = np.subtract(made, right, dtype=np.float64)
                squares = np.square(difference).reshape(part.n, -1).mean(axis=1)
            known = [seconds, squares.tolist()]
            work.put(key, known)
        found[name] = known
    return found


def _timed(sampler: Sampler, program: Program, part: SampleRequest) -> tuple[float, Array | None]:
    """Seconds, and the samples; None where they are not finite."""
    try:
        if sampler.engine.runs_trajectories:  # a device records it first
            sampler.sample_requests([part], solver=program)
        started = time.perf_counter()
        (made,) = sampler.sample_requests([part], solver=program)
    except NonFiniteError:
        return float("inf"), None
    return time.perf_counter() - started, made


def _key(program: Program) -> str:
    return " ".join(step.chosen.text for step in program.steps)
