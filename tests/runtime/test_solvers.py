"""DDIM and DDPM against diffusers' schedulers, and against the exact solution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from eecompile.errors import UsageError
from eecompile.runtime.fake import FakeEngine
from eecompile.runtime.interface import Interface, State
from eecompile.runtime.noise import normal_noise
from eecompile.runtime.process import Process
from eecompile.runtime.program import Program
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.solvers import SOLVERS, ddim, ddpm

NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
SHAPE = (2, 4, 4)
COUNT = 3


def network(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Any smooth function of state and timestep."""
    wave = np.sin(3 * x + t.reshape(-1, 1, 1, 1) / 200)
    return (0.7 * wave + 0.3 * x[:, ::-1]).astype(np.float32)


def run(process: Process, solver: Any, steps: int, clip: tuple[float, float] | None) -> np.ndarray:
    interface = Interface(
        name="x", exits=(1,), state=State(shape=SHAPE, range=clip), process=process
    )
    engine = FakeEngine((1,), lambda depth, x, t, conditions: network(x, t))
    return Sampler(engine, interface).sample(COUNT, solver=solver, steps=steps, schedule=1, seed=4)


def run_diffusers(scheduler: Any, steps: int, step: Callable[..., Any]) -> np.ndarray:
    """Diffusers' loop in float64, fed with the noise that the sampler draws."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(steps)
    state = torch.from_numpy(normal_noise(4, range(COUNT), 0, SHAPE)).double()
    for index, t in enumerate(scheduler.timesteps):
        x = state.numpy().astype(np.float32)
        output = torch.from_numpy(network(x, np.full(COUNT, float(t), np.float32))).double()
        noise = torch.from_numpy(normal_noise(4, range(COUNT), index + 1, SHAPE)).double()
        state = step(output, t, state, noise).prev_sample
    return state.numpy()


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 1e-5 * scale


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_ddim_is_that_of_diffusers(
    betas: str, prediction: str, spacing: str, eta: float, clip: tuple[float, float] | None
) -> None:
    process = Process(betas=betas, prediction=prediction)  # type: ignore[arg-type]
    scheduler = DDIMScheduler(
        beta_schedule=NAMES[betas],
        prediction_type=prediction,
        timestep_spacing=spacing,
        clip_sample=clip is not None,
    )

    def step(output: Any, t: Any, state: Any, noise: Any) -> Any:
        return scheduler.step(
            output, t, state, eta=eta, use_clipped_model_output=True, variance_noise=noise
        )

    exact_tables(process, scheduler)
    expected = run_diffusers(scheduler, 20, step)
    solver = partial(ddim, eta=eta, spacing=spacing)
    agree(run(process, solver, 20, clip), expected)


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("steps", "betas"), [(20, "linear"), (250, "scaled_linear")])
def test_ddpm_is_that_of_diffusers(
    steps: int,
    betas: str,
    prediction: str,
    variance: str,
    clip: tuple[float, float] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(betas=betas, prediction=prediction, variance=variance)  # type: ignore[arg-type]
    scheduler = DDPMScheduler(
        beta_schedule=NAMES[betas],
        prediction_type=prediction,
        variance_type=variance,
        clip_sample=clip is not None,
        timestep_spacing="leading",  # with others, diffusers adds noise after the last step
    )
    drawn: list[Any] = []
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: drawn[-1]
    )

    def step(output: Any, t: Any, state: Any, noise: Any) -> Any:
        drawn.append(noise)
        return scheduler.step(output, t, state)

    exact_tables(process, scheduler)
    solver = partial(ddpm, spacing="leading")
    agree(run(process, solver, steps, clip), run_diffusers(scheduler, steps, step))


def exact_tables(process: Process, scheduler: Any) -> None:
    """Let diffusers compute from float64 tables, as the programs do; its own are float32."""
    scheduler.alphas_cumprod = torch.from_numpy(process.alpha_bar())
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)


# Data distributed as N(0, 0.5^2): the best prediction, and where DDIM leads, are known.
SPREAD = 0.5


def gaussian_sampler(process: Process) -> Sampler:
    table = process.alpha_bar()

    def predict(depth: int, x: np.ndarray, t: np.ndarray, conditions: object) -> np.ndarray:
        now = table[t.astype(int)].reshape(-1, 1)
        variance = now * SPREAD**2 + 1 - now
        return np.sqrt(1 - now) / variance * x  # the noise expected, given x

    interface = Interface(name="x", exits=(1,), state=State(shape=(512,)), process=process)
    return Sampler(FakeEngine((1,), predict, max_batch=4096), interface)


def test_ddim_converges_at_first_order() -> None:
    process = Process(timesteps=4000, betas="linear", beta_start=2.5e-5, beta_end=0.005)
    sampler = gaussian_sampler(process)
    start = normal_noise(0, range(2), 0, (512,)).astype(np.float64)
    # The probability flow scales a Gaussian's samples by the ratio of standard deviations.
    last = process.alpha_bar()[-1]
    exact = start * SPREAD / np.sqrt(last * SPREAD**2 + 1 - last)
    errors = [
        np.abs(sampler.sample(2, solver="ddim", steps=steps, schedule=1) - exact).max()
        for steps in (25, 50, 100, 200)
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((orders > 0.8) & (orders < 1.3)), orders


@pytest.mark.parametrize("solver", ["ddpm", partial(ddim, eta=1.0)])
def test_ancestral_sampling_gives_the_data_distribution(solver: Any) -> None:
    sampler = gaussian_sampler(Process(betas="linear"))
    samples = sampler.sample(60, solver=solver, steps=1000, schedule=1).astype(np.float64)
    error = 4 / np.sqrt(2 * samples.size)  # four standard errors of a standard deviation
    assert abs(samples.std() / SPREAD - 1) < error + 0.01  # and the discretisation's bias


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_steps_descend_within_time(name: str, steps: int, spacing: str) -> None:
    program: Program = SOLVERS[name](  # type: ignore[call-arg]
        Process(), steps, lambda t: 1, spacing=spacing
    )
    visited = [step.timestep for step in program.steps]
    assert len(visited) == steps
    assert visited == sorted(set(visited), reverse=True)
    assert 0 <= visited[-1] <= visited[0] < 1000
    assert spacing == "leading" or visited[0] == 999
    assert spacing == "trailing" or steps == 1 or visited[-1] == 0


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    for solver in SOLVERS.values():
        with pytest.raises(UsageError, match="1 to 1000"):
            solver(Process(), steps, lambda t: 1)


def test_an_unknown_spacing_is_refused() -> None:
    with pytest.raises(UsageError, match="'wide'"):
        ddim(Process(), 10, lambda t: 1, spacing="wide")  # type: ignore[arg-type]
