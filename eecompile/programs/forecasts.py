"""Which earlier steps a forecast is made of, and by what weights.

What is forecast is taken for a polynomial of a variable that moves with the trajectory, through
its values at the last steps that made it: polynomial extrapolation in Lagrange's form. Forecasts
of predictions by polynomials are TaylorSeer's idea (arXiv 2503.06923), there in the step's index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from eecompile.arrays import Floats
from eecompile.programs.program import Program

Value = TypeVar("Value", float, Floats)
Weights = tuple[tuple[int, float], ...]
"""Indices of earlier steps, the latest first, and the weight of what each made."""


def forecasts(program: Program) -> tuple[Weights, ...]:
    """For each step, the earlier steps that its choice extrapolates from; () for none.

    Weights are float64 and sum to 1. Of several steps at one moment only the latest counts, and
    a moment that is infinitely far away counts not at all: both lower the order.
    """
    places = variables(program)
    found: list[Weights] = []
    for index, step in enumerate(program.steps):
        memory, order = step.chosen.memory, step.chosen.order
        if memory is None:
            found.append(())
            continue
        made = [i for i in range(index) if program.steps[i].chosen.makes(memory)]
        found.append(extrapolation(places, made[::-1], index, order))
    return tuple(found)


def variables(program: Program) -> list[float]:
    """The variable of the polynomials at each step: half the log of the signal-to-noise ratio.

    For flows, whose paths are straight in it, and where the process is not known: the time.
    """
    process = program.process
    if process is None or process.family == "flow":
        return [step.moment for step in program.steps]
    return [process.at(step.moment).half_log_snr for step in program.steps]


def extrapolation(places: Sequence[float], made: Sequence[int], index: int, order: int) -> Weights:
    """The weights with which steps ``made``, the latest first, forecast step ``index``.

    ``places`` holds the variable of every step; see :func:`variables`.
    """
    nodes: list[int] = []
    for each in made:
        apart = all(places[each] != places[node] for node in nodes)
        if not nodes or (apart and math.isfinite(places[each])):
            nodes.append(each)
        if len(nodes) > order:
            break
    if not all(math.isfinite(places[each]) for each in (nodes[0], index)):
        return ((nodes[0], 1.0),)
    weights = lagrange([places[node] for node in nodes], places[index])
    return tuple(zip(nodes, weights, strict=True))


def lagrange(nodes: Sequence[Value], at: float) -> list[Value]:
    """Weights of values at distinct nodes, floats or arrays, for the polynomial's value at ``at``.

    Of one node it is 1.
    """
    return [
        math.prod(
            ((at - other) / (node - other) for place, other in enumerate(nodes) if place != own),
            start=node * 0 + 1.0,
        )
        for own, node in enumerate(nodes)
    ]
