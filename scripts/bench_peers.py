"""The same sampling through what people would use instead, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import diffusers
import numpy as np
import onnxruntime
import openvino
import torch
from bench_runtime import open_samplers
from results import Row

from eecompile import Interface
from eecompile.arrays import Array
from eecompile.measure.timing import interleaved, percentiles
from eecompile.networks import load_network
from eecompile.recipe import load_recipe
from eecompile.runtime.trajectory.noise import normal_noise
from eecompile.store.bundle import exit_graph_name

Predict = Callable[[int, Array, Array, Mapping[str, Array]], Array]
Loop = Callable[[Sequence[int]], object]
EAGER = "PyTorch eager"
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


class Case(NamedTuple):
    """What is sampled, by DDIM.

    Attributes:
        recipe: of the network.
        bundle: its bundle.
        schedule: the exit schedule's name.
        batch: samples at once.
        steps: of DDIM.
        device: ``cpu``, or ``cuda``.
    """

    recipe: Path
    bundle: Path
    schedule: str
    batch: int
    steps: int
    device: str = "cpu"


class Given(NamedTuple):
    """What every loop samples from."""

    interface: Interface
    noise: Array
    conditions: Mapping[str, Array]
    steps: int
    device: str


def measured(case: Case, engines: Mapping[str, Path], rounds: int) -> Row:
    """Sampling with a schedule and at full depth, by every peer and engine set.

    On a GPU PyTorch computes in FP16 (autocast), and torch.compile in its mode max-autotune,
    which records CUDA graphs; ONNX Runtime runs the bundle's own graphs by its CUDA provider.

    Args:
        case: what is sampled.
        engines: engine sets, by name.
        rounds: in each, everything runs once, in turn, and each begins with another.
    """
    with open_samplers(engines) as opened:
        planner = next(iter(opened.values()))
        interface = planner.interface
        programs = {n: planner.program("ddim", case.steps, n) for n in (case.schedule, "full")}
        loops = peer_loops(case, interface)
        actions: dict[tuple[str, str], Callable[[], object]] = {}
        for which, program in programs.items():
            depths = [step.chosen.blocks for step in program.steps]
            actions |= {(name, which): partial(loop, depths) for name, loop in loops.items()}
            for name, sampler in opened.items():
                own = sampler.program("ddim", case.steps, which)
                actions[f"eecompile, {name}", which] = partial(
                    sampler.sample, case.batch, solver=own, guidance=1.0
                )
        seconds = interleaved(actions, rounds=rounds).checked().seconds
    chosen = [step.chosen for step in programs[case.schedule].steps]
    return {
        "schedule": case.schedule,
        "blocks left out": 1 - sum(map(interface.cost, chosen)) / len(chosen),
        "rows": list(rows_of(seconds, case)),
    }


def rows_of(seconds: Mapping[tuple[str, str], Sequence[float]], case: Case) -> Iterator[Row]:
    """A row for whatever samples, from its seconds with the schedule and at full depth."""
    eager, full = seconds[EAGER, case.schedule], seconds[EAGER, "full"]
    for name in dict.fromkeys(name for name, _ in seconds):
        ours, deepest = seconds[name, case.schedule], seconds[name, "full"]
        yield {
            "by": name,
            "schedule, ms a step": 1e3 * median(ours) / case.steps,
            "full depth, ms a step": 1e3 * median(deepest) / case.steps,
            "schedule's saving": 1 - _ratio(ours, deepest)[1],
            "over eager, same schedule": _ratio(eager, ours),
            "over eager, full depth": _ratio(full, ours),
        }


def _ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Tenth percentile, median and ninetieth of the ratio, round by round."""
    return percentiles([a / b for a, b in zip(one, other, strict=True)])


def peer_loops(case: Case, interface: Interface) -> dict[str, Loop]:
    """Loops of the peers, by name; each takes the depth of every step."""
    rows, device = range(case.batch), case.device
    network = load_network(load_recipe(case.recipe).network, case.recipe.parent)
    network = network.eval().to(device)
    conditions = {
        name: spec.values(name, None, rows) for name, spec in interface.conditions.items()
    }
    noise = normal_noise(0, rows, 0, interface.state.shape)
    given = Given(interface, noise, conditions, case.steps, device)
    mode = None if device == "cpu" else "max-autotune"
    compiled = torch.compile(network.predict_at, mode=mode)
    loops = {
        EAGER: _torch_loop(network.predict_at, given),
        f"torch.compile, {mode}" if mode else "torch.compile": _torch_loop(compiled, given),
        "diffusers' loop": _diffusers_loop(network, given),
    }
    plain = {"onnxruntime, a session an exit": _onnxruntime(case.bundle, interface.exits, device)}
    if device == "cpu":
        plain["OpenVINO, a model an exit"] = _openvino(case.bundle, interface.exits)
    return loops | {name: _numpy_loop(predict, given) for name, predict in plain.items()}


def _torch_loop(predict: Any, given: Given) -> Loop:
    """The eager loop of the paper's code: the depth is chosen at every timestep."""
    device, conditions = given.device, _tensors(given)

    def loop(depths: Sequence[int]) -> object:
        with torch.inference_mode(), _half(device):
            x = torch.from_numpy(given.noise).clone().to(device)
            for moment, depth in zip(_tables(given), depths, strict=True):
                torch.compiler.cudagraph_mark_step_begin()
                t = torch.full((len(x),), float(moment[0]), device=device)
                output = predict(depth, x, t, **conditions)
                output = output[:, : x.shape[1]].float()  # without a learned variance
                x = _ddim(given.interface, x, output, moment)
            return x.cpu().numpy()

    return loop


def _diffusers_loop(network: Any, given: Given) -> Loop:
    """The loop of a diffusers pipeline: its DDIM scheduler's steps around the network."""
    process, device, conditions = given.interface.process, given.device, _tensors(given)
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=process.timesteps,
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        beta_schedule=BETAS[process.betas],
        prediction_type=process.prediction,
        timestep_spacing="trailing",
        clip_sample=given.interface.state.range is not None,
    )

    def loop(depths: Sequence[int]) -> object:
        scheduler.set_timesteps(given.steps, device=device)
        with torch.inference_mode(), _half(device):
            x = torch.from_numpy(given.noise).clone().to(device)
            for t, depth in zip(scheduler.timesteps, depths, strict=True):
                scaled = scheduler.scale_model_input(x, t)
                output = network.predict_at(depth, scaled, t.float().expand(len(x)), **conditions)
                output = output[:, : x.shape[1]].float()
                x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
            return x.cpu().numpy()

    return loop


def _numpy_loop(predict: Predict, given: Given) -> Loop:
    """A hand-written loop in numpy around engines made in the plainest way."""

    def loop(depths: Sequence[int]) -> object:
        x = given.noise.copy()
        for moment, depth in zip(_tables(given), depths, strict=True):
            t = np.full(len(x), moment[0], np.float32)
            output = predict(depth, x, t, given.conditions)
            x = _ddim(given.interface, x, output, moment).astype(np.float32)
        return x

    return loop


def _tables(given: Given) -> list[tuple[int, float, float]]:
    """Timestep, and alpha_bar there and after the step, of DDIM's trailing grid."""
    process, steps = given.interface.process, given.steps
    total, bars = process.timesteps, process.alpha_bar()
    visited = [round(total - index * total / steps) - 1 for index in range(steps)]
    after = [*(float(bars[t]) for t in visited[1:]), 1.0]
    return [(t, float(bars[t]), a) for t, a in zip(visited, after, strict=True)]


def _ddim(interface: Interface, x: Any, output: Any, moment: tuple[int, float, float]) -> Any:
    """One step of DDIM on arrays or tensors."""
    _, bar, after = moment
    signal, spread = bar**0.5, (1 - bar) ** 0.5
    kind, bounds, data = interface.process.prediction, interface.state.range, output
    if kind == "v_prediction":
        data = signal * x - spread * output
    elif kind == "epsilon":
        data = (x - spread * output) / signal
    data = data.clip(*bounds) if bounds else data
    return after**0.5 * data + (1 - after) ** 0.5 * (x - signal * data) / spread


def _tensors(given: Given) -> dict[str, torch.Tensor]:
    """The conditions on the device."""
    return {n: torch.from_numpy(array).to(given.device) for n, array in given.conditions.items()}


def _half(device: str) -> Any:
    """FP16 where it is on a GPU."""
    return torch.autocast(device, torch.float16) if device != "cpu" else nullcontext()


def _onnxruntime(bundle: Path, exits: Sequence[int], device: str) -> Predict:
    providers = ["CPUExecutionProvider"]
    if device != "cpu":
        onnxruntime.preload_dlls()
        providers.insert(0, "CUDAExecutionProvider")
    graphs = {depth: str(bundle / exit_graph_name(depth)) for depth in exits}
    sessions = {
        depth: onnxruntime.InferenceSession(graph, providers=providers)
        for depth, graph in graphs.items()
    }
    return lambda depth, x, t, given: sessions[depth].run(None, {"x": x, "t": t, **given})[0]


def _openvino(bundle: Path, exits: Sequence[int]) -> Predict:
    graphs = {depth: str(bundle / exit_graph_name(depth)) for depth in exits}
    models = {depth: openvino.compile_model(graph, "CPU") for depth, graph in graphs.items()}
    return lambda depth, x, t, given: models[depth]({"x": x, "t": t, **given})[0]
