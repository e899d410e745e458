"""The same sampling through what people would use instead, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnxruntime
import openvino
import torch

from eecompile.measure.timing import interleaved
from eecompile.networks.load import load_network
from eecompile.recipe import load_recipe
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.trajectory.noise import normal_noise
from eecompile.store.bundle import exit_graph_name

Row = dict[str, Any]
Array = np.ndarray[Any, Any]
Predict = Callable[[int, Array, Array, Mapping[str, Array]], Array]
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def peer_rows(
    recipe: Path,
    bundle: Path,
    engines: Mapping[str, Path],
    schedule: str,
    *,
    batch: int,
    steps: int,
    rounds: int,
    device: str = "cpu",
) -> Iterator[Row]:
    """Seconds of sampling with a schedule and at full depth, by every peer and engine set.

    On a GPU PyTorch computes in FP16 (autocast), and torch.compile in its mode max-autotune,
    which records CUDA graphs; ONNX Runtime runs the bundle's own graphs by its CUDA provider.

    Args:
        recipe: of the network.
        bundle: its bundle.
        engines: engine sets, by name.
        schedule: the exit schedule's name.
        batch: samples at once.
        steps: of DDIM.
        rounds: in each, everything runs once, in turn, and each begins with another.
        device: ``cpu``, or ``cuda``.
    """
    network = load_network(load_recipe(recipe).network, recipe.parent).eval().to(device)
    samplers = {name: Sampler.open(folder) for name, folder in engines.items()}
    planner = next(iter(samplers.values()))
    interface = planner.interface
    depths = {
        name: tuple(step.chosen.blocks for step in planner.program("ddim", steps, name).steps)
        for name in (schedule, "full")
    }
    conditions = {
        name: spec.values(name, None, range(batch)) for name, spec in interface.conditions.items()
    }
    noise = normal_noise(0, range(batch), 0, interface.state.shape)
    mode = None if device == "cpu" else "max-autotune"
    compiled = torch.compile(network.predict_at, mode=mode)
    by_compiler = f"torch.compile, {mode}" if mode else "torch.compile"
    torch_given = (interface, noise, conditions, steps, device)
    loops: dict[str, Callable[[Sequence[int]], object]] = {
        "PyTorch eager": _torch_loop(network.predict_at, *torch_given),
        by_compiler: _torch_loop(compiled, *torch_given),
        "diffusers' loop": _diffusers_loop(network, *torch_given),
    }
    plain = {"onnxruntime, a session an exit": _onnxruntime(bundle, interface.exits, device)}
    if device == "cpu":
        plain["OpenVINO, a model an exit"] = _openvino(bundle, interface.exits)
    for name, predict in plain.items():
        loops[name] = _numpy_loop(predict, planner, noise, conditions, steps)
    actions: dict[tuple[str, str], Callable[[], object]] = {}
    for which, chosen in depths.items():
        for name, loop in loops.items():
            actions[name, which] = lambda loop=loop, chosen=chosen: loop(chosen)
        for name, sampler in samplers.items():
            program = sampler.program("ddim", steps, which)
            actions[f"eecompile, {name}", which] = lambda s=sampler, p=program: s.sample(
                batch, solver=p, guidance=1.0
            )
    timings = interleaved(actions, rounds=rounds)
    for error in timings.failures.values():
        raise error
    times = timings.seconds
    eager, full = times["PyTorch eager", schedule], times["PyTorch eager", "full"]
    for name in dict.fromkeys(name for name, _ in times):
        ours, deepest = times[name, schedule], times[name, "full"]
        yield {
            "by": name,
            "schedule, ms a step": 1e3 * statistics.median(ours) / steps,
            "full depth, ms a step": 1e3 * statistics.median(deepest) / steps,
            "schedule's saving": 1 - _ratio(ours, deepest)[1],
            "over eager, same schedule": _ratio(eager, ours),
            "over eager, full depth": _ratio(full, ours),
        }
    for sampler in samplers.values():
        sampler.close()


def ideal_saving(sampler: Sampler, schedule: str, steps: int) -> float:
    """The share of blocks that a schedule leaves out."""
    chosen = [step.chosen for step in sampler.program("ddim", steps, schedule).steps]
    return 1 - sum(map(sampler.interface.cost, chosen)) / len(chosen)


def _ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Tenth percentile, median and ninetieth of the ratio, round by round."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    low, middle, high = np.percentile(ratios, (10, 50, 90))
    return float(low), float(middle), float(high)


def _tables(interface: Any, steps: int) -> list[tuple[int, float, float]]:
    """Timestep, and alpha_bar there and after the step, of DDIM's trailing grid."""
    total, bars = interface.process.timesteps, interface.process.alpha_bar()
    visited = [round(total - index * total / steps) - 1 for index in range(steps)]
    after = [*(float(bars[t]) for t in visited[1:]), 1.0]
    return [(t, float(bars[t]), a) for t, a in zip(visited, after, strict=True)]


def _torch_loop(
    predict: Any,
    interface: Any,
    noise: Array,
    conditions: Mapping[str, Array],
    steps: int,
    device: str,
) -> Callable[[Sequence[int]], object]:
    """The eager loop of the paper's code: the depth is chosen at every timestep."""
    given = {name: torch.from_numpy(array).to(device) for name, array in conditions.items()}
    kind, bounds = interface.process.prediction, interface.state.range

    def loop(depths: Sequence[int]) -> object:
        with torch.inference_mode(), _half(device):
            x = torch.from_numpy(noise).clone().to(device)
            for (t, bar, after), depth in zip(_tables(interface, steps), depths, strict=True):
                torch.compiler.cudagraph_mark_step_begin()
                output = predict(depth, x, torch.full((len(x),), float(t), device=device), **given)
                output = output[:, : x.shape[1]].float()  # without a learned variance
                data, _ = _data(kind, x, output, bar)
                data = data.clamp(*bounds) if bounds else data
                direction = (x - bar**0.5 * data) / (1 - bar) ** 0.5
                x = after**0.5 * data + (1 - after) ** 0.5 * direction
            return x.cpu().numpy()

    return loop


def _half(device: str) -> Any:
    """FP16 where it is on a GPU."""
    return torch.autocast(device, torch.float16) if device != "cpu" else nullcontext()


def _data(kind: str, x: Any, output: Any, bar: float) -> tuple[Any, float]:
    signal, spread = bar**0.5, (1 - bar) ** 0.5
    if kind == "v_prediction":
        return signal * x - spread * output, spread
    if kind == "epsilon":
        return (x - spread * output) / signal, spread
    return output, spread


def _diffusers_loop(
    network: Any,
    interface: Any,
    noise: Array,
    conditions: Mapping[str, Array],
    steps: int,
    device: str,
) -> Callable[[Sequence[int]], object]:
    """What a diffusers pipeline does around a module."""
    process = interface.process
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=process.timesteps,
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        beta_schedule=BETAS[process.betas],
        prediction_type=process.prediction,
        timestep_spacing="trailing",
        clip_sample=interface.state.range is not None,
    )
    given = {name: torch.from_numpy(array).to(device) for name, array in conditions.items()}

    def loop(depths: Sequence[int]) -> object:
        scheduler.set_timesteps(steps, device=device)
        with torch.inference_mode(), _half(device):
            x = torch.from_numpy(noise).clone().to(device)
            for t, depth in zip(scheduler.timesteps, depths, strict=True):
                model_input = scheduler.scale_model_input(x, t)
                output = network.predict_at(depth, model_input, t.float().expand(len(x)), **given)
                output = output[:, : x.shape[1]].float()
                x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
            return x.cpu().numpy()

    return loop


def _numpy_loop(
    predict: Predict, planner: Sampler, noise: Array, conditions: Mapping[str, Array], steps: int
) -> Callable[[Sequence[int]], object]:
    """A hand-written loop in numpy around engines made in the plainest way."""
    interface = planner.interface
    kind, bounds = interface.process.prediction, interface.state.range

    def loop(depths: Sequence[int]) -> object:
        x = noise.copy()
        for (t, bar, after), depth in zip(_tables(interface, steps), depths, strict=True):
            output = predict(depth, x, np.full(len(x), t, np.float32), conditions)
            data, spread = _data(kind, x, output, bar)
            data = np.clip(data, *bounds) if bounds else data
            direction = (x - bar**0.5 * data) / spread
            x = (after**0.5 * data + (1 - after) ** 0.5 * direction).astype(np.float32)
        return x

    return loop


def _onnxruntime(bundle: Path, exits: Sequence[int], device: str) -> Predict:
    providers = ["CPUExecutionProvider"]
    if device != "cpu":
        onnxruntime.preload_dlls()
        providers.insert(0, "CUDAExecutionProvider")
    sessions = {
        depth: onnxruntime.InferenceSession(
            str(bundle / exit_graph_name(depth)), providers=providers
        )
        for depth in exits
    }
    return lambda depth, x, t, given: sessions[depth].run(None, {"x": x, "t": t, **given})[0]


def _openvino(bundle: Path, exits: Sequence[int]) -> Predict:
    models = {
        depth: openvino.compile_model(str(bundle / exit_graph_name(depth)), "CPU")
        for depth in exits
    }
    return lambda depth, x, t, given: models[depth]({"x": x, "t": t, **given})[0]
