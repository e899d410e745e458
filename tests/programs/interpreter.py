"""Programs in float64, without an engine: the oracle for solvers and for the runtime.

It does what :mod:`eecompile.programs.program` says a program means, a step at a time, and
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile.programs.program import Program, Step, Term

Array = NDArray[np.float64]
Network = Callable[[int, Array, float], Any]
NoiseOf = Callable[[int], Array]


def run(program: Program, network: Network, noise_of: NoiseOf) -> Array:
    """The state after the last step.

    Args:
        program: to run.
        network: the prediction for (depth, x, t), shaped as x (depth 0 where the choice
            is open); or, for a program that reads a learned variance, that and the
            variance's choice, from -1 to 1.
        noise_of: standard normal noise; 0 is the initial one, step i draws i + 1.
    """
    return states(program, network, noise_of)[-1]


def states(program: Program, network: Network, noise_of: NoiseOf) -> list[Array]:
    """The state at first, and after each step."""
    buffers = {"state": program.initial * np.asarray(noise_of(0), np.float64)}
    found = [buffers["state"]]
    made: list[tuple[float, Array]] = []
    for index, step in enumerate(program.steps):
        if step.choice is None or step.choice.evaluates:
            depth = step.choice.blocks if step.choice else 0
            outputs = network(depth, total(step.input, buffers), step.timestep)
            output, *rest = outputs if isinstance(outputs, tuple) else (outputs,)
            made.append((place_of(program, step), np.asarray(output, np.float64)))
        else:
            output = extrapolated(made, place_of(program, step), step.choice.order)
        local = {"output": np.asarray(output, np.float64)}
        if step.reads_noise:
            local["noise"] = np.asarray(noise_of(index + 1), np.float64)
        if step.log_variances is not None:
            low, high = step.log_variances
            share = (rest[0] + 1) / 2
            local["noise"] = local["noise"] * np.exp((share * high + (1 - share) * low) / 2)
        for update in step.updates:
            value = total(update.terms, {**buffers, **local})
            buffers[update.into] = value if update.clip is None else value.clip(*update.clip)
        found.append(buffers["state"])
    return found


def place_of(program: Program, step: Step) -> float:
    """Where a step lies in the variable of forecasts."""
    process = program.process
    if process is None:
        return step.moment
    _, _, alpha, sigma = process.at(step.moment)
    signal = alpha or 2.0**-12  # what stands for none, as in diffusers
    return math.log((signal / sigma) ** 2) / 2 if process.family == "diffusion" else sigma


def extrapolated(made: Sequence[tuple[float, Array]], at: float, order: int) -> Array:
    """The polynomial through the last ``order`` + 1 values at different places, by Neville.

    Args:
        made: places and values, the latest last.
        at: where the polynomial is evaluated.
        order: of the polynomial.
    """
    different: dict[float, Array] = {}
    for where, value in reversed(made):
        if all(abs(where - other) > 1e-7 * max(abs(where), 1e-2) for other in different):
            different[where] = value
    places, values = ([*each][: order + 1] for each in (different.keys(), different.values()))
    for gap in range(1, len(places)):
        for i in range(len(places) - gap):
            one, other = places[i], places[i + gap]
            values[i] = ((at - other) * values[i] - (at - one) * values[i + 1]) / (one - other)
    return values[0]


def total(terms: Sequence[Term], buffers: dict[str, Array]) -> Array:
    """The sum that ``terms`` stand for."""
    return sum((term.coefficient * buffers[term.buffer] for term in terms), np.float64(0))
