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
from eecompile.programs.solvers._common import Past, check_order, first_step, multistep, title
from eecompile.programs.tape import ChoiceAt, Prediction, Tape, Value


def deis(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    order: int = 2,
    grid: Grid = "trailing",
    clip: tuple[float, float] | None = None,
) -> Program:
    """One evaluation per step; deterministic. As diffusers' DEISMultistepScheduler.

    Args:
        steps: number of steps, 1 to T; the first and last are of lower order.
        order: 1 to 3.
    """
    check_order(order, (1, 2, 3))
    visited = points(process, steps, grid)
    tape = Tape(process, choice_at, visited[0], clip)

    def step(now: Point, after: Point, prediction: Prediction, past: Past) -> Value:
        if not past:
            return first_step(prediction, after)
        return _extrapolated(tape.state, after, [(now, prediction.noise), *past])

    multistep(tape, visited, order, "slope", lambda prediction: prediction.noise, step)
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
