"""Every scheduler of diffusers: its program does what its own loop does, or it is refused."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from numpy.typing import NDArray

from eecompile.compiler.schedulers.config import (
    check_process,
    process_from_scheduler,
    scheduler_from_config,
)
from eecompile.compiler.schedulers.program import program_from_scheduler
from eecompile.errors import UsageError
from eecompile.programs.choice import Choice, Exit, Forecast
from eecompile.programs.interface import Interface, State
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.trajectory.noise import normal_noise
from tests.programs import interpreter

pytestmark = [  # diffusers' own
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
Array = NDArray[np.float64]
SHAPE = (2, 3, 4, 4)
FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
VP: dict[str, Any] = {"prediction_type": "v_prediction"}
TO_MIN: dict[str, Any] = {"final_sigmas_type": "sigma_min"}

CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("CMStochasticIterativeScheduler", {"clip_denoised": False}),
    ("CogVideoXDDIMScheduler", {"clip_sample": False}),
    ("CogVideoXDPMScheduler", {"rescale_betas_zero_snr": True, "clip_sample": False, **VP}),
    ("CogVideoXDPMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    ("DDIMParallelScheduler", {"clip_sample": False}),
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing", **VP}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample", "steps_offset": 1}),
    ("DDPMParallelScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    ("DDPMScheduler", {"clip_sample": False, "beta_schedule": "squaredcos_cap_v2", **VP}),
    ("DEISMultistepScheduler", {}),
    ("DEISMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", **TO_MIN}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_type": "heun", **VP}),
    ("DPMSolverMultistepScheduler", {"flow_shift": 3.0, **FLOW}),
    ("DPMSolverMultistepScheduler", {"variance_type": "learned_range"}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True, "solver_order": 3}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("EDMEulerScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "sigma_min": 0.002, **VP}),
    ("FlowMapEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("FlowMatchLCMScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True, **VP}),
    ("IPNDMScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("LCMScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("LTXEulerAncestralRFScheduler", {}),
    ("MiniMaxH3Scheduler", {}),
    ("PNDMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("SASolverScheduler", {}),
    ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4, **VP}),
    ("TCDScheduler", {}),
    ("UnCLIPScheduler", {"clip_sample": False}),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1", **TO_MIN}),
    ("UniPCMultistepScheduler", FLOW),
]

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "AmusedScheduler": ({"mask_token_id": 0}, "not normal noise"),
    "BlockRefinementScheduler": ({}, "fails in step"),
    "CosineDPMSolverMultistepScheduler": ({}, "Brownian tree"),
    "DDIMInverseScheduler": ({}, "from data to noise"),
    "DDPMWuerstchenScheduler": ({}, "fails in step"),
    "DPMSolverMultistepInverseScheduler": ({}, "from data to noise"),
    "DPMSolverSDEScheduler": ({}, "Brownian tree"),
    "DiscreteDDIMScheduler": ({}, "not normal noise"),
    "EntropyBoundScheduler": ({}, "not normal noise"),
    "HeliosDMDScheduler": ({}, "refuses 10 steps"),
    "HeliosScheduler": ({}, "refuses 10 steps"),
    "KarrasVeScheduler": ({}, "more than state and output (sigma_hat"),
    "PiflowScheduler": ({}, "fails in step"),
    "RFD4ProteinaScheduler": (
        {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
        "more than state and output (emit_mask)",
    ),
    "RePaintScheduler": ({}, "more than state and output (original_image, mask)"),
    "SCMScheduler": ({}, "refuses 10 steps"),
    "ScoreSdeVeScheduler": ({}, "has no step"),
    "ScoreSdeVpScheduler": ({}, "has no step"),
    "VQDiffusionScheduler": ({"num_vec_classes": 8}, "fails in step"),
}


@pytest.fixture
def classes() -> Iterator[dict[str, Any]]:
    """Every scheduler class of the installed diffusers, those for an absent torchsde too."""
    absent = "torchsde" not in sys.modules
    if absent:
        try:
            importlib.import_module("torchsde")
        except ModuleNotFoundError:
            sys.modules["torchsde"] = ModuleType("torchsde")
    yield dict(_classes())
    if getattr(sys.modules["torchsde"], "__file__", None) is None:
        del sys.modules["torchsde"]


def _classes() -> Iterator[tuple[str, Any]]:
    package = importlib.import_module("diffusers.schedulers")
    for module in pkgutil.walk_packages(package.__path__, "diffusers.schedulers."):
        if "flax" in module.name:
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            own = inspect.isclass(kind) and kind.__module__ == module.name
            if own and issubclass(kind, SchedulerMixin) and kind is not SchedulerMixin:
                yield name, kind


def network(x: Array, t: float) -> Array:
    """Any smooth function of state and timestep, which is not linear."""
    return 0.6 * np.tanh(x + np.sin(t / 200)) + 0.3 * np.cos(x[:, ::-1])


def draws(seed: int) -> Callable[[], Array]:
    generator = np.random.default_rng(seed)
    return lambda: generator.standard_normal(SHAPE)


def own_loop(
    scheduler: Any, options: dict[str, float], patch: pytest.MonkeyPatch
) -> tuple[list[Array], list[list[Array]]]:
    """Diffusers' loop in float64: the states, and the noises that each step drew."""
    normal = draws(1)
    drawn: list[Array] = []

    def noise(*_: Any, **__: Any) -> torch.Tensor:
        drawn.append(normal())
        return torch.from_numpy(drawn[-1])

    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        patch.setattr(module, "randn_tensor", noise)
    patch.setattr(torch, "randn_like", noise)
    start = draws(0)() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    state = torch.from_numpy(start)
    states, noises = [], []
    former: list[Any] = [None, None]  # as CogVideoXPipeline hands them on
    looks_back = "timestep_back" in inspect.signature(scheduler.step).parameters
    for t in scheduler.timesteps:
        x = state
        if hasattr(scheduler, "scale_model_input"):
            x = scheduler.scale_model_input(state, t)
        output = torch.from_numpy(network(x.double().numpy(), float(t)))
        drawn.clear()
        if looks_back:
            state, data = scheduler.step(output, former[0], int(t), former[1], state)
            former = [data, int(t)]
            del drawn[:-1]  # it draws twice, and uses the last
        else:
            state = scheduler.step(output, t, state, **options).prev_sample.double()
        states.append(state.numpy().copy())
        noises.append([*drawn])
    patch.undo()
    return states, noises


def interpreted(program: Program, noises: list[list[Array]]) -> list[Array]:
    """The states of a program, in float64."""

    def noise_of(index: int) -> Array:
        return noises[index - 1][0] if index else draws(0)()

    return interpreter.states(program, lambda depth, x, t: network(x, t), noise_of)[1:]


def agree(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


def made(name: str, options: dict[str, Any]) -> Any:
    kind = getattr(diffusers, name, None)
    if kind is None:
        pytest.skip(f"this diffusers has no {name}")
    return kind(**options)


def terms(program: Program) -> int:
    """The most terms of any sum."""
    return max(len(update.terms) for step in program.steps for update in step.updates)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS)
def test_a_program_does_what_the_scheduler_does(
    name: str, options: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = made(name, options)
    program = program_from_scheduler(scheduler, steps)
    scheduler.set_timesteps(steps)
    states, noises = own_loop(scheduler, {}, monkeypatch)
    agree(interpreted(program, noises), states)
    assert terms(program) <= 8
    times = [step.moment for step in program.steps]
    total = scheduler.config.get("num_train_timesteps", 1000)
    assert all(0 <= time <= total for time in times)
    assert times[0] > 0.8 * total
    falling = [after <= before + 1e-9 for before, after in pairwise(times)]
    assert all(falling) or name.startswith("KDPM2")  # whose steps go there and back
    assert set(program.choices) == {None}
    assert Program.from_json(program.to_json()) == program


def test_the_configurations_are_many() -> None:
    assert len(CONFIGURATIONS) >= 26
    assert len({name for name, _ in CONFIGURATIONS}) >= 20


def test_every_class_compiles_or_is_refused_with_its_reason(classes: dict[str, Any]) -> None:
    compiled = {name for name, _ in CONFIGURATIONS}
    for name, kind in classes.items():
        if name in compiled:
            continue
        if name in REFUSED:
            options, reason = REFUSED[name]
            with pytest.raises(UsageError) as caught:
                program_from_scheduler(kind(**options), 10)
            assert reason in str(caught.value), name
            assert name in str(caught.value)
            continue
        with suppress(UsageError):  # newer than this list: it compiles, or a sentence refuses it
            program_from_scheduler(kind(), 10)
    assert len(compiled & set(classes)) >= 20


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "SASolverScheduler"])
def test_the_number_of_terms_and_buffers_does_not_grow_with_the_steps(name: str) -> None:
    scheduler = made(name, {})
    few, many = (program_from_scheduler(scheduler, steps) for steps in (10, 30))
    assert terms(few) == terms(many) <= 6
    assert len(few.buffers) == len(many.buffers) <= 7


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("DDIMScheduler", {}, "clip_sample=False"),
        ("DDIMScheduler", {"clip_sample_range": 100.0}, "clip_sample=False"),
        ("DDPMScheduler", {}, "native solver"),
        ("DDIMScheduler", {"clip_sample": False, "thresholding": True}, "thresholding=False"),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, "thresholding=False"),
        ("UniPCMultistepScheduler", {"thresholding": True}, "thresholding=False"),
        ("CMStochasticIterativeScheduler", {}, "clip_denoised=False"),
        ("UnCLIPScheduler", {}, "clip_sample=False"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "native solver ddpm"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "mu"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "infinity or NaN"),
    ],
)
def test_what_is_not_linear_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        program_from_scheduler(made(name, options), 10)
    assert words in str(caught.value)


@pytest.mark.parametrize("steps", [0, -3, 2000])
def test_steps_that_the_scheduler_refuses(steps: int) -> None:
    words = "LCMScheduler, which refuses 2000 steps" if steps > 0 else f"{steps} steps"
    with pytest.raises(UsageError, match=words):
        program_from_scheduler(made("LCMScheduler", {}), steps)


def test_the_scheduler_and_torch_are_left_as_they_were() -> None:
    scheduler = made("UniPCMultistepScheduler", {})
    scheduler.set_timesteps(7)
    before = copy.deepcopy(vars(scheduler))
    programs = [program_from_scheduler(scheduler, 10) for _ in range(2)]
    assert programs[0] == programs[1]
    assert vars(scheduler).keys() == before.keys()
    for name, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
        elif not isinstance(value, np.ndarray):
            assert value == before[name]
    assert len(scheduler.timesteps) == 7
    torch.manual_seed(0)
    assert torch.randn(100).unique().numel() > 90


def test_several_threads_may_compile_at_once() -> None:
    scheduler = made("EulerAncestralDiscreteScheduler", {})
    with ThreadPoolExecutor(4) as pool:
        made_ = [*pool.map(lambda _: program_from_scheduler(scheduler, 10), range(8))]
    assert all(program == made_[0] for program in made_)


def test_timesteps_that_the_caller_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = made("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True})
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.2], mu=0.8)
    program = program_from_scheduler(scheduler, None)
    assert [step.timestep for step in program.steps] == scheduler.timesteps.tolist()
    states, noises = own_loop(scheduler, {}, monkeypatch)
    agree(interpreted(program, noises), states)
    with pytest.raises(UsageError, match="has taken steps already"):
        program_from_scheduler(scheduler, None)


@pytest.mark.parametrize(
    ("name", "options", "config"),
    [
        ("DDIMScheduler", {"eta": 0.7}, {"clip_sample": False}),
        ("TCDScheduler", {"eta": 1.0}, {}),
        ("EulerDiscreteScheduler", {"s_churn": 3.0, "s_noise": 1.01}, {}),
        ("LMSDiscreteScheduler", {"order": 2}, {}),
    ],
)
def test_options_of_step(
    name: str,
    options: dict[str, float],
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = made(name, config)
    program = program_from_scheduler(scheduler, 10, options=options)
    scheduler.set_timesteps(10)
    states, noises = own_loop(scheduler, options, monkeypatch)
    agree(interpreted(program, noises), states)
    for option, value in options.items():
        assert f"{option}={value}" in program.solver
    with pytest.raises(UsageError, match="takes no speed"):
        program_from_scheduler(scheduler, 10, options={"speed": 1})


def test_solver_names_its_options_and_not_the_networks() -> None:
    options = {"use_karras_sigmas": True, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    program = program_from_scheduler(made("DPMSolverMultistepScheduler", options), 5)
    assert program.solver == "DPMSolverMultistep(use_karras_sigmas=True)"


class Scripted:
    """A scheduler whose step is what a test says."""

    def __init__(self, step: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.config: dict[str, Any] = {}
        self.kept: list[Any] = []
        self.timesteps = torch.tensor([900.0, 500.0, 100.0])
        self._step = step

    def set_timesteps(self, steps: int) -> None:
        pass

    def step(self, model_output: Any, timestep: Any, sample: Any) -> Any:
        return SimpleNamespace(prev_sample=self._step(self, model_output, sample))


def scripted(step: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> Program:
    return program_from_scheduler(Scripted(step), None)


def test_noises_in_a_fixed_sum_are_one_noise() -> None:
    program = scripted(
        lambda self, x, state: state + 0.3 * torch.randn_like(state) - 0.4 * torch.randn(x.shape)
    )
    assert [{term.buffer for term in s.updates[-1].terms} for s in program.steps] == [
        {"state", "noise"}
    ] * 3
    sizes = [t.coefficient for s in program.steps for t in s.updates[-1].terms[1:]]
    np.testing.assert_allclose(np.abs(sizes), 0.5, rtol=1e-12)


def test_noises_that_occur_apart_are_refused() -> None:
    def step(self: Scripted, output: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        former = self.kept[-1] if self.kept else 0
        self.kept = [torch.randn_like(state)]
        return state + former + torch.randn_like(state)

    with pytest.raises(UsageError, match="two independent noises in step 0"):
        scripted(step)


def test_noise_that_is_kept_and_used_again() -> None:
    def step(self: Scripted, output: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        former = self.kept[-1] if self.kept else 0
        self.kept = [torch.randn_like(state)]
        return state + output + 2 * former

    program = scripted(step)
    assert program.buffers == ("state", "kept")
    assert not program.steps[-1].reads_noise  # its noise would never be used


def test_kept_tensors_may_be_written_into_and_shared() -> None:
    def step(self: Scripted, output: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        if not self.kept:
            self.kept = [torch.zeros_like(state)] * 2  # one tensor, twice
        self.kept[0] += output
        result = state + self.kept[1]
        self.unused = 3 * output
        return result

    program = scripted(step)
    assert program.buffers == ("state", "kept")
    sums = [dict(step.updates[-1].terms and _pairs(step.updates[-1])) for step in program.steps]
    assert sums[-1] == {"state": 1.0, "output": 1.0, "kept": 1.0}


def _pairs(update: Any) -> list[tuple[str, float]]:
    return [(term.buffer, term.coefficient) for term in update.terms]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda self, x, state: state + x + 1, "adds a constant"),
        (lambda self, x, state: state + x.abs(), "not linear"),
        (lambda self, x, state: state + x * (x.abs().max() > 100), "not linear"),
        (lambda self, x, state: state + x.mean(dim=1, keepdim=True), "not linear"),
        (lambda self, x, state: state * float("inf"), "infinity or NaN"),
        (lambda self, x, state: 0 * state, "returns zeros"),
        (lambda self, x, state: state[..., :1], "fails in step"),
        (lambda self, x, state: state + torch.randn(1), "noise of shape (1,)"),
        (lambda self, x, state: state + torch.rand_like(x), "not normal noise"),
        (lambda self, x, state: state + x.clone().normal_(), "not normal noise"),
        (lambda self, x, state: state + sum(torch.randn_like(x) for _ in range(9)), "4 times"),
        (lambda self, x, state: [][0], "IndexError"),
    ],
)
def test_steps_that_are_no_sums_are_refused(step: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        scripted(step)
    assert words in str(caught.value)


PROCESSES: list[tuple[str, dict[str, Any], Process | None]] = [
    ("DDIMScheduler", {"clip_sample": False}, Process()),
    (
        "EulerDiscreteScheduler",
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **VP},
        Process(
            betas="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="v_prediction"
        ),
    ),
    (
        "DDPMScheduler",
        {
            "clip_sample": False,
            "beta_schedule": "squaredcos_cap_v2",
            "num_train_timesteps": 500,
            "variance_type": "fixed_large",
        },
        Process(betas="cosine", timesteps=500, variance="fixed_large"),
    ),
    (
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0},
        Process(family="flow", prediction="flow", shift=3.0),
    ),
    (
        "UniPCMultistepScheduler",
        {"flow_shift": 5.0, **FLOW},
        Process(family="flow", prediction="flow", shift=5.0),
    ),
    (
        "EDMEulerScheduler",
        {"sigma_max": 100.0},
        Process(family="edm", prediction="edm", sigma_max=100.0),
    ),
    ("DDIMScheduler", {"clip_sample": False, "rescale_betas_zero_snr": True}, None),
    (
        "DDIMScheduler",
        {"clip_sample": False, "rescale_betas_zero_snr": True, **VP},
        Process(zero_terminal_snr=True, prediction="v_prediction"),
    ),
    (
        "DDIMScheduler",
        {"clip_sample": False, "trained_betas": [0.01] * 1000},
        Process(betas=(0.01,) * 1000),
    ),
    ("EDMEulerScheduler", VP, Process(family="edm", prediction="v_prediction")),
    ("IPNDMScheduler", {}, None),
]


@pytest.mark.parametrize(("name", "options", "process"), PROCESSES)
def test_the_process_comes_from_the_config(
    name: str, options: dict[str, Any], process: Process | None
) -> None:
    program = program_from_scheduler(made(name, options), 10)
    assert program.process == process
    if process is None:
        return
    for step in program.steps:  # timesteps are those of the process at those times
        assert process.at(step.moment).timestep == pytest.approx(step.timestep, abs=1e-3)
    point = process.at(program.steps[0].moment)
    if process.family == "edm":
        assert program.initial == pytest.approx(point.sigma, rel=1e-2)


def test_a_config_that_its_tables_contradict_is_not_believed() -> None:
    scheduler = made("DDIMScheduler", {"clip_sample": False})
    scheduler.alphas_cumprod = scheduler.alphas_cumprod * 0.999
    scheduler.set_timesteps(5)
    assert process_from_scheduler(scheduler) is None
    flow = made("FlowMatchEulerDiscreteScheduler", {})
    flow.set_timesteps(5)
    flow.timesteps = flow.timesteps / 7
    assert process_from_scheduler(flow) is None


@pytest.mark.parametrize(
    ("name", "options", "process", "words"),
    [
        ("EulerDiscreteScheduler", VP, Process(), ["prediction v_prediction", "epsilon"]),
        ("EulerDiscreteScheduler", {"num_train_timesteps": 500}, Process(), ["T 500", "1000"]),
        (
            "EulerDiscreteScheduler",
            {"beta_schedule": "scaled_linear"},
            Process(),
            ["betas scaled_linear, 0.0001 to 0.02", "linear, 0.0001 to 0.02"],
        ),
        (
            "DDIMScheduler",
            {"clip_sample": False, "rescale_betas_zero_snr": True},
            Process(betas="cosine"),
            ["zero_terminal_snr", "(the network's: cosine)"],
        ),
        (
            "CogVideoXDDIMScheduler",
            {"clip_sample": False, **VP},
            Process(
                betas="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="v_prediction"
            ),
            ["betas scaled_linear, snr_shift 3, 0.00085", "fix [process] in the network's recipe"],
        ),
        ("FlowMatchEulerDiscreteScheduler", {}, Process(), ["family flow", "diffusion"]),
        ("IPNDMScheduler", {}, Process(), ["does not know", "diffusion"]),
        (
            "EDMEulerScheduler",
            {"sigma_data": 1.0},
            Process(family="edm", prediction="edm"),
            ["sigma_data 1.0", "0.5"],
        ),
    ],
)
def test_another_process_than_the_networks_is_refused(
    name: str, options: dict[str, Any], process: Process, words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        program_from_scheduler(made(name, options), 10, process=process)
    for word in words:
        assert word in str(caught.value)


def test_a_table_without_a_name_can_be_the_networks() -> None:
    betas = Process().beta_table().tolist()
    scheduler = made("DDIMScheduler", {"clip_sample": False, "trained_betas": betas})
    scheduler.set_timesteps(5)
    check_process(scheduler, Process(variance="learned_range"))


def test_the_network_is_given_its_own_timesteps() -> None:
    scaled = Process(family="flow", prediction="flow", time_scale=1e-3)
    scheduler = made("FlowMatchEulerDiscreteScheduler", {"shift": 2.0})
    program = program_from_scheduler(scheduler, 4, process=scaled)
    scheduler.set_timesteps(4)
    np.testing.assert_allclose([s.timestep for s in program.steps], scheduler.sigmas[:-1])
    np.testing.assert_allclose([s.moment for s in program.steps], scheduler.timesteps)
    assert program.process == scaled
    wide = Process(family="edm", prediction="edm", sigma_min=0.001, sigma_max=200.0)
    edm = program_from_scheduler(made("EDMEulerScheduler", {}), 4, process=wide)
    for step in edm.steps:
        assert wide.at(step.moment).timestep == pytest.approx(step.timestep, abs=1e-6)


def test_one_step() -> None:
    options = {"clip_sample": False, "steps_offset": 1}
    (step,) = program_from_scheduler(made("DDIMScheduler", options), 1).steps
    assert step.timestep == step.moment == 1  # of 1000, and not the whole of time


def test_choices_follow_the_time() -> None:
    scheduler = made("HeunDiscreteScheduler", {})
    program = program_from_scheduler(scheduler, 6, lambda time: Exit(12 if time < 500 else 3))
    assert program.choices == tuple(Exit(12 if s.timestep < 500 else 3) for s in program.steps)
    assert set(program.choices) == {Exit(3), Exit(12)}
    flat = program_from_scheduler(
        made("EDMEulerScheduler", {}), 6, lambda time: Exit(1 + int(time))
    )
    assert flat.choices[0] == Exit(1001)  # sigma_max is T, not ln(80) / 4


def test_a_sampler_takes_the_program() -> None:
    program = program_from_scheduler(made("UniPCMultistepScheduler", {}), 8)
    engine = FakeEngine((1, 2), lambda depth, x, t, conditions: np.tanh(x) * depth)
    interface = Interface(name="x", exits=(1, 2), state=State(shape=(3, 4)))
    made_ = Sampler(engine, interface).sample(
        2, solver=program.with_choices(lambda _: Exit(2)), seed=1
    )
    assert made_.shape == (2, 3, 4)
    assert [depth for depth, _ in engine.calls] == [2] * 8


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_scheduler_from_its_config(tmp_path: Path) -> None:
    options = {"use_karras_sigmas": True, "beta_end": 0.012}
    scheduler = made("EulerDiscreteScheduler", options)
    scheduler.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "scheduler_config.json"):
        read = scheduler_from_config(path)
        assert type(read) is type(scheduler)
        assert read.config.beta_end == 0.012
        assert program_from_scheduler(read, 5) == program_from_scheduler(scheduler, 5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "not JSON with an object"),
        ({}, "_class_name = None"),
        ({"_class_name": "EulerDiscrete"}, "EulerDiscreteScheduler"),
        ({"_class_name": ["x"]}, "_class_name = ['x']"),
        ({"_class_name": "os.system"}, "'os.system'"),
        ({"_class_name": "UNet2DModel"}, "'UNet2DModel'"),
        ({"_class_name": "SchedulerMixin"}, "'SchedulerMixin'"),
        ({"_class_name": "DPMSolverSDEScheduler"}, "torchsde"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "steep"}, "steep"),
    ],
)
def test_configs_that_are_none(tmp_path: Path, content: object, words: str) -> None:
    try:
        importlib.import_module("torchsde")
    except ModuleNotFoundError:
        pass
    else:
        if words == "torchsde":
            pytest.skip("it is installed")
    with pytest.raises(UsageError) as caught:
        scheduler_from_config(write(tmp_path / "config.json", content))
    assert words in str(caught.value)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no readable file"):
        scheduler_from_config(tmp_path / "none.json")
    with pytest.raises(UsageError, match=r"no readable file .*scheduler_config\.json"):
        scheduler_from_config(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler",
     "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"],
)  # fmt: skip
def test_programs_with_forecasts_equal_an_interpreter(name: str) -> None:
    options = {"clip_sample": False} if name == "DDIMScheduler" else {}
    program = program_from_scheduler(made(name, options), 12)
    moments = [*dict.fromkeys(step.moment for step in program.steps)]

    def choice_at(time: float) -> Choice:
        at = moments.index(time)
        return Exit(1) if at < 3 or at % 3 == 0 else Forecast(at % 3)

    program = program.with_choices(choice_at)

    def network(depth: int, x: Array, t: Any) -> Array:
        return np.tanh(0.3 * x + np.reshape(t, (-1, *(1 for _ in x.shape[1:]))) / 900)

    engine = FakeEngine((1,), lambda depth, x, t, given: network(depth, x, t).astype(np.float32))
    interface = Interface(
        name="x", exits=(1,), state=State(shape=(3, 4)), process=program.process or Process()
    )
    found = Sampler(engine, interface).sample(2, solver=program, seed=1)
    expected = interpreter.run(
        program,
        lambda depth, x, t: network(depth, x, np.full(2, t, np.float32)),
        lambda draw: normal_noise(1, range(2), draw, (3, 4)).astype(np.float64),
    )
    assert len(engine.calls) == sum(step.chosen.evaluates for step in program.steps) < len(moments)
    agree([found], [expected])
