"""The same sampling through what people would use instead, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial, reduce
from itertools import product
from operator import add
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_runtime import open_samplers
from results import Row

from eecompile import ExitSchedule, Interface, Program, Sampler
from eecompile.arrays import Array
from eecompile.measure.timing import interleaved, percentiles
from eecompile.networks import load_network
from eecompile.programs.program import Term
from eecompile.recipe import load_recipe
from eecompile.runtime.trajectory.noise import normal_noise
from eecompile.store.bundle import open_engine_set
from eecompile.store.manifest import exit_graph_name

Predict = Callable[[int, Array, Array, Mapping[str, Array]], Array]
Loop = Callable[[Sequence[int]], Any]
EAGER, COMPILED = "PyTorch eager", "torch.compile"
FULL = "full depth"
LOOP, MODELS = "diffusers' loop", "OpenVINO, a model an exit"
SESSIONS, HALVES = "onnxruntime, a session an exit", "onnxruntime in FP16, a session an exit"
PEERS = (EAGER, COMPILED, LOOP, SESSIONS, HALVES, MODELS)
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


class Case(NamedTuple):
    """What is sampled, by DDIM, where (on ``cpu`` or ``cuda``), and by which peers.

    OpenVINO is one on the CPU, ONNX Runtime in FP16 (``half``: an engine set per exit, whose
    graphs are taken) on a GPU.
    """

    recipe: Path
    bundle: Path
    schedule: str
    batch: int
    steps: int
    device: str = "cpu"
    peers: Sequence[str] = PEERS
    half: Path | None = None


class Given(NamedTuple):
    """What every loop samples from: a program that draws no noise, of which loops take the steps.

    Attributes:
        interface: of the network.
        program: at any depth.
        noise: float32 [B, ...].
        conditions: by name, [B, ...].
        device: ``cpu`` or ``cuda``.
    """

    interface: Interface
    program: Program
    noise: Array
    conditions: Mapping[str, Array]
    device: str

    @classmethod
    def of(cls, interface: Interface, program: Program, batch: int, device: str) -> Given:
        """Samples 0, 1, ... of seed 0."""
        rows = range(batch)
        conditions = {
            name: spec.values(name, None, rows) for name, spec in interface.conditions.items()
        }
        noise = normal_noise(0, rows, 0, interface.state.shape)
        return cls(interface, program, noise, conditions, device)


def measured(
    case: Case,
    engines: Mapping[str, Path],
    rounds: int,
    own: Mapping[str, ExitSchedule] | None = None,
) -> Row:
    """Sampling with a schedule and at full depth, by every peer and engine set.

    On a GPU PyTorch computes in FP16 (autocast), and torch.compile in its mode max-autotune,
    which records CUDA graphs; ONNX Runtime runs the bundle's own graphs by its CUDA provider.
    In a round everything runs once, in turn, and each round begins with another. Schedules of
    one's ``own`` have further rows, of the engine sets that can do what they choose.
    """
    with open_samplers(engines) as opened:
        planner = next(iter(opened.values()))
        interface = planner.interface
        programs = {n: planner.program("ddim", case.steps, n) for n in (case.schedule, "full")}
        loops = peer_loops(case, Given.of(interface, programs["full"], case.batch, case.device))
        actions: dict[tuple[str, str], Callable[[], object]] = {}
        for which, program in programs.items():
            depths = [step.chosen.blocks for step in program.steps]
            actions |= {(name, which): partial(loop, depths) for name, loop in loops.items()}
            for name, sampler in opened.items():
                actions[f"eecompile, {name}", which] = _sampling(sampler, case, which)
        further = {}
        for (title, chosen), (name, sampler) in product((own or {}).items(), opened.items()):
            if sampler.engine.spans or not any(choice.cuts for choice in chosen.choices):
                further[f"eecompile, {name}, {title}"] = f"eecompile, {name}"
                action = _sampling(sampler, case, chosen)
                actions[f"eecompile, {name}, {title}", case.schedule] = action
        seconds = interleaved(actions, rounds=rounds).checked().seconds
        seconds |= {(row, "full"): seconds[name, "full"] for row, name in further.items()}
    chosen = [step.chosen for step in programs[case.schedule].steps]
    return {
        "schedule": case.schedule,
        "blocks left out": 1 - sum(map(interface.cost, chosen)) / len(chosen),
        "rows": list(rows_of(seconds, case)),
    }


def _sampling(sampler: Sampler, case: Case, schedule: ExitSchedule | str) -> Callable[[], object]:
    program = sampler.program("ddim", case.steps, schedule)
    return partial(sampler.sample, case.batch, solver=program, guidance=1.0)


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


def peer_loops(case: Case, given: Given) -> dict[str, Loop]:
    """Loops of the peers, by name; each takes the depth of every step."""
    exits, device = given.interface.exits, case.device
    network = load_network(load_recipe(case.recipe).network, case.recipe.parent)
    network = network.eval().to(device)
    compiled = partial(torch.compile, network.predict_at)
    if device != "cpu":
        compiled = partial(compiled, mode="max-autotune")
    loops: dict[str, Callable[[], Loop]] = {
        EAGER: lambda: torch_loop(network.predict_at, given),
        COMPILED: lambda: torch_loop(compiled(), given),
        LOOP: lambda: _diffusers_loop(network, given),
        SESSIONS: lambda: _numpy_loop(_onnxruntime(graphs, device), given),
    }
    graphs = {depth: case.bundle / exit_graph_name(depth) for depth in exits}
    if device == "cpu":
        loops[MODELS] = lambda: _numpy_loop(_openvino(graphs), given)
    if (folder := case.half) is not None:
        halves = {s.exits[0]: folder / s.file for s in open_engine_set(folder).segments}
        loops[HALVES] = lambda: _numpy_loop(_onnxruntime(halves, device), given)
    return {name: make() for name, make in loops.items() if name in case.peers}


def torch_loop(predict: Any, given: Given) -> Loop:
    """The eager loop of the paper's code: the depth is chosen at every timestep."""
    device, conditions = given.device, _tensors(given)

    def loop(depths: Sequence[int]) -> Array:
        def evaluate(index: int, x: torch.Tensor, timestep: float) -> torch.Tensor:
            if device != "cpu":
                torch.compiler.cudagraph_mark_step_begin()
            t = torch.full((len(x),), timestep, device=device)
            output = predict(depths[index], x, t, **conditions)
            return output[:, : x.shape[1]].float()  # without a learned variance

        with torch.inference_mode(), _half(device):
            noise = torch.from_numpy(given.noise).to(device)
            return _stepped(given.program, noise, evaluate).cpu().numpy()

    return loop


def _diffusers_loop(network: Any, given: Given) -> Loop:
    """The loop of a diffusers pipeline: its DDIM scheduler's steps around the network."""
    import diffusers

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
        scheduler.set_timesteps(len(given.program.steps), device=device)
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
        def evaluate(index: int, x: Array, timestep: float) -> Array:
            t = np.full(len(x), timestep, np.float32)
            return predict(depths[index], x, t, given.conditions)[:, : x.shape[1]]

        return _stepped(given.program, given.noise, evaluate)

    return loop


def _stepped(program: Program, noise: Any, evaluate: Callable[[int, Any, float], Any]) -> Any:
    """The state after a program's steps, on arrays or tensors.

    ``evaluate`` predicts, given a step's index, the network's input and the timestep.
    """
    buffers = {"state": noise * program.initial}
    for index, step in enumerate(program.steps):
        buffers["output"] = evaluate(index, _sum(step.input, buffers), step.timestep)
        for update in step.updates:
            made = _sum(update.terms, buffers)
            buffers[update.into] = made.clip(*update.clip) if update.clip else made
    return buffers["state"]


def _sum(terms: Sequence[Term], buffers: Mapping[str, Any]) -> Any:
    products = [term.coefficient * buffers[term.buffer] for term in terms]
    return reduce(add, products)


def _tensors(given: Given) -> dict[str, torch.Tensor]:
    """The conditions on the device."""
    return {n: torch.from_numpy(array).to(given.device) for n, array in given.conditions.items()}


def _half(device: str) -> Any:
    """FP16 where it is on a GPU."""
    return torch.autocast(device, torch.float16) if device != "cpu" else nullcontext()


def _onnxruntime(graphs: Mapping[int, Path], device: str) -> Predict:
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    if device != "cpu":
        onnxruntime.preload_dlls()
        providers.insert(0, "CUDAExecutionProvider")
    sessions = {
        depth: onnxruntime.InferenceSession(str(graph), providers=providers)
        for depth, graph in graphs.items()
    }
    return lambda depth, x, t, given: sessions[depth].run(None, {"x": x, "t": t, **given})[0]


def _openvino(graphs: Mapping[int, Path]) -> Predict:
    import openvino

    models = {depth: openvino.compile_model(str(at), "CPU") for depth, at in graphs.items()}
    return lambda depth, x, t, given: models[depth]({"x": x, "t": t, **given})[0]
