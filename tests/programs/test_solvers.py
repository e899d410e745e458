"""Solvers against diffusers, against second implementations, and against exact solutions."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from eecompile.errors import UsageError
from eecompile.programs.choice import Exit
from eecompile.programs.grids import points
from eecompile.programs.process import Family, Process
from eecompile.programs.solvers import (
    FACTS,
    SOLVERS,
    ddim,
    ddpm,
    deis,
    dpm_solver_2,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    euler,
    euler_ancestral,
    euler_maruyama,
    f_pndm,
    flow_euler,
    flow_heun,
    heun,
    lcm,
    pndm,
    s_pndm,
    unipc,
)
from tests.programs.interpreter import Array, run, states

# Diffusers hands torch's arrays to NumPy in a way that NumPy 2 warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
SHAPE = (3, 2, 4, 4)
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
PROCESSES: dict[Family, Process] = {
    "diffusion": Process(),
    "flow": Process(family="flow", prediction="flow"),
    "edm": Process(family="edm", prediction="edm"),
}


def network(depth: int, x: Array, t: float) -> Array:
    """Any smooth function of state and timestep."""
    return 0.6 * np.sin(2 * x + t / 200) + 0.3 * x[:, ::-1]


def noise_of(draw: int) -> Array:
    return np.random.default_rng(draw).standard_normal(SHAPE)


def first_exit(time: float) -> Exit:
    return Exit(1)


def sample(solver: Any, process: Process, steps: int, **options: Any) -> Array:
    return run(solver(process, steps, first_exit, **options), network, noise_of)


def agree(found: Array, expected: Array, tolerance: float = 1e-5) -> None:
    finite = bool(np.isfinite(expected).all())
    assert finite
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert error <= tolerance


# ------------------------------------------------------------------ diffusers, by alpha_bar


def scheduler_of(kind: str, process: Process, **options: Any) -> Any:
    """A scheduler of diffusers with the tables of ``process``, in float64.

    Its own are float32, whose rounding would hide small faults.
    """
    made = getattr(diffusers, kind)(
        num_train_timesteps=process.timesteps, beta_schedule=BETAS[process.betas], **options
    )
    made.alphas_cumprod = torch.from_numpy(process.alpha_bar())
    made.betas = torch.from_numpy(process.beta_table())
    made.one = torch.tensor(1.0, dtype=torch.float64)
    made.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return made


def follow(scheduler: Any, step: Callable[..., Any]) -> Array:
    """Diffusers' loop; ``step`` takes the output, t, the state and the noise."""
    state = torch.from_numpy(noise_of(0))
    for index, t in enumerate(scheduler.timesteps):
        output = torch.from_numpy(network(1, state.numpy(), float(t)))
        noise = torch.from_numpy(noise_of(index + 1))
        state = step(output, t, state, noise).prev_sample
    result: Array = state.numpy()
    return result


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], Callable[..., Any]]:
    """Lets a scheduler's step draw the noise that it is given."""

    def wrapped(module: str, scheduler: Any) -> Callable[..., Any]:
        drawn: list[Any] = []
        monkeypatch.setattr(
            f"diffusers.schedulers.scheduling_{module}.randn_tensor", lambda *_, **__: drawn[-1]
        )

        def step(output: Any, t: Any, state: Any, noise: Any) -> Any:
            drawn.append(noise)
            return scheduler.step(output, t, state)

        return step

    return wrapped


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("grid", ["trailing", "leading"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_ddim_is_that_of_diffusers(
    betas: str, prediction: str, grid: str, eta: float, clip: tuple[float, float] | None
) -> None:
    process = Process(betas=betas, prediction=prediction)  # type: ignore[arg-type]
    scheduler = scheduler_of(
        "DDIMScheduler",
        process,
        prediction_type=prediction,
        timestep_spacing=grid,
        clip_sample=clip is not None,
    )

    def step(output: Any, t: Any, state: Any, noise: Any) -> Any:
        return scheduler.step(
            output, t, state, eta=eta, use_clipped_model_output=True, variance_noise=noise
        )

    scheduler.set_timesteps(20)
    expected = follow(scheduler, step)
    agree(sample(ddim, process, 20, eta=eta, grid=grid, clip=clip), expected)


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("steps", "betas"), [(20, "linear"), (100, "scaled_linear")])
def test_ddpm_is_that_of_diffusers(
    steps: int,
    betas: str,
    prediction: str,
    variance: str,
    clip: tuple[float, float] | None,
    drawn: Any,
) -> None:
    process = Process(betas=betas, prediction=prediction, variance=variance)  # type: ignore[arg-type]
    scheduler = scheduler_of(
        "DDPMScheduler",
        process,
        prediction_type=prediction,
        variance_type=variance,
        clip_sample=clip is not None,
        timestep_spacing="leading",  # with others, diffusers adds noise after the last step
    )
    scheduler.set_timesteps(steps)
    expected = follow(scheduler, drawn("ddpm", scheduler))
    agree(sample(ddpm, process, steps, grid="leading", clip=clip), expected)


def test_a_learned_variance_is_that_of_diffusers(drawn: Any) -> None:
    process = Process(variance="learned_range")
    scheduler = scheduler_of(
        "DDPMScheduler",
        process,
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(20)
    take = drawn("ddpm", scheduler)

    def choice(x: Array) -> Array:
        return np.cos(5 * x)

    def step(output: Any, t: Any, state: Any, noise: Any) -> Any:
        both = torch.cat([output, torch.from_numpy(choice(state.numpy()))], 1)
        return take(both, t, state, noise)

    expected = follow(scheduler, step)
    program = ddpm(process, 20, first_exit, grid="leading")
    found = run(program, lambda d, x, t: (network(d, x, t), choice(x)), noise_of)
    agree(found, expected)


@pytest.mark.parametrize("grid", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [2, 3, 10, 20])
@pytest.mark.parametrize("start", ["linear", "runge_kutta"])
@pytest.mark.parametrize(
    ("betas", "prediction"), [("scaled_linear", "epsilon"), ("cosine", "v_prediction")]
)
def test_pndm_is_that_of_diffusers(
    betas: str, prediction: str, start: str, steps: int, grid: str
) -> None:
    if start == "runge_kutta" and steps < 4:
        pytest.skip("diffusers wants four steps")
    process = Process(betas=betas, prediction=prediction)  # type: ignore[arg-type]
    scheduler = scheduler_of(
        "PNDMScheduler",
        process,
        prediction_type=prediction,
        skip_prk_steps=start == "linear",
        set_alpha_to_one=True,
        timestep_spacing=grid,
    )
    scheduler.set_timesteps(steps)
    # It looks alpha_bar up one stride on; with 3 steps that is where trailing's times are not.
    if 1000 % steps and grid == "trailing":
        pytest.skip("diffusers leaves its own grid")
    expected = follow(scheduler, lambda output, t, state, _: scheduler.step(output, t, state))
    solver = pndm if start == "linear" else f_pndm
    agree(sample(solver, process, steps, grid=grid), expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("steps", [1, 4, 12])
def test_lcm_is_that_of_diffusers(
    steps: int, clip: tuple[float, float] | None, prediction: str, drawn: Any
) -> None:
    process = Process(betas="scaled_linear", prediction=prediction)  # type: ignore[arg-type]
    scheduler = scheduler_of(
        "LCMScheduler", process, prediction_type=prediction, clip_sample=clip is not None
    )
    scheduler.set_timesteps(steps)
    program = lcm(process, steps, first_exit, clip=clip)
    assert [step.timestep for step in program.steps] == scheduler.timesteps.tolist()
    agree(run(program, network, noise_of), follow(scheduler, drawn("lcm", scheduler)))


def test_lcm_scales_times_near_the_data_as_diffusers_does(drawn: Any) -> None:
    times = [999, 500, 3, 1, 0]  # where the state counts beside the predicted data
    scheduler = scheduler_of("LCMScheduler", Process(), clip_sample=False)
    scheduler.set_timesteps(timesteps=times)
    expected = follow(scheduler, drawn("lcm", scheduler))
    agree(sample(lcm, Process(), 5, grid=[float(t) for t in times]), expected)


# -------------------------------------------------------------------- diffusers, by sigma


def multistep(
    scheduler: Any, process: Process, times: Sequence[float], final: float = 0.0, **options: Any
) -> Array:
    """Diffusers' loop for a scheduler that goes by sigmas, here those of ``process``."""
    visited = [process.at(time) for time in times]
    flow = process.family == "flow"
    sigmas = [*(point.sigma if flow else point.ratio for point in visited), final]
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.set_begin_index(0)
    state = torch.from_numpy(process.initial(visited[0]) * noise_of(0))
    for index, point in enumerate(visited):
        x = state
        if process.family == "edm":
            x = scheduler.scale_model_input(state, scheduler.timesteps[index])
        output = torch.from_numpy(network(1, x.numpy(), point.timestep))
        if options.get("noisy"):
            extra = {"variance_noise": torch.from_numpy(noise_of(index + 1))}
        else:
            extra = {}
        state = scheduler.step(output, scheduler.timesteps[index], state, **extra).prev_sample
    result: Array = state.double().numpy()
    return result


MULTISTEP = {
    "2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}, dpmpp_2m),
    "3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}, dpmpp_3m),
    "2m-sde": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
        dpmpp_2m_sde,
    ),
    "unipc-1": ("UniPCMultistepScheduler", {"solver_order": 1}, partial(unipc, order=1)),
    "unipc-2": ("UniPCMultistepScheduler", {"solver_order": 2}, unipc),
    "unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}, partial(unipc, order=3)),
    "single-2": (
        "DPMSolverSinglestepScheduler",
        {"solver_order": 2},
        partial(dpm_solver_2, form="data", denoise=True),
    ),
    "deis-1": ("DEISMultistepScheduler", {"solver_order": 1}, partial(deis, order=1)),
    "deis-2": ("DEISMultistepScheduler", {"solver_order": 2}, deis),
    "deis-3": ("DEISMultistepScheduler", {"solver_order": 3}, partial(deis, order=3)),
}


@pytest.mark.parametrize(
    ("grid", "prediction"),
    [
        *(("trailing", prediction) for prediction in PREDICTIONS),
        *((grid, "epsilon") for grid in ("leading", "linspace", "karras", "logsnr")),
    ],
)
@pytest.mark.parametrize("name", sorted(MULTISTEP))
def test_multistep_solvers_are_those_of_diffusers(name: str, grid: Any, prediction: str) -> None:
    kind, options, solver = MULTISTEP[name]
    process = Process(betas="scaled_linear", prediction=prediction)  # type: ignore[arg-type]
    for steps in (1, 2, 3, 12, 14) if grid == "trailing" else (12,):
        scheduler = scheduler_of(kind, process, prediction_type=prediction, **options)
        scheduler.set_timesteps(steps)
        times = [point.time for point in points(process, steps, grid)]
        # Diffusers' DEIS cannot end at sigma 0; close to it, it can.
        final = 1e-9 if "deis" in name else 0.0
        expected = multistep(scheduler, process, times, final, noisy="sde" in name)
        agree(sample(solver, process, steps, grid=times), expected)


@pytest.mark.parametrize("name", [name for name in sorted(MULTISTEP) if "deis" not in name])
def test_long_trajectories_are_those_of_diffusers(name: str) -> None:
    kind, options, solver = MULTISTEP[name]
    process = Process(betas="cosine")
    scheduler = scheduler_of(kind, process, **options)
    scheduler.set_timesteps(20)  # from 15 on, the last but one keeps its order
    times = [point.time for point in points(process, 20, "trailing")]
    expected = multistep(scheduler, process, times, noisy="sde" in name)
    agree(sample(solver, process, 20, grid="trailing"), expected)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_times_as_diffusers_spaces_them_can_be_given(spacing: str) -> None:
    process = Process()
    scheduler = scheduler_of("DPMSolverMultistepScheduler", process, timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    times = [float(t) for t in scheduler.timesteps]
    agree(sample(dpmpp_2m, process, 10, grid=times), multistep(scheduler, process, times))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 12, 13, 14, 15])
def test_dpm_solver_2_is_that_of_diffusers(steps: int, prediction: str) -> None:
    process = Process(betas="scaled_linear", prediction=prediction)  # type: ignore[arg-type]
    with pytest.warns(FutureWarning, match="deprecated"):
        scheduler = scheduler_of(
            "DPMSolverSinglestepScheduler",
            process,
            prediction_type=prediction,
            solver_order=2,
            algorithm_type="dpmsolver",
            final_sigmas_type="sigma_min",
        )
    scheduler.set_timesteps(steps)
    scheduler.order_list[-1] = 1
    times = [point.time for point in points(process, steps, "logsnr")]
    # Diffusers cannot end at sigma 0 with this form; close to it, it can.
    expected = multistep(scheduler, process, times, final=1e-9)
    agree(sample(dpm_solver_2, process, steps, denoise=True, grid=times), expected)


FLOWS = [name for name in sorted(MULTISTEP) if "sde" not in name or name == "2m-sde"]


@pytest.mark.parametrize("name", FLOWS)
def test_multistep_solvers_on_a_flow_are_those_of_diffusers(name: str) -> None:
    kind, options, solver = MULTISTEP[name]
    process = PROCESSES["flow"]
    scheduler = getattr(diffusers, kind)(
        prediction_type="flow_prediction", use_flow_sigmas=True, **options
    )
    scheduler.set_timesteps(12)
    times = [float(t) for t in np.linspace(990, 20, 12)]  # at T, some of diffusers divide by 0
    final = 1e-9 if "deis" in name else 0.0
    expected = multistep(scheduler, process, times, final, noisy="sde" in name)
    agree(sample(solver, process, 12, grid=times), expected)


@pytest.mark.parametrize("name", ["2m", "2m-sde"])
def test_a_flow_may_start_from_pure_noise(name: str) -> None:
    kind, options, solver = MULTISTEP[name]
    process = PROCESSES["flow"]
    scheduler = getattr(diffusers, kind)(
        prediction_type="flow_prediction", use_flow_sigmas=True, **options
    )
    scheduler.set_timesteps(12)
    times = [point.time for point in points(process, 12, "trailing")]
    expected = multistep(scheduler, process, times, noisy="sde" in name)
    agree(sample(solver, process, 12), expected)


@pytest.mark.parametrize("order", [2, 3])
def test_dpmpp_on_edm_is_that_of_diffusers(order: int) -> None:
    process = PROCESSES["edm"]
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(solver_order=order)
    scheduler.set_timesteps(12)
    visited = points(process, 12, "karras")
    np.testing.assert_allclose([p.ratio for p in visited], scheduler.sigmas[:-1], rtol=1e-4)
    np.testing.assert_allclose([p.timestep for p in visited], scheduler.timesteps, atol=1e-4)
    expected = multistep(scheduler, process, [point.time for point in visited])
    agree(sample(SOLVERS[f"dpmpp-{order}m"], process, 12, grid="karras"), expected)


@pytest.mark.parametrize(("grid", "schedule"), [("karras", "karras"), ("linspace", "exponential")])
def test_euler_on_edm_is_that_of_diffusers(grid: Any, schedule: str) -> None:
    process = PROCESSES["edm"]
    scheduler = diffusers.EDMEulerScheduler(sigma_schedule=schedule)
    scheduler.set_timesteps(12)
    visited = points(process, 12, grid)
    np.testing.assert_allclose([p.ratio for p in visited], scheduler.sigmas[:-1], rtol=1e-4)
    expected = multistep(scheduler, process, [point.time for point in visited])
    agree(sample(euler, process, 12, grid=grid), expected)


def by_ratio(scheduler: Any, process: Process, steps: Callable[..., Any], sigmas: Any) -> Array:
    """Diffusers' loop for a scheduler whose state is ``state / alpha``."""
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.set_begin_index(0)
    state = torch.from_numpy(noise_of(0) * math.hypot(1, sigmas[0]))
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(state, t)
        output = torch.from_numpy(network(1, x.numpy(), float(t)))
        state = steps(output, t, state, torch.from_numpy(noise_of(index + 1))).prev_sample
    result: Array = state.double().numpy()
    return result


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("grid", ["trailing", "leading", "linspace", "karras"])
@pytest.mark.parametrize("kind", ["Euler", "EulerAncestral", "Heun"])
def test_euler_and_heun_are_those_of_diffusers(
    kind: str, grid: Any, prediction: str, drawn: Any
) -> None:
    if kind == "EulerAncestral" and (prediction == "sample" or grid == "karras"):
        pytest.skip("diffusers lacks it")
    process = Process(betas="scaled_linear", prediction=prediction)  # type: ignore[arg-type]
    options = {"use_karras_sigmas": True} if grid == "karras" else {"timestep_spacing": grid}
    scheduler = scheduler_of(
        f"{kind}DiscreteScheduler", process, prediction_type=prediction, **options
    )
    scheduler.set_timesteps(10)
    visited = points(process, 10, grid)
    ratios = [point.ratio for point in visited]
    times = [point.time for point in visited]
    if kind == "Heun":
        ratios = [ratios[0], *np.repeat(ratios[1:], 2)]
        times = [times[0], *np.repeat(times[1:], 2)]
    np.testing.assert_allclose(scheduler.sigmas[:-1], ratios, rtol=5e-3)  # it rounds no time
    np.testing.assert_allclose(scheduler.timesteps, times, atol=0.6)
    scheduler.timesteps = torch.tensor(times, dtype=torch.float64)
    module = {"Euler": "euler", "EulerAncestral": "euler_ancestral", "Heun": "heun"}[kind]
    if kind == "EulerAncestral":
        step = drawn("euler_ancestral_discrete", scheduler)
    else:
        step = lambda output, t, state, _: scheduler.step(output, t, state)  # noqa: E731
    expected = by_ratio(scheduler, process, step, [*ratios, 0.0])
    solver = {"euler": euler, "euler_ancestral": euler_ancestral, "heun": heun}[module]
    agree(sample(solver, process, 10, grid=grid), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["Euler", "Heun"])
def test_flow_solvers_are_those_of_diffusers(kind: str, shift: float) -> None:
    process = Process(family="flow", prediction="flow", shift=shift, time_scale=0.5)
    scheduler = getattr(diffusers, f"FlowMatch{kind}DiscreteScheduler")(shift=shift)
    if kind == "Euler":  # as pipelines call it
        scheduler.set_timesteps(sigmas=[1 - index / 10 for index in range(10)])
        grid: Any = "trailing"
    else:
        scheduler.set_timesteps(10)
        grid = [*dict.fromkeys(min(float(t), 1000.0) for t in scheduler.timesteps)]
    times = [point.time for point in points(process, 10, grid)]
    both = times if kind == "Euler" else [times[0], *np.repeat(times[1:], 2)]
    np.testing.assert_allclose(scheduler.timesteps, both, rtol=1e-5)
    scheduler.sigmas = torch.tensor([*both, 0.0], dtype=torch.float64) / 1000
    scheduler.set_begin_index(0)
    state = torch.from_numpy(noise_of(0))
    for time in both:
        output = torch.from_numpy(network(1, state.numpy(), time / 2))
        state = scheduler.step(output, torch.tensor(time), state).prev_sample.double()
    solver = flow_euler if kind == "Euler" else flow_heun
    agree(sample(solver, process, 10, grid=grid), state.numpy())


# ------------------------------------------------------------- a second implementation here


def test_s_pndm_is_the_papers() -> None:
    process, steps = Process(betas="scaled_linear"), 10
    bars = process.alpha_bar()
    times = [900 - 100 * index for index in range(10)]

    def transfer(x: Array, noise: Array, t: int, s: int) -> Array:  # equation 11
        now, after = bars[t], bars[s] if s >= 0 else 1.0
        bottom = np.sqrt(now) * (np.sqrt((1 - after) * now) + np.sqrt((1 - now) * after))
        result: Array = np.sqrt(after / now) * x - (after - now) / bottom * noise
        return result

    x, former = noise_of(0), None
    for t, s in zip(times, [*times[1:], -100], strict=True):
        noise = network(1, x, t)
        if former is None:
            guess = transfer(x, noise, t, s)
            mean = (noise + network(1, guess, s)) / 2
        else:
            mean = (3 * noise - former) / 2
        x, former = transfer(x, mean, t, s), noise
    agree(sample(s_pndm, process, steps, grid="leading"), x, 1e-10)


def test_euler_maruyama_is_the_papers() -> None:
    process = Process()
    bars = process.alpha_bar()
    logs = np.log(bars)
    times = np.round(np.linspace(999, 0, 25)).astype(int)
    x = noise_of(0)
    for index, t in enumerate(times):
        span = t - (times[index + 1] if index < 24 else -1)
        low, high = max(t - 1, 0), min(t + 1, 999)
        beta = (logs[low] - logs[high]) / (high - low)
        score = -network(1, x, float(t)) / np.sqrt(1 - bars[t])
        drift = -beta / 2 * x - beta * score  # equation 6 with f and g of equation 11
        x = x - drift * span
        if index < 24:
            x = x + np.sqrt(beta * span) * noise_of(index + 1)
    agree(sample(euler_maruyama, process, 25), x, 1e-10)


def test_the_rate_of_euler_maruyama_is_that_of_the_betas() -> None:
    # In the limit of many timesteps, beta(t) times a timestep's span is the table's beta.
    process = Process(timesteps=1000)
    rates = np.gradient(-np.log(process.alpha_bar()))
    np.testing.assert_allclose(rates[1:-1], process.beta_table()[1:-1], rtol=0.12, atol=2e-5)


def test_heun_with_churn_is_the_papers() -> None:
    process, steps = PROCESSES["edm"], 8
    options: dict[str, Any] = {"churn": 10.0, "churn_range": (0.05, 5.0), "churn_scale": 1.003}
    ramp = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps)
    sigmas = [*(ramp**7), 0.0]

    def denoised(x: Array, sigma: float) -> Array:  # table 1, with sigma_data 0.5
        total = np.hypot(sigma, 0.5)
        output = network(1, x / total, np.log(sigma) / 4)
        result: Array = 0.25 / total**2 * x + sigma * 0.5 / total * output
        return result

    draws = [
        index
        for index, step in enumerate(heun(process, steps, first_exit, **options).steps)
        if step.reads_noise
    ]
    assert len(draws) == sum(0.05 <= sigma <= 5 for sigma in sigmas[1:])
    x, used = 80 * noise_of(0), iter(draws)
    for index in range(steps):  # algorithm 2
        sigma, after = sigmas[index], sigmas[index + 1]
        hat = sigma
        if 0.05 <= sigma <= 5:
            hat = sigma * (1 + min(10 / steps, np.sqrt(2) - 1))
            x = x + np.sqrt(hat**2 - sigma**2) * 1.003 * noise_of(next(used) + 1)
        slope = (x - denoised(x, hat)) / hat
        guess = x + (after - hat) * slope
        if after:
            slope = (slope + (guess - denoised(guess, after)) / after) / 2
            guess = x + (after - hat) * slope
        x = guess
    agree(sample(heun, process, steps, **options), x, 1e-9)


@pytest.mark.parametrize("family", ["diffusion", "flow", "edm"])
def test_methods_that_are_the_same_give_the_same(family: Family) -> None:
    process = PROCESSES[family]
    straight = sample(ddim, process, 10)
    for solver in (euler, partial(deis, order=1)):
        agree(sample(solver, process, 10), straight, 1e-9)
    noisy = sample(ddpm, process, 10)
    for solver in (partial(ddim, eta=1.0), euler_ancestral):
        agree(sample(solver, process, 10), noisy, 1e-9)
    agree(sample(euler_ancestral, process, 10, eta=0.0), straight, 1e-9)
    if family == "flow":
        agree(sample(flow_euler, process, 10), straight, 1e-9)


# ------------------------------------------------------------------------ facts and errors


@pytest.mark.parametrize("name", sorted(FACTS))
def test_facts_hold(name: str) -> None:
    facts = FACTS[name]
    for family, process in PROCESSES.items():
        if family not in facts.families:
            with pytest.raises(UsageError, match=f"{family}; expected.*{facts.families[0]}"):
                facts.solver(process, 10, first_exit)
            continue
        for steps in (4, 10, 31):
            program = facts.solver(process, steps, first_exit)
            assert len(program.steps) == facts.evaluations * steps + facts.extra
            assert any(step.reads_noise for step in program.steps) == facts.stochastic
            assert not program.steps[-1].reads_noise
            assert program.process == process
            assert program.solver.startswith(name)


def default_grid(solver: Any) -> str:
    grid = inspect.signature(solver).parameters["grid"].default
    return "its own" if grid is None else f"`{grid}`"


def test_the_documentation_has_every_solver() -> None:
    text = (Path(__file__).parents[2] / "docs" / "solvers.md").read_text("utf-8")
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"`[a-z0-9-]+`", cells[0]) and len(cells) == 9:
            rows[cells[0].strip("`")] = cells
    assert list(rows) == list(FACTS)
    for name, (_, _, source, order, evaluations, noise, families, grid, options) in rows.items():
        facts = FACTS[name]
        extra = f" ({facts.extra:+d})".replace("-", "\N{MINUS SIGN}") if facts.extra else ""
        assert source.startswith(facts.source), name
        assert order == ("none" if facts.order is None else str(facts.order)), name
        assert evaluations == f"{facts.evaluations}{extra}", name
        assert noise == ("yes" if facts.stochastic else "no"), name
        assert families == ", ".join(facts.families), name
        assert grid == default_grid(facts.solver), name
        known = set(inspect.signature(facts.solver).parameters)
        known -= {"process", "steps", "choice_at", "grid", "clip"}
        assert set(re.findall(r"`([a-z_]+)=", options)) == known, name


def test_modules_cite_their_papers() -> None:
    for name, facts in FACTS.items():
        module = inspect.getmodule(facts.solver)
        assert module is not None
        assert module.__doc__ is not None
        assert facts.source in " ".join(module.__doc__.split()), name


@pytest.mark.parametrize("name", sorted(SOLVERS))
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range_are_refused(name: str, steps: int) -> None:
    process = PROCESSES[FACTS[name].families[0]]
    with pytest.raises(UsageError, match=r"expected 1 to (1000|50)"):
        SOLVERS[name](process, steps, first_exit)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(ddim, eta=-0.1), "eta -0.1; expected 0 to 1"),
        (partial(ddim, eta=float("nan")), "eta nan"),
        (partial(euler_ancestral, eta=1.5), "eta 1.5"),
        (partial(unipc, order=4), r"order 4; expected one of \[1, 2, 3\]"),
        (partial(deis, order=0), "order 0"),
        (partial(dpm_solver_2, form="both"), "form 'both'"),
        (partial(heun, churn=-1.0), "churn -1; expected 0 or more"),
        (partial(heun, churn_scale=float("inf")), "churn_scale inf"),
        (partial(heun, churn_range=(2.0, 1.0)), r"churn_range \[2.0, 1.0\]"),
        (partial(lcm, distilled=2000), "distilled 2000; expected 1 to 1000"),
        (partial(lcm, distilled=9), "10 steps; expected 1 to 9"),
        (partial(ddim, grid="wide"), "time grid 'wide'"),
        (partial(ddim, grid=[3.0, 2.0]), "2 times for 10 steps"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make(PROCESSES["diffusion"], 10, first_exit)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_data_is_clipped(name: str) -> None:
    process = PROCESSES[FACTS[name].families[0]]
    free, clipped = (
        run(
            SOLVERS[name](process, 12, first_exit, clip=clip),
            lambda depth, x, t: np.full_like(x, 3.0) if t else x,
            noise_of,
        )
        for clip in (None, (-0.5, 0.5))
    )
    assert np.abs(free).max() > 0.6
    # Solvers that extrapolate may leave the bounds by what they extrapolate.
    assert np.abs(clipped).max() <= 0.9
    assert np.all(np.isfinite(states(SOLVERS[name](process, 1, first_exit), network, noise_of)[-1]))
