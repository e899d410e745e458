"""How many rows a batch should have: a larger one makes everybody in it wait longer."""

from __future__ import annotations

import time

import numpy as np

from eecompile.runtime.sampler import Sampler

_WORSE = 0.025  # than the best seconds a row: too small a batch costs more than too large a one
_ROUNDS = 3
_SECONDS = 5.0  # that measuring may take, about


def rows_that_pay(sampler: Sampler) -> int:
    """Rows of an evaluation beyond which larger batches hardly save time, for ``max_batch``.

    Measured with the deepest exit, for a few seconds: the smallest power of two with which a row
    takes at most 2.5 % longer than with the best. On a CPU these are few; a batch of all
    that wait would then only end everybody's requests together. Where engines run whole
    trajectories, it is the engine's largest batch.
    """
    engine = sampler.engine
    largest, started = engine.max_batch, time.perf_counter()
    if engine.runs_trajectories:
        return largest
    each: dict[int, float] = {}
    rows = 1
    while time.perf_counter() < started + _SECONDS:
        each[rows] = _seconds(sampler, rows) / rows
        if rows == largest:
            break
        rows = min(2 * rows, largest)
    best = min(each.values())
    return min(rows for rows, seconds in each.items() if seconds <= (1 + _WORSE) * best)


def _seconds(sampler: Sampler, rows: int) -> float:
    """Of an evaluation of the deepest exit."""
    interface, engine = sampler.interface, sampler.engine
    member = next(iter(engine.members.values()), engine)
    x = np.zeros((rows, *interface.state.shape), np.float32)
    t = np.full(rows, interface.process.timesteps / 2, np.float32)
    conditions = {
        name: np.full((rows, *spec.shape), spec.range[0] if spec.range else 0, spec.dtype)
        for name, spec in interface.conditions.items()
    }
    taken = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        member.evaluate(interface.exits[-1], x, t, conditions)
        taken.append(time.perf_counter() - started)
    return min(taken)
