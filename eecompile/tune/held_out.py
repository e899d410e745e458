"""Programs measured on samples that no schedule was chosen by: time and distance."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from eecompile.arrays import Array, Floats
from eecompile.errors import NonFiniteError
from eecompile.interrupt import check
from eecompile.programs.program import Program
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.work import Work

FULL = "full"
_ROUNDS = 7  # that are timed, where time allows


class Measured(NamedTuple):
    """A program on the held-out samples.

    Attributes:
        seconds: of each round.
        times: of each round, over full depth's; what slowed a whole round is left out.
        squares: mean squared difference to full depth, of each sample.
    """

    seconds: Floats
    times: Floats
    squares: Floats


def measured(
    sampler: Sampler,
    programs: Mapping[str, Program],
    samples: SampleRequest,
    batch: int,
    work: Work,
    report: Callable[[int, int], Any],
    *,
    seconds: float,
) -> dict[str, Measured]:
    """Every program on every sample, a batch a round, in turns.

    Where that is few rounds, the first batches are timed again, as long as that takes little.

    Args:
        sampler: to be measured.
        programs: by name; :data:`FULL` is what distances and times are relative to.
        samples: which ones.
        batch: samples a round; the last round may have fewer, and is not timed then.
        work: keeps what has been measured.
        report: told of each sampling.
        seconds: after which nothing is timed again.

    Returns:
        Those that gave finite samples.
    """
    starts = list(range(samples.first, samples.first + samples.n, batch))
    sizes = [min(batch, samples.first + samples.n - start) for start in starts]
    own, began = len(starts), time.perf_counter()
    rows: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in programs}
    for round_ in range(max(own, _ROUNDS)):
        if round_ >= own and time.perf_counter() - began > seconds:
            break
        part = samples.part(sampler.interface, starts[round_ % own], sizes[round_ % own])
        done, total = len(programs) * round_, len(programs) * max(own, _ROUNDS)
        tell = partial(_tell, report, done, total)
        _round(sampler, programs, part, round_, rows, work, tell)
    squares = {
        name: np.concatenate([np.asarray(values) for _, values in parts[:own]])
        for name, parts in rows.items()
    }
    kept = [name for name in rows if np.isfinite(squares[name]).all()]
    timed = [index for index in range(len(rows[FULL])) if sizes[index % own] == sizes[0]]
    spent = np.array([[rows[name][index][0] for index in timed] for name in kept])
    times = steadied(spent)
    times /= np.median(times[kept.index(FULL)])
    return {
        name: Measured(spent[index], times[index], squares[name]) for index, name in enumerate(kept)
    }


def _tell(report: Callable[[int, int], Any], done: int, total: int, index: int) -> None:
    report(done + index, total)


def steadied(seconds: Floats) -> Floats:
    """Seconds of each program and round, without what slowed a round as a whole.

    Each round took a factor more or less than usual: the median over all programs. Full
    depth alone would tell that less well.

    Args:
        seconds: [programs, rounds].
    """
    usual = np.median(seconds, axis=1, keepdims=True)
    made: Floats = seconds / np.median(seconds / usual, axis=0)
    return made


def _round(
    sampler: Sampler,
    programs: Mapping[str, Program],
    part: SampleRequest,
    round_: int,
    rows: dict[str, list[tuple[float, list[float]]]],
    work: Work,
    report: Callable[[int], Any],
) -> None:
    """One batch of all programs; full depth first, the others in another order each round."""
    names = [name for name in programs if name != FULL]
    names = [FULL, *np.random.default_rng(round_).permutation(names).tolist()]
    keys = {name: f"held out {round_} {part.n} {_key(programs[name])}" for name in names}
    right = None
    for index, name in enumerate(names):
        check()
        report(index)
        known = work.get(keys[name])
        if known is None and right is None and name != FULL:  # after an interruption
            (right,) = sampler.sample_requests([part], solver=programs[FULL])
        if known is None:
            seconds, made = _timed(sampler, programs[name], part)
            right = made if name == FULL else right
            squares = np.full(part.n, np.inf)
            if made is not None and right is not None:
                difference = np.subtract(made, right, dtype=np.float64)
                squares = np.square(difference).reshape(part.n, -1).mean(axis=1)
            known = [seconds, squares.tolist()]
            work.put(keys[name], known)
        rows[name].append((known[0], known[1]))


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
