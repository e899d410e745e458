"""DEIS (Zhang and Chen, arXiv 2204.13902, equations 14 and 15; rho-AB in log rho).

Extrapolates the predicted noise by a polynomial in ``ln(sigma / alpha)``, and integrates
that exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from numpy.polynomial import Polynomial

from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import (
    Past,
    check_order,
    first_step,
    intervals,
    order_at,
    remember,
    title,
)
from eecompile.programs.tape import ChoiceAt, Tape, Value


def deis(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    order: int = 2,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """One evaluation a step; deterministic. As diffusers' DEISMultistepScheduler.

    Args:
        steps: number of steps, 1 to T; the first and last are of lower order.
        order: 1 to 3.

    Raises:
        UsageError: ``order``, ``steps`` or ``grid`` is out of range.
    """
    check_order(order, (1, 2, 3))
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)
    past: Past = []
    for index, (now, after) in enumerate(intervals(visited)):
        prediction = tape.evaluate(tape.state, now)
        used = past[: order_at(index, steps, order) - 1]
        state = first_step(prediction, after)
        if used:
            state = _extrapolated(tape.state, after, [(now, prediction.noise), *used])
        past = remember(tape, past, now, prediction.noise, "slope", order - 1)
        tape.advance(state)
    return tape.finish(title("deis", grid, {"order": order}))


def _extrapolated(state: Value, after: Point, past: Past) -> Value:
    """The state at ``after``, from that where ``past``, newest first, was predicted."""
    now = past[0][0]
    places = [math.log(point.ratio / now.ratio) for point, _ in past]
    total = state / now.alpha
    for (_, noise), weight in zip(past, _weights(places, after.ratio / now.ratio), strict=True):
        total += (now.ratio * weight) * noise
    return after.alpha * total


def _weights(places: Sequence[float], end: float) -> list[float]:
    """Integrals over r from 1 to ``end`` of Lagrange's polynomials in ln(r)."""
    found = []
    for index, place in enumerate(places):
        others = [*places[:index], *places[index + 1 :]]
        basis = Polynomial.fromroots(others)
        basis /= basis(place)
        # The integral of p(ln r) is r q(ln r), where q + q' = p: q = p - p' + p'' ...
        inner = basis
        for _ in others:
            inner = basis - inner.deriv()
        found.append(float(end * inner(math.log(end)) - inner(0.0)))
    return found
