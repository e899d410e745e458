"""Processes of published networks that plain betas do not state, against diffusers' own loops."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eecompile.compiler.schedulers.config import process_from_scheduler
from eecompile.compiler.schedulers.program import program_from_scheduler
from eecompile.errors import RecipeError, UsageError
from eecompile.programs.choice import Exit, Forecast
from eecompile.programs.forecasts import forecasts, variable
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers import FACTS, SOLVERS, solver_named
from tests.programs import interpreter

# Diffusers' own.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
Array = NDArray[np.float64]
SHAPE = (2, 3, 4, 4)
COG = Process(
    betas="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    snr_shift=3.0,
    zero_terminal_snr=True,
    prediction="v_prediction",
)
AUDIO = Process(
    family="edm",
    prediction="v_prediction",
    c_noise="atan",
    sigma_min=0.3,
    sigma_max=500.0,
    sigma_data=1.0,
)
LUMINA = Process(
    family="flow", prediction="flow_to_data", time_scale=-1e-3, time_offset=1.0, shift=3.0
)
LISTED = Process(betas=tuple(float(b) for b in np.linspace(1e-3, 0.03, 100)), timesteps=100)
PUBLISHED = {"cogvideox": COG, "stable-audio": AUDIO, "lumina": LUMINA, "listed": LISTED}


def network(x: Array, t: float) -> Array:
    """Any smooth function of state and timestep, which is not linear."""
    return 0.6 * np.tanh(x + np.sin(t * 3)) + 0.3 * np.cos(x[:, ::-1])


def noise_of(draw: int) -> Array:
    return np.random.default_rng(draw).standard_normal(SHAPE)


def loop(scheduler: Any, output_of: Callable[[Array, float], Array], initial: float) -> Array:
    """Diffusers' own loop in float64."""
    state = torch.from_numpy(noise_of(0) * initial)
    for t in scheduler.timesteps:
        x = state
        if hasattr(scheduler, "scale_model_input"):
            x = scheduler.scale_model_input(state, t)
        output = torch.from_numpy(output_of(x.double().numpy(), float(t)))
        state = scheduler.step(output, t, state, return_dict=False)[0].double()
    found: Array = state.numpy()
    return found


def sampled(program: Program) -> Array:
    return interpreter.states(program, lambda depth, x, t: network(x, t), noise_of)[-1]


def agree(found: Array, expected: Array) -> None:
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def native(solver: str, process: Process, steps: int) -> Program:
    return solver_named(solver)(process, steps, lambda time: Exit(1))


COG_CONFIG = {
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}


def test_cogvideox_is_sampled_as_by_its_own_scheduler() -> None:
    scheduler = diffusers.CogVideoXDDIMScheduler(**COG_CONFIG)
    scheduler.set_timesteps(10)
    expected = loop(scheduler, network, 1.0)
    assert process_from_scheduler(scheduler) == COG
    np.testing.assert_allclose(COG.alpha_bar(), scheduler.alphas_cumprod, rtol=1e-9)
    agree(sampled(native("ddim", COG, 10)), expected)
    compiled = program_from_scheduler(scheduler, 10, lambda time: Exit(1), process=COG)
    assert compiled.process == COG
    agree(sampled(compiled), expected)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr_is_that_of_diffusers(kind: str, betas: str) -> None:
    options = {"beta_schedule": betas, "prediction_type": "v_prediction"}
    scheduler = getattr(diffusers, kind)(rescale_betas_zero_snr=True, **options)
    scheduler.set_timesteps(5)
    process = process_from_scheduler(scheduler)
    assert process is not None
    assert process.zero_terminal_snr
    np.testing.assert_allclose(process.alpha_bar(), scheduler.alphas_cumprod, atol=1e-6)
    added = 1 - np.cumprod(1 - process.beta_table())
    np.testing.assert_allclose(added, 1 - process.alpha_bar(), rtol=1e-9)


def test_stable_audio_is_sampled_as_by_its_own_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    name = "diffusers.schedulers.scheduling_cosine_dpmsolver_multistep"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module: Any = __import__(name, fromlist=["CosineDPMSolverMultistepScheduler"])
    scheduler = module.CosineDPMSolverMultistepScheduler()
    scheduler.set_timesteps(20)
    assert process_from_scheduler(scheduler) == AUDIO
    draws = iter(range(1, 21))
    # Its Brownian tree gives every step a normal noise of its own.
    scheduler.noise_sampler = lambda *_: torch.from_numpy(noise_of(next(draws)))
    scheduler.sigmas = scheduler.sigmas.double()
    program = native("dpmpp-2m-sde:grid=logsnr", AUDIO, 20)
    stamps = [step.timestep for step in program.steps]
    np.testing.assert_allclose(stamps, scheduler.timesteps, rtol=1e-5)
    scheduler.timesteps = torch.tensor(stamps, dtype=torch.float64)
    edges = [AUDIO.at(step.moment).sigma for step in program.steps]
    np.testing.assert_allclose(scheduler.sigmas[:-1], edges, rtol=1e-5)
    scheduler.sigmas = torch.tensor([*edges, 0.0], dtype=torch.float64)
    agree(sampled(program), loop(scheduler, network, program.initial))


def test_lumina_is_sampled_as_by_its_pipeline() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(12)

    def reversed_time(x: Array, t: float) -> Array:  # as diffusers' LuminaPipeline calls it
        return -network(x, 1 - t / 1000)

    expected = loop(scheduler, reversed_time, 1.0)
    program = program_from_scheduler(scheduler, 12, lambda time: Exit(1), process=LUMINA)
    agree(sampled(program), expected)
    assert program.steps[0].timestep == pytest.approx(0.0)
    times = [step.moment for step in program.steps]
    for solver in ("flow-euler", "euler", "ddim"):
        made = SOLVERS[solver](LUMINA, 12, lambda time: Exit(1), grid=times)  # type: ignore[call-arg]
        agree(sampled(made), expected)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_runs_on_them_or_says_why_not(solver: str, name: str) -> None:
    process = PUBLISHED[name]
    grids = ("trailing", "linspace", "karras", "logsnr") if solver != "lcm" else ("trailing",)
    for grid in grids:
        if solver.startswith("dpm-solver") and grid == "trailing":
            grid = "logsnr"
        try:
            program = native(f"{solver}:grid={grid}" if solver != "lcm" else solver, process, 10)
        except UsageError as error:
            snr = solver == "euler-maruyama" and "zero_terminal_snr" in error.found
            assert snr or process.family not in FACTS[solver].families
            continue
        sums = [step.input for step in program.steps]
        sums += [update.terms for step in program.steps for update in step.updates]
        assert all(math.isfinite(term.coefficient) for terms in sums for term in terms)
        assert np.isfinite(sampled(program)).all()


def test_forecasts_from_where_all_is_noise_have_finite_weights() -> None:
    program = native("ddim", COG, 9)
    moments = [step.moment for step in program.steps]
    for order in (0, 1, 2):
        chosen = program.with_choices(
            lambda time: Exit(1) if moments.index(time) % 4 < 3 else Forecast(order)  # noqa: B023
        )
        weights = [w for each in forecasts(chosen) for _, w in each]
        assert weights
        assert np.isfinite(weights).all()
    assert variable(COG, program.steps[0]) < variable(COG, program.steps[1])


@pytest.mark.parametrize("time", [0.0, 3.5, 500.0, 997.9, 998.0, 998.3, 998.999, 999.0])
def test_a_moment_is_found_by_its_ratio_up_to_noise_alone(time: float) -> None:
    point = COG.at(time)
    assert point.alpha**2 + point.sigma**2 == pytest.approx(1, abs=1e-12)
    assert COG.at_ratio(point.ratio) == pytest.approx(point, rel=1e-6, abs=1e-9)
    assert COG.at(time + 0.05).ratio > point.ratio or time == 999.0


def test_sigmas_are_found_by_what_the_network_takes() -> None:
    for process in (AUDIO, Process(family="edm", prediction="edm")):
        for time in (0.0, 400.0, 1000.0):
            point = process.at(time)
            assert process.sigma_at(point.timestep) == pytest.approx(point.sigma)
            assert process.at_ratio(point.sigma) == pytest.approx(point, abs=1e-9)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_they_are_read_back_as_they_were_written(name: str) -> None:
    program = native("ddim", PUBLISHED[name], 3)
    assert Program.from_json(program.to_json()) == program


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"zero_terminal_snr": True}, "zero_terminal_snr with prediction epsilon"),
        ({"snr_shift": -1.0}, "snr_shift -1"),
        ({"snr_shift": 2.0, "betas": "continuous"}, "snr_shift with betas 'continuous'"),
        ({"snr_shift": 2.0, "family": "flow", "prediction": "flow"}, "or use shift"),
        ({"zero_terminal_snr": True, "family": "edm", "prediction": "edm"}, "with family edm"),
        ({"betas": (0.1, 0.2)}, "2 process.betas for 1000 timesteps"),
        ({"betas": (0.1, 2.0), "timesteps": 2}, "not between 0 and 1"),
        ({"time_scale": 0.0}, "a time_scale that is not 0"),
    ],
)
def test_figures_that_do_not_fit_are_refused(figures: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Process(**figures)
