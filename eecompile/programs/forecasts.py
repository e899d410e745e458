"""Which earlier steps a forecast is made of, and by what weights.

What is forecast is taken for a polynomial of a variable that moves with the trajectory, through
its values at the last steps that made it: polynomial extrapolation in Lagrange's form. Forecasts
of predictions by polynomials are TaylorSeer's idea (arXiv 2503.06923), there in the step's index.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from eecompile.programs.process import Process
from eecompile.programs.program import Program, Step

Weights = tuple[tuple[int, float], ...]
"""Indices of earlier steps, the latest first, and the weight of what each made."""
_SAME = 1e-9  # two moments that rounding alone tells apart are one


def forecasts(program: Program) -> tuple[Weights, ...]:
    """For each step, the earlier steps that its choice extrapolates from; () for none.

    Weights are float64 and sum to 1. Of several steps at one moment only the latest counts, and
    a moment that is infinitely far away counts not at all: both lower the order.
    """
    places = [variable(program.process, step) for step in program.steps]
    found: list[Weights] = []
    for index, step in enumerate(program.steps):
        memory, order = step.chosen.memory, step.chosen.order
        if memory is None:
            found.append(())
            continue
        made = (i for i in reversed(range(index)) if program.steps[i].chosen.makes(memory))
        nodes = _nodes(places, made, order)
        at = places[index]
        if not all(map(math.isfinite, (at, *(places[node] for node in nodes)))):
            nodes = nodes[:1]
        found.append(_weights(places, nodes, at))
    return tuple(found)


def variable(process: Process | None, step: Step) -> float:
    """The variable of the polynomials: half the logarithm of the signal-to-noise ratio.

    For flows, whose paths are straight in it, and where the process is not known: the time.
    """
    if process is None or process.family == "flow":
        return step.moment
    return process.at(step.moment).half_log_snr


def _nodes(places: Sequence[float], made: Iterable[int], order: int) -> list[int]:
    """Which of the steps ``made``, the latest first, a polynomial of an order goes through."""
    nodes: list[int] = []
    for each in made:
        apart = all(not math.isclose(places[each], places[n], abs_tol=_SAME) for n in nodes)
        if not nodes or (apart and math.isfinite(places[each])):
            nodes.append(each)
        if len(nodes) > order:
            break
    return nodes


def _weights(places: Sequence[float], nodes: Sequence[int], at: float) -> Weights:
    """The weights with which what steps ``nodes`` made is extrapolated to ``at``."""
    return tuple(
        (
            node,
            math.prod(
                (at - places[other]) / (places[node] - places[other])
                for other in nodes
                if other != node
            ),
        )
        for node in nodes
    )
