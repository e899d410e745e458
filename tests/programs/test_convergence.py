"""Solvers on an exact network: do they converge, and with their order?

The data is a mixture of Gaussians on a line, whose score is known. Programs run in float64,
so that rounding does not hide the order.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from eecompile.programs.choice import Exit
from eecompile.programs.grids import Grid, points
from eecompile.programs.process import Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers import (
    FACTS,
    SOLVERS,
    ddim,
    ddpm,
    deis,
    dpm_solver_2,
    dpm_solver_3,
    dpmpp_3m,
    heun,
    unipc,
)
from tests.programs.interpreter import Array, states

WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([-1.0, 0.4, 1.2])
SPREADS = np.array([0.3, 0.2, 0.25])
START = np.linspace(-2, 2, 9)
EDM = Process(
    family="edm", prediction="sample", sigma_min=0.05, sigma_max=10, timesteps=2000
)  # of which the time is even in the logarithm of sigma
FLOW = Process(family="flow", prediction="flow", timesteps=2000)
DIFFUSION = Process(timesteps=1921, prediction="v_prediction")


def expected_data(x: Array, alpha: float, sigma: float) -> Array:
    """The mean of the data, given the state."""
    variance = (alpha * SPREADS) ** 2 + sigma**2
    apart = x[..., None] - alpha * MEANS
    log = np.log(WEIGHTS) - np.log(variance) / 2 - apart**2 / (2 * variance)
    share = np.exp(log - log.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    data: Array = (share * (MEANS + alpha * SPREADS**2 / variance * apart)).sum(-1)
    return data


def moment(process: Process, timestep: float) -> Point:
    if process.family == "edm":
        return process.at_ratio(math.exp(4 * timestep))
    return process.at(timestep)


def trajectory(program: Program, process: Process) -> list[Array]:
    def network(depth: int, x: Array, t: float) -> Array:
        _, _, alpha, sigma = moment(process, t)
        data = expected_data(x, alpha, sigma)
        noise = (x - alpha * data) / sigma
        return {"sample": data, "flow": noise - data, "v_prediction": alpha * noise - sigma * data}[
            process.prediction
        ]

    return states(program, network, lambda draw: START)


def exact(process: Process, start: Point, end: Point) -> Array:
    """The state at ``end`` that the probability flow leads to."""
    state = process.initial(start) * START
    if not start.alpha:  # along t; from there on the ratio is finite
        middle = process.at(0.9 * process.timesteps)

        def velocity(sigma: float, x: Array) -> Array:
            data = expected_data(x, 1 - sigma, sigma)
            return (x - data) / sigma

        state = integrate(velocity, 1.0, middle.sigma, state)
        start = middle

    def slope(log: float, scaled: Array) -> Array:  # of state / alpha, over ln(sigma / alpha)
        return scaled - expected_data(scaled, 1.0, math.exp(log))

    ends = math.log(start.ratio), math.log(end.ratio)
    return end.alpha * integrate(slope, *ends, state / start.alpha)


def integrate(slope: Any, start: float, end: float, state: Array) -> Array:
    found = solve_ivp(slope, (start, end), state, method="DOP853", rtol=1e-12, atol=1e-13)
    result: Array = found.y[:, -1]
    return result


def errors(
    process: Process, solver: Any, grid: Grid, counts: list[int], *, last: bool = True
) -> Array:
    """Root mean square errors, with these numbers of steps.

    The last moment is the same for all; from there all predict the data once. Without
    ``last``, the error there.
    """
    found = []
    for count in counts:
        visited = points(process, count, grid)
        end = visited[-1]
        expected = exact(process, visited[0], end)
        if last:
            expected = expected_data(expected, end.alpha, end.sigma)
        states = trajectory(solver(process, count, lambda time: Exit(1), grid=grid), process)
        found.append(np.sqrt(np.mean((states[-1 if last else -2] - expected) ** 2)))
    return np.array(found)


def orders(found: Array, counts: list[int]) -> Array:
    ratios = np.array(counts[1:]) / np.array(counts[:-1])
    result: Array = np.log(found[:-1] / found[1:]) / np.log(ratios)
    return result


# Fewest steps; then the order, as last observed and the errors that it leaves.
CASES: dict[str, tuple[Any, int, float]] = {
    "ddim": (SOLVERS["ddim"], 40, 1),
    "euler": (SOLVERS["euler"], 40, 1),
    "heun": (SOLVERS["heun"], 40, 2),
    "dpm-solver-2": (partial(dpm_solver_2, denoise=True), 41, 2),
    "dpm-solver-3": (partial(dpm_solver_3, denoise=True), 40, 3),
    "dpm-solver-2, data": (partial(dpm_solver_2, denoise=True, form="data"), 41, 2),
    "dpm-solver-3, data": (partial(dpm_solver_3, denoise=True, form="data"), 40, 3),
    "dpmpp-2m": (SOLVERS["dpmpp-2m"], 40, 2),
    "dpmpp-3m": (dpmpp_3m, 40, 2),
    "unipc": (unipc, 40, 3),
    "unipc, order 1": (partial(unipc, order=1), 40, 2),
    "deis": (deis, 40, 2),
    "deis, order 1": (partial(deis, order=1), 40, 1),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_solvers_converge_with_their_order(name: str) -> None:
    solver, fewest, order = CASES[name]
    counts = [fewest, 2 * fewest - 1, 4 * fewest - 3, 8 * fewest - 7]
    if name.startswith("dpm-solver-3"):
        counts = [78, 156, 312]  # steps of third order, and one of second before the last
    found = errors(EDM, solver, "logsnr", counts)
    seen = orders(found, counts)
    assert np.all((seen > order - 0.25) & (seen < order + 0.75)), (seen, found)
    if "," not in name:
        assert FACTS[name].order == order


@pytest.mark.parametrize("name", ["dpmpp-3m", "deis", "unipc"])
def test_third_order_is_more_accurate(name: str) -> None:
    # Their first steps are of lower order, whose error is small, but does not shrink so fast.
    higher = {
        "dpmpp-3m": partial(dpmpp_3m, halved=False),
        "deis": partial(deis, order=3),
        "unipc": partial(unipc, order=3),
    }[name]
    counts = [40, 80, 160]
    found = errors(EDM, higher, "logsnr", counts)
    assert np.all(found < 0.5 * errors(EDM, SOLVERS[name], "logsnr", counts))
    assert orders(found, counts)[0] > 2.5


@pytest.mark.parametrize(("name", "least"), [("pndm", 1.8), ("s-pndm", 1.8), ("f-pndm", 1.8)])
def test_pseudo_numerical_methods_converge_with_their_order(name: str, least: float) -> None:
    # Their last step extrapolates too; so the error is that at the last moment.
    counts = [41, 81, 161, 321]
    found = errors(EDM, SOLVERS[name], "linspace", counts, last=False)
    seen = orders(found, counts)
    assert np.all((seen > least) & (seen < 3.5)), (seen, found)
    assert FACTS[name].order == 2


@pytest.mark.parametrize(
    ("name", "order"), [("flow-euler", 1), ("flow-heun", 2), ("deis", 2), ("dpmpp-2m", 2)]
)
def test_solvers_of_flows_converge_with_their_order(name: str, order: int) -> None:
    counts = [81, 161, 321]
    found = errors(FLOW, SOLVERS[name], "linspace", counts)
    seen = orders(found, counts)
    assert np.all((seen > order - 0.3) & (seen < order + 0.5)), (seen, found)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2)])
@pytest.mark.parametrize("grid", ["karras", "logsnr", "linspace"])
def test_solvers_converge_on_a_diffusion(name: str, order: int, grid: Grid) -> None:
    counts = [81, 161, 321]
    found = errors(DIFFUSION, SOLVERS[name], grid, counts)
    seen = orders(found, counts)
    assert np.all((seen > order - 0.2) & (seen < order + 0.3)), (seen, found)


# Data distributed as N(0, 0.5^2): the best prediction keeps all states Gaussian.
SPREAD = 0.5
STOCHASTIC = {
    **{name: SOLVERS[name] for name, facts in FACTS.items() if facts.stochastic},
    "ddim, eta 1": partial(ddim, eta=1.0),
    "heun, churn": partial(heun, churn=40.0),
}


def variance_of(program: Program, process: Process) -> float:
    """The variance of the samples, without sampling: all steps are linear and independent."""

    def network(depth: int, x: Array, t: float) -> Array:
        _, _, alpha, sigma = moment(process, t)
        factor = alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2)
        data = factor * x
        noise = (x - alpha * data) / sigma
        return {"sample": data, "flow": noise - data, "epsilon": noise}[process.prediction]

    # Column i: the part that noise i contributes.
    draws = [0, *(index + 1 for index, step in enumerate(program.steps) if step.reads_noise)]
    place = {draw: index for index, draw in enumerate(draws)}
    found = states(program, network, lambda draw: np.eye(len(draws))[place[draw]])[-1]
    return float(np.sum(found**2))


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
@pytest.mark.parametrize(
    "process",
    [
        Process(),
        Process(family="flow", prediction="flow"),
        Process(family="edm", prediction="sample", sigma_max=20),
    ],
    ids=lambda process: process.family,
)
def test_stochastic_solvers_give_the_distribution_of_the_data(name: str, process: Process) -> None:
    facts = FACTS[name.partition(",")[0]]
    if process.family not in facts.families or name == "lcm":
        pytest.skip("a solver for other processes")
    found = []
    for steps in (100, 400):
        program = STOCHASTIC[name](process, steps, lambda time: Exit(1))
        found.append(abs(math.sqrt(variance_of(program, process)) / SPREAD - 1))
    assert found[1] < 0.02
    assert found[1] < 0.7 * found[0] or found[1] < 1e-3


def test_a_consistency_function_gives_the_data_in_one_step() -> None:
    # LCM's network predicts where the flow ends; for this data, the state scaled.
    process = Process()

    def network(depth: int, x: Array, t: float) -> Array:
        _, _, alpha, sigma = process.at(t)
        end = SPREAD / math.hypot(alpha * SPREAD, sigma) * x
        return (x - alpha * end) / sigma

    def draw_of(draw: int) -> Array:
        return np.eye(4)[draw]

    for steps in (1, 4):
        program = SOLVERS["lcm"](process, steps, lambda time: Exit(1))
        found = states(program, network, draw_of)[-1]
        assert np.sqrt(np.sum(found**2)) == pytest.approx(SPREAD, rel=1e-3)


def test_a_learned_variance_between_its_bounds() -> None:
    process = Process(variance="learned_range")
    program = ddpm(process, 10, lambda time: Exit(1))
    low, high = (
        ddpm(Process(variance=kind), 10, lambda time: Exit(1))  # type: ignore[arg-type]
        for kind in ("fixed_small", "fixed_large")
    )
    for choice, fixed in ((-1.0, low), (1.0, high)):
        learned = states(
            program, lambda d, x, t, c=choice: (x, np.full_like(x, c)), lambda d: START
        )
        plain = states(fixed, lambda d, x, t: x, lambda d: START)
        np.testing.assert_allclose(learned[-1], plain[-1], rtol=1e-12)
