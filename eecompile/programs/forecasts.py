"""Which earlier steps a forecast is made of, and by what weights.

What is forecast is taken for a polynomial of a variable that moves with the trajectory, through
its values at the last steps that made it: polynomial extrapolation in Lagrange's form. Forecasts
of predictions by polynomials are TaylorSeer's idea (arXiv 2503.06923), there in the step's index.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from eecompile.arrays import Floats
from eecompile.programs.process import NOISIEST, Process
from eecompile.programs.program import Program, Step

Value = TypeVar("Value", float, Floats)
Weights = tuple[tuple[int, float], ...]
"""Indices of earlier steps, the latest first, and the weight of what each made."""
SAME = 1e-9
"""Places that differ by no more than this, and this share of them, are one."""


def forecasts(program: Program) -> tuple[Weights, ...]:
    """For each step, the earlier steps that its choice extrapolates from; () for none.

    Weights are float64 and sum to 1. Of several steps at one moment only the latest counts: if
    too few moments are left, the order is lower.
    """
    places = [variable(program.process, step) for step in program.steps]
    found: list[Weights] = []
    for index, step in enumerate(program.steps):
        memory, order = step.chosen.memory, step.chosen.order
        if memory is None:
            found.append(())
            continue
        made = (i for i in reversed(range(index)) if program.steps[i].chosen.makes(memory))
        found.append(extrapolation(places, made, order, places[index]))
    return tuple(found)


def variable(process: Process | None, step: Step) -> float:
    """The variable of the polynomials at a step; docs/decisions.md has the figures behind it.

    For diffusion, half the logarithm of the signal-to-noise ratio; for flows and edm, sigma;
    the time where the process is not known.
    """
    if process is None:
        return step.moment
    point = process.at(step.moment)
    if process.family != "diffusion":
        return point.sigma
    return point.half_log_snr if point.alpha else -math.log(NOISIEST)


def extrapolation(places: Sequence[float], made: Iterable[int], order: int, at: float) -> Weights:
    """The steps that a polynomial of an order goes through, and their weights for its value.

    Args:
        places: the variable of every step.
        made: steps that have a value, the latest first.
        order: of the polynomial, where there are enough places that differ.
        at: where it is evaluated.
    """
    nodes: list[int] = []
    for each in made:
        if not any(
            math.isclose(places[each], places[n], rel_tol=SAME, abs_tol=SAME) for n in nodes
        ):
            nodes.append(each)
        if len(nodes) > order:
            break
    return tuple(zip(nodes, lagrange([places[node] for node in nodes], at), strict=True))


def lagrange(nodes: Sequence[Value], at: float) -> list[Value]:
    """Weights of the values at distinct nodes, floats or arrays, for the polynomial's at ``at``."""
    return [
        math.prod(
            ((at - other) / (node - other) for place, other in enumerate(nodes) if place != own),
            start=0.0 * node + 1.0,
        )
        for own, node in enumerate(nodes)
    ]
