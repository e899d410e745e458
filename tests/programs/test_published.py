"""Solvers and recipes against the samplings that they name, written here from their equations.

The network is exact: the data is a mixture of Gaussians on a line, in float64. Nothing of the
package makes what is expected, but the mixture's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from eecompile.errors import UsageError
from eecompile.programs.choice import Exit
from eecompile.programs.process import Process
from eecompile.programs.solvers import (
    dpm_solver_2,
    dpm_solver_3,
    dpmpp_3m_sde,
    euler_maruyama,
    solver_named,
)
from eecompile.recipe import load_recipe
from tests.programs.interpreter import Array, run
from tests.programs.test_convergence import START, expected_data

EXPORT = Path(__file__).parents[2] / "export"
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def noise_of(draw: int) -> Array:
    return np.random.default_rng(draw).standard_normal(START.shape) if draw else START


def agree(found: Array, expected: Array, tolerance: float) -> None:
    finite = bool(np.isfinite(expected).all())
    assert finite
    assert float(np.abs(found - expected).max()) <= tolerance


def noise_in(x: Array, alpha: float, sigma: float) -> Array:
    """What an exact network predicts."""
    noise: Array = (x - alpha * expected_data(x, alpha, sigma)) / sigma
    return noise


# ------------------------------------------------------ noise schedules, as the authors have them


class Continuous:
    """The variance-preserving SDE with rates from 0.1 to 20 (arXiv 2011.13456, appendix C)."""

    low, high = 0.1, 20.0
    first, last = 1e-4, 1.0

    def alpha(self, t: float) -> float:
        return math.exp(-((self.high - self.low) * t**2 / 4) - self.low * t / 2)

    def lambda_(self, t: float) -> float:
        return math.log(self.alpha(t) / math.sqrt(1 - self.alpha(t) ** 2))

    def time(self, lambda_: float) -> float:  # arXiv 2206.00927, appendix D
        total = 2 * (self.high - self.low) * math.log1p(math.exp(-2 * lambda_))
        return total / (math.sqrt(self.low**2 + total) + self.low) / (self.high - self.low)

    def stamp(self, t: float) -> float:
        return 999 * t


class Table(Continuous):
    """Discrete betas; between timesteps, lambda (or, as the authors, ln(alpha)) is linear."""

    first, last = 1e-3, 1.0

    def __init__(self, betas: Array, *, by_alpha: bool = False, offset: int = 0) -> None:
        self.logs = np.cumsum(np.log(1 - betas)) / 2
        self.lambdas = self.logs - np.log(-np.expm1(2 * self.logs)) / 2
        self.times = np.arange(1, len(betas) + 1) / len(betas)
        self.by_alpha, self.offset = by_alpha, offset

    def alpha(self, t: float) -> float:
        if self.by_alpha:
            return math.exp(np.interp(t, self.times, self.logs))
        return 1 / math.sqrt(1 + math.exp(-2 * np.interp(t, self.times, self.lambdas)))

    def time(self, lambda_: float) -> float:
        return float(np.interp(-lambda_, -self.lambdas, self.times))

    def stamp(self, t: float) -> float:
        return 1000 * t - 1 + self.offset


LINEAR = np.linspace(1e-4, 0.02, 1000)
LATENT = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SCHEDULES: dict[str, tuple[Process, Continuous]] = {
    "linear": (Process(), Table(LINEAR)),
    "scaled_linear": (
        Process(betas="scaled_linear", beta_start=0.00085, beta_end=0.012),
        Table(LATENT),
    ),
    "continuous": (Process(betas="continuous"), Continuous()),
}


def found_by(program: Any, schedule: Continuous) -> Array:
    """The program's sample of the exact network, which knows the time by its own schedule."""

    def network(depth: int, x: Array, stamp: float) -> Array:
        zero, one = schedule.stamp(0.0), schedule.stamp(1.0)
        t = (stamp - zero) / (one - zero)
        alpha = schedule.alpha(t)
        return noise_in(x, alpha, math.sqrt(1 - alpha**2))

    return run(program, network, noise_of)


# --------------------------------------------------------------------------------- DPM-Solver


def dpm_solver_fast(
    schedule: Continuous, orders: Sequence[int], edges: Sequence[float], form: str, uniform: bool
) -> tuple[Array, list[float]]:
    """Arrays at the last of ``edges``, and where the network was evaluated.

    arXiv 2206.00927, appendix D (DPM-Solver-2 and 3 for any r1 and r2); the data form: arXiv
    2211.01095, appendix B. ``uniform``: the inner moments are even in t.
    """
    times = []

    def predicted(x: Array, t: float) -> Array:
        times.append(t)
        alpha = schedule.alpha(t)
        sigma = math.sqrt(1 - alpha**2)
        noise = noise_in(x, alpha, sigma)
        return noise if form == "noise" else (x - sigma * noise) / alpha

    x = START
    for order, s, t in zip(orders, edges[:-1], edges[1:], strict=True):
        start, h = schedule.lambda_(s), schedule.lambda_(t) - schedule.lambda_(s)
        inner = [s + (t - s) * part / order for part in range(1, order)]
        if not uniform:
            inner = [schedule.time(start + h * part / order) for part in range(1, order)]
        ratios = [(schedule.lambda_(u) - start) / h for u in inner]
        sign = 1 if form == "noise" else -1

        def phi(share: float, h: float = h, sign: int = sign) -> float:
            return sign * math.expm1(sign * share * h) / (share * h) - 1

        def crossed(
            u: float, share: float, first: Array, x: Array = x, s: float = s, h: float = h
        ) -> Array:
            alphas = schedule.alpha(s), schedule.alpha(u)
            sigmas = [math.sqrt(1 - alpha**2) for alpha in alphas]
            if form == "noise":
                return alphas[1] / alphas[0] * x - sigmas[1] * math.expm1(share * h) * first
            return sigmas[1] / sigmas[0] * x - alphas[1] * math.expm1(-share * h) * first

        def scale(u: float) -> float:
            return math.sqrt(1 - schedule.alpha(u) ** 2) if form == "noise" else schedule.alpha(u)

        first = predicted(x, s)
        if order == 1:
            x = crossed(t, 1.0, first)
        elif order == 2:
            (r1,) = ratios
            change = predicted(crossed(inner[0], r1, first), inner[0]) - first
            x = crossed(t, 1.0, first) - scale(t) * math.expm1(sign * h) / (2 * r1) * change
        else:
            r1, r2 = ratios
            change = predicted(crossed(inner[0], r1, first), inner[0]) - first
            state = crossed(inner[1], r2, first)
            state = state - scale(inner[1]) * (r2 / r1) * phi(r2) * change
            change = predicted(state, inner[1]) - first
            x = crossed(t, 1.0, first) - scale(t) / r2 * phi(1.0) * change
    return x, times


def fast_orders(evaluations: int) -> list[int]:
    """arXiv 2206.00927, the definition of DPM-Solver-fast."""
    whole = evaluations // 3 + 1
    return {
        0: [3] * (whole - 2) + [2, 1],
        1: [3] * (whole - 1) + [1],
        2: [3] * (whole - 1) + [2],
    }[evaluations % 3]


def fast_logsnr(schedule: Continuous, orders: list[int], form: str) -> tuple[Array, list[float]]:
    ends = schedule.lambda_(schedule.last), schedule.lambda_(schedule.first)
    edges = [schedule.time(each) for each in np.linspace(*ends, len(orders) + 1)]
    edges[0], edges[-1] = schedule.last, schedule.first
    return dpm_solver_fast(schedule, orders, edges, form, uniform=False)


@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize("evaluations", [1, 2, 3, *range(6, 21)])
@pytest.mark.parametrize("betas", sorted(SCHEDULES))
def test_dpm_solver_3_is_dpm_solver_fast(betas: str, evaluations: int, form: Any) -> None:
    process, schedule = SCHEDULES[betas]
    program = dpm_solver_3(process, evaluations, lambda time: Exit(1), form=form)
    orders = fast_orders(evaluations) if evaluations > 2 else [evaluations]
    expected, times = fast_logsnr(schedule, orders, form)
    stamps = [schedule.stamp(time) for time in times]
    np.testing.assert_allclose([step.timestep for step in program.steps], stamps, atol=1e-6)
    agree(found_by(program, schedule), expected, 1e-10)


@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize("evaluations", [2, 6, 7, 10, 13, 20])
def test_dpm_solver_2_is_the_papers(evaluations: int, form: Any) -> None:
    process, schedule = SCHEDULES["scaled_linear"]
    program = dpm_solver_2(process, evaluations, lambda time: Exit(1), form=form)
    orders = [2] * (evaluations // 2) + [1] * (evaluations % 2)
    agree(found_by(program, schedule), fast_logsnr(schedule, orders, form)[0], 1e-10)


@pytest.mark.parametrize("evaluations", [1, 2, 7, 10, 15])
def test_dpm_solver_may_predict_the_data_at_last(evaluations: int) -> None:
    process, schedule = SCHEDULES["linear"]
    program = dpm_solver_3(process, evaluations, lambda time: Exit(1), denoise=True)
    if evaluations > 1:
        left = evaluations - 1
        orders = fast_orders(left) if left > 2 else [left]
        expected, end = fast_logsnr(schedule, orders, "noise")[0], schedule.first
    else:
        expected, end = START, schedule.last
    alpha = schedule.alpha(end)
    agree(
        found_by(program, schedule),
        expected_data(expected, alpha, math.sqrt(1 - alpha**2)),
        1e-10,
    )


@pytest.mark.parametrize(("evaluations", "most"), [(10, 0.05), (20, 0.015)])
def test_dpm_solver_3_is_near_the_exact_solution(evaluations: int, most: float) -> None:
    process, schedule = SCHEDULES["scaled_linear"]
    exact, _ = fast_logsnr(schedule, fast_orders(1000), "noise")
    program = dpm_solver_3(process, evaluations, lambda time: Exit(1))
    agree(found_by(program, schedule), exact, most)


@pytest.mark.parametrize("grid", ["trailing", "uniform", [900.0, 500.0, 100.0]])
def test_grids_that_end_early_want_the_data_predicted(grid: Any) -> None:
    with pytest.raises(UsageError, match="ends before t = 0"):
        dpm_solver_3(Process(), 3, lambda time: Exit(1), grid=grid)
    assert len(dpm_solver_3(Process(), 3, lambda t: Exit(1), grid=grid, denoise=True).steps) == 3


# ---------------------------------------------------------------------- the other samplings


def u_vit_euler_maruyama(steps: int) -> Array:
    """The reverse SDE in equal steps of t from 1 to 1e-3, and to 0 (arXiv 2011.13456, eq. 6)."""
    schedule, x = Continuous(), START
    times = [0.0, *np.linspace(1e-3, 1, steps)]
    for index in range(steps):
        s, t = times[steps - 1 - index], times[steps - index]
        alpha = schedule.alpha(t)
        sigma = math.sqrt(1 - alpha**2)
        beta = 0.1 + t * 19.9
        drift = -beta / 2 * x + beta * noise_in(x, alpha, sigma) / sigma
        x = x - drift * (t - s)
        if s:
            x = x + math.sqrt(beta * (t - s)) * noise_of(index + 1)
    return x


@pytest.mark.parametrize("steps", [5, 10, 50])
def test_euler_maruyama_in_continuous_time_is_that_of_u_vit(steps: int) -> None:
    process, schedule = SCHEDULES["continuous"]
    program = euler_maruyama(process, steps, lambda time: Exit(1))
    agree(found_by(program, schedule), u_vit_euler_maruyama(steps), 1e-11)


def test_a_table_of_betas_is_not_continuous_time() -> None:
    table = euler_maruyama(Process(), 50, lambda time: Exit(1))
    apart = np.abs(found_by(table, SCHEDULES["linear"][1]) - u_vit_euler_maruyama(50)).max()
    assert 1e-3 < apart < 0.1


def k_diffusion_3m_sde(sigmas: Sequence[float], denoised: Callable[[Array, float], Array]) -> Array:
    """DPM-Solver++ (3M) SDE as k-diffusion has it, at eta 1, in its variables."""
    x = noise_of(0) * math.hypot(1, sigmas[0])
    past: list[Array] = []
    spans: list[float] = []
    for index, (now, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        data = denoised(x, now)
        if not after:
            return data
        h = math.log(now / after)
        x = math.exp(-2 * h) * x - math.expm1(-2 * h) * data
        phi_2 = math.expm1(-2 * h) / (2 * h) + 1
        if len(past) == 1:
            x = x + phi_2 * (data - past[0]) * h / spans[0]
        elif past:
            r0, r1 = spans[0] / h, spans[1] / h
            one, two = (data - past[0]) / r0, (past[0] - past[1]) / r1
            bend = (one - two) / (r0 + r1)
            x = x + phi_2 * (one + bend * r0) - (phi_2 / (2 * h) - 0.5) * bend
        x = x + after * math.sqrt(-math.expm1(-2 * h)) * noise_of(index + 1)
        past, spans = [data, *past][:2], [h, *spans][:2]
    raise AssertionError("no steps")


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 20])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_dpmpp_3m_sde_is_that_of_k_diffusion(betas: str, steps: int) -> None:
    process, schedule = SCHEDULES[betas]
    program = dpmpp_3m_sde(process, steps, lambda time: Exit(1))
    times = [(step.timestep + 1) / 1000 for step in program.steps]
    sigmas = [math.exp(-schedule.lambda_(time)) for time in times]
    expected = k_diffusion_3m_sde(sigmas, lambda x, sigma: expected_data(x, 1.0, sigma))
    agree(found_by(program, schedule), expected, 1e-9)


def choice(x: Array) -> Array:
    """What a network chooses between the bounds of its variance."""
    return np.cos(3 * x)


def dit_ddpm(steps: int) -> Array:
    """DiT's p_sample_loop: the respaced process of arXiv 2102.09672, section 4, equation 15."""
    bars = np.cumprod(1 - LINEAR)
    stride = 999 / (steps - 1)
    times = [round(index * stride) for index in range(steps)]
    kept = bars[times]
    former = np.append(1.0, kept[:-1])
    betas = 1 - kept / former
    x = START
    for draw, index in enumerate(reversed(range(steps)), 1):
        noise = noise_in(x, math.sqrt(kept[index]), math.sqrt(1 - kept[index]))
        data = (x - math.sqrt(1 - kept[index]) * noise) / math.sqrt(kept[index])
        rest = 1 - kept[index]
        mean = betas[index] * math.sqrt(former[index]) / rest * data
        mean = mean + (1 - former[index]) * math.sqrt(1 - betas[index]) / rest * x
        if not index:
            return mean
        low = math.log(betas[index] * (1 - former[index]) / rest)
        share = (choice(x) + 1) / 2
        spread = np.exp((share * math.log(betas[index]) + (1 - share) * low) / 2)
        x = mean + spread * noise_of(draw)
    raise AssertionError("no steps")


def with_choice(program: Any) -> Array:
    bars = np.cumprod(1 - LINEAR)

    def network(depth: int, x: Array, t: float) -> tuple[Array, Array]:
        bar = bars[int(t)]
        return noise_in(x, math.sqrt(bar), math.sqrt(1 - bar)), choice(x)

    return run(program, network, noise_of)


def pixart() -> Array:
    """PixArtAlphaPipeline's loop, with its scheduler as it is made by default."""
    scheduler = diffusers.DPMSolverMultistepScheduler()
    table = np.cumprod(1 - LINEAR)
    scheduler.alphas_cumprod = torch.from_numpy(table)  # its own are float32
    scheduler.set_timesteps(20)
    times = [int(t) for t in scheduler.timesteps]
    ratios = np.sqrt((1 - table) / table)
    scheduler.sigmas = torch.from_numpy(np.append(ratios[times], 0.0))
    state = torch.from_numpy(START)
    for t in times:
        noise = noise_in(state.numpy(), math.sqrt(table[t]), math.sqrt(1 - table[t]))
        state = scheduler.step(torch.from_numpy(noise), t, state).prev_sample
    result: Array = state.double().numpy()
    return result


def u_vit_h() -> Array:
    """DPM-Solver-fast of eval_ldm_discrete.py: on the data, in equal steps of t from 1 to 1e-3."""
    schedule = Table(LATENT, by_alpha=True, offset=1)
    orders = fast_orders(50)
    edges = np.linspace(1, 1e-3, 51)[np.cumsum([0, *orders])]
    return dpm_solver_fast(schedule, orders, [*edges], "data", uniform=True)[0]


PUBLISHED: dict[str, tuple[Callable[[], Array], Callable[[Any], Array], float]] = {
    "dit-xl2-256": (lambda: dit_ddpm(250), with_choice, 1e-11),
    "dit-xl2-256-diffusers": (lambda: dit_ddpm(250), with_choice, 1e-11),
    "pixart-alpha-512": (pixart, lambda made: found_by(made, SCHEDULES["linear"][1]), 1e-6),
    "uvit-s4-celeba64": (
        lambda: u_vit_euler_maruyama(1000),
        lambda made: found_by(made, Continuous()),
        1e-11,
    ),
    "uvit-l2-imagenet256": (
        lambda: fast_logsnr(Continuous(), fast_orders(50), "noise")[0],
        lambda made: found_by(made, Continuous()),
        1e-11,
    ),
    "uvit-h2-imagenet256": (u_vit_h, lambda made: found_by(made, Table(LATENT, offset=1)), 5e-6),
}
GUIDANCE = {
    "dit-xl2-256": (4.0, 3),
    "dit-xl2-256-diffusers": (4.0, 3),
    "pixart-alpha-512": (4.5, None),
    "uvit-s4-celeba64": (1.0, None),
    "uvit-l2-imagenet256": (1.4, None),
    "uvit-h2-imagenet256": (1.4, None),
}


def test_every_published_network_is_compared() -> None:
    """Those that scripts/published.py writes are sampled as their own schedulers say elsewhere."""
    pipelines = {
        path.stem.lower() for path in (EXPORT.parent / "scripts" / "published").glob("*.json")
    }
    names = {path.stem for path in EXPORT.glob("*.toml")}
    names -= {name.replace("_", "-") for name in pipelines}
    assert names == {*PUBLISHED, "fashion-dit"} == {*GUIDANCE, "fashion-dit"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_recipes_sample_as_their_authors_do(name: str) -> None:
    expected, follow, tolerance = PUBLISHED[name]
    recipe = load_recipe(EXPORT / f"{name}.toml")
    sampling = recipe.sampling
    clip = recipe.state.range if sampling.clip else None
    assert clip is None
    assert (sampling.guidance, sampling.guided_channels) == GUIDANCE[name]
    solver = solver_named(sampling.solver)
    program = solver(recipe.process, sampling.steps, lambda time: Exit(1), clip=clip)
    agree(follow(program), expected(), tolerance)
