"""UniPC (Zhao et al., arXiv 2302.04867, theorem 3.1; multistep, data prediction, B2).

A predictor, UniP, and a corrector, UniC, which improves a state once the network has been
evaluated there, at no further evaluation.
"""

from __future__ import annotations

import math

import numpy as np

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import (
    Past,
    check_order,
    data_step,
    intervals,
    log_ratios,
    title,
)
from eecompile.programs.tape import ChoiceAt, Tape, Value


def unipc(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    order: int = 2,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """One evaluation per step; deterministic. As diffusers' ``bh2`` with ``predict_x0``.

    Args:
        steps: number of steps, 1 to T; the first and last are of lower order.
        order: of the predictor, 1 to 3; the corrector's is one more.
    """
    check_order(order, (1, 2, 3))
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    past: Past = []
    former: tuple[Value, Past] | None = None  # the state before, and what it was stepped with
    for index, (now, after) in enumerate(intervals(visited)):
        data = tape.keep(tape.evaluate(tape.state, now).data, "data")
        state = tape.state
        if former:
            state = tape.keep(_stepped(*former, now, data), "corrected")
        elif index < steps - 1:
            state = tape.keep(state, "corrected")
        past = [(now, data), *(one for one in past if one[0].alpha)][:order]
        used = past[: min(order, steps - index)]
        tape.advance(_stepped(state, used, after))
        former = state, used
    return tape.finish(title("unipc", grid, {"order": order}))


def _stepped(state: Value, past: Past, after: Point, found: Value | None = None) -> Value:
    """The state at ``after``, from that where ``past``, newest first, was predicted.

    UniP; or UniC, once the data ``found`` at ``after`` is known.
    """
    (now, data), *others = past
    held = data_step(state, now, after, data)
    if not others and found is None:
        return held
    h, places = log_ratios(now, after, [point for point, _ in others])
    if found is not None:
        others, places = [*others, (after, found)], [*places, 1.0]
    weights = [0.5] if len(others) == 1 else _weights(places, h)
    change = Value({})
    for (_, value), place, weight in zip(others, places, weights, strict=True):
        change += (weight / place) * (value - data)
    return held - (after.alpha * math.expm1(-h)) * change


def _weights(places: list[float], h: float) -> list[float]:
    """Weights of the differences, by theorem 3.1 with B(h) = exp(-h) - 1."""
    step, scale = -h, math.expm1(-h)
    phi, wanted = scale / step - 1, []  # step * phi_2 of the paper, then phi_3 and so on
    for power in range(1, len(places) + 1):
        wanted.append(phi * math.factorial(power) / scale)
        phi = phi / step - 1 / math.factorial(power + 1)
    powers = np.vander(np.array(places), increasing=True).T
    return [float(weight) for weight in np.linalg.solve(powers, np.array(wanted))]
