"""The figures behind docs/decisions.md: ONNX Runtime's threads, levels, and operators."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import onnxruntime
from children import medians_in_turns
from results import RECIPE, Row, milliseconds

import eecompile.compiler.convert as convert
import eecompile.compiler.trace as trace
from eecompile import FakeEngine, Sampler
from eecompile.arrays import Array, Inputs
from eecompile.compiler import bundle_from_recipe
from eecompile.compiler.graph.merge import merged_exits
from eecompile.programs.choice import Exit, Forecast
from eecompile.programs.interface import Interface, State
from eecompile.programs.process import Point, Process
from eecompile.programs.program import Program
from eecompile.store import open_bundle, open_engine_set
from eecompile.tune.probe import rms

THREADS = ("no spinning", "spinning", "spinning within a run", "one global pool")
LEVELS = onnxruntime.GraphOptimizationLevel
Session = onnxruntime.InferenceSession
FLOW = Process(family="flow", prediction="flow", shift=3.0)
EDM = Process(family="edm", prediction="edm")
FORECASTS: tuple[tuple[Process | None, str, int], ...] = (  # None: the shipped network's
    (None, "ddim", 50),
    (None, "dpmpp-2m", 20),
    (FLOW, "flow-euler", 28),
    (FLOW, "flow-heun", 14),
    (EDM, "euler", 40),
    (EDM, "heun", 18),
)
BESIDE_FEWER = (
    ("ddim", 50, 1.0),
    ("dpmpp-2m", 20, 1.0),
    ("unipc", 20, 1.0),
    ("ddim", 50, 2.0),
    ("ddim", 50, 4.0),
    ("dpmpp-2m", 20, 4.0),
    ("dpmpp-2m", 10, 1.0),
    ("ddpm", 50, 1.0),
)
VARIABLES: Mapping[str, Callable[[Point, int], float]] = {
    "half log-SNR": lambda point, at: max(point.half_log_snr, -10.0),
    "time": lambda point, at: point.time,
    "sigma": lambda point, at: point.sigma,
    "step": lambda point, at: float(-at),
}


def inputs(batch: int) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    return {
        "x": draws.standard_normal((batch, 1, 28, 28), np.float32),
        "t": np.full(batch, 500, np.float32),
        "label": np.arange(batch) % 10,
    }


def session(
    path: Path, level: Any = LEVELS.ORT_ENABLE_ALL, threads: str = "spinning within a run"
) -> Session:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    if threads == "one global pool":
        options.use_per_session_threads = False
    elif threads == "no spinning":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    elif threads == "spinning within a run":
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return Session(str(path), options, providers=["CPUExecutionProvider"])


def times(sessions: Mapping[str, Session], batch: int, rounds: int) -> Row:
    """Milliseconds of a run of each session, in turns."""
    feeds = inputs(batch)
    actions = {name: partial(opened.run, None, feeds) for name, opened in sessions.items()}
    return milliseconds(actions, rounds if batch > 1 else 5 * rounds)


def thread_mode(engines: str, mode: str, rounds: int) -> Row:
    """Milliseconds at each exit, the four sessions taking turns; in this process alone."""
    if mode == "one global pool":
        onnxruntime.set_global_thread_pool_sizes(0, 1)
    sessions = {
        f"exit {segment.exits[0]}": session(Path(engines) / segment.file, threads=mode)
        for segment in open_engine_set(Path(engines)).segments
    }
    return {
        f"{name}, batch {batch}": value
        for batch in (1, 16)
        for name, value in times(sessions, batch, rounds).items()
    }


def thread_modes(engines: Path, rounds: int) -> list[Row]:
    """Each mode in processes of its own, in three rounds of all; the medians."""
    calls = {mode: (thread_mode, engines, mode, rounds) for mode in THREADS}
    return [{"threads": mode} | row for mode, row in medians_in_turns(calls, 3).items()]


def levels(engines: Path, rounds: int) -> list[Row]:
    """The stored graphs opened as they are, and with the layout for this processor."""
    rows = []
    for segment in open_engine_set(engines).segments:
        opened = {
            "as stored": session(engines / segment.file, LEVELS.ORT_DISABLE_ALL),
            "laid out": session(engines / segment.file, LEVELS.ORT_ENABLE_ALL),
        }
        for batch in (1, 16):
            row = {"exit": segment.exits[0], "batch": batch}
            rows.append(row | times(opened, batch, rounds))
    return rows


def attention(rounds: int) -> list[Row]:
    """Full depth from opset 23, with its Attention operator, and from opset 20, without."""
    with tempfile.TemporaryDirectory() as temporary:
        opened, nodes = {}, {}
        for opset in (23, 20):
            trace.OPSET = convert.OPSET = opset
            folder = Path(temporary) / str(opset)
            bundle_from_recipe(RECIPE, folder)
            deepest = open_bundle(folder).exits[-1]
            opened[f"opset {opset}"] = session(folder / deepest.graph)
            nodes[f"nodes, opset {opset}"] = deepest.nodes
        trace.OPSET = convert.OPSET = 23
        return [{"batch": n} | times(opened, n, rounds) | nodes for n in (1, 16, 64)]


def one_graph(bundle: Path, rounds: int) -> list[Row]:
    """One graph with all exits as outputs, asked for one exit only, against a graph an exit."""
    manifest = open_bundle(bundle)
    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    feeds, rows = inputs(1), []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "all.onnx"
        ir.save(merged_exits(bundle, manifest.interface.exits), path, external_data="all.bin")
        joint = session(path)
        for exit_ in manifest.exits:
            own = session(bundle / exit_.graph)
            actions = {
                "its own graph": partial(own.run, None, feeds),
                "from the joint graph": partial(
                    joint.run, [own.get_outputs()[0].name], feeds, options
                ),
            }
            rows.append({"exit": exit_.depth} | milliseconds(actions, 5 * rounds))
    return rows


def forecast_variables(engines: Path, samples: int) -> Iterator[Row]:
    """Distance to full depth by the variable of forecasts, every second moment a forecast.

    In standard deviations of the samples, the geometric mean of both parities. The shipped
    network; for other processes, the exact prediction for a mixture of Gaussians.
    """
    for process, solver, steps in FORECASTS:
        with mixture_sampler(process) if process else Sampler.open(engines) as sampler:
            program = sampler.program(solver, steps, sampler.interface.exits[-1])
            full = sampler.sample(samples, solver=program)
            for order in (0, 1, 2):
                row: Row = {"process": sampler.interface.process.family, "solver": solver}
                row |= {"evaluations": len(program.steps), "order": order}
                for name in VARIABLES:
                    made = [every_second(program, start, order, name) for start in (3, 4)]
                    apart = [sampler.sample(samples, solver=each) - full for each in made]
                    squares = [np.mean(each**2) / np.var(full) for each in apart]
                    row[name] = float(np.prod(squares) ** (1 / 4))
                yield row


def forecasts_and_fewer_steps(engines: Path, samples: int) -> Iterator[Row]:
    """Distance to full depth, in units of the range, of forecasts at every second step.

    Steps 3, 5, ... are forecasts; beside them, as many evaluations in fewer steps.
    """
    with Sampler.open(engines) as sampler:
        for solver, steps, guidance in BESIDE_FEWER:
            sample = partial(sampler.sample, samples, guidance=guidance)
            deepest = sampler.interface.exits[-1]
            program = sampler.program(solver, steps, deepest)
            full, moments = sample(solver=program), [step.moment for step in program.steps]
            row: Row = {"solver": solver, "steps": steps, "guidance": guidance}
            for order in (0, 1, 2):
                chosen = dict.fromkeys(moments, Exit(deepest))
                chosen |= dict.fromkeys(moments[3::2], Forecast(order))
                made = program.with_choices(chosen.__getitem__)
                row["evaluations"] = sum(choice.evaluates for choice in made.choices if choice)
                row[f"order {order}"] = _distance(sample(solver=made), full)
            fewer = sample(solver=sampler.program(solver, row["evaluations"], deepest))
            yield row | {"fewer steps": _distance(fewer, full)}


def _distance(found: Array, expected: Array) -> float:
    """In units of the range of the shipped network's data, -1 to 1."""
    return rms(found - expected) / 2


def every_second(program: Program, start: int, order: int, variable: str) -> Program:
    """The program with forecasts at every second moment, extrapolated in a variable.

    A program without a process extrapolates in its times: here, the variable's values.
    """
    assert program.process is not None
    moments = [*dict.fromkeys(step.moment for step in program.steps)]
    steps = []
    for step in program.steps:
        at = moments.index(step.moment)
        place = VARIABLES[variable](program.process.at(step.moment), at)
        choice = step.choice if at < start or (at - start) % 2 else Forecast(order)
        steps.append(msgspec.structs.replace(step, choice=choice, time=place))
    return msgspec.structs.replace(program, process=None, steps=tuple(steps))


def mixture_sampler(process: Process) -> Sampler:
    """Predicts exactly, for a flow or edm, where data are 24 Gaussians in 64 dimensions."""
    draws = np.random.default_rng(0)
    means, variance = 0.5 * draws.standard_normal((24, 64)), 0.1**2

    def predict(depth: int, x: Array, t: Array, given: Inputs) -> Array:
        time, edm = float(t[0]), process.family == "edm"
        point = process.at_ratio(math.exp(4 * time)) if edm else process.at(time)
        state = x / process.input_scale(point)
        total = point.alpha**2 * variance + point.sigma**2
        apart = state[:, None] - point.alpha * means
        log = -np.sum(apart**2, axis=2) / (2 * total)
        share = np.exp(log - log.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        data = np.einsum("bk,bkd->bd", share, means + point.alpha * variance / total * apart)
        if not edm:
            return ((state - data) / point.sigma).astype(np.float32)
        root = math.hypot(point.sigma, process.sigma_data)
        skip, out = (process.sigma_data / root) ** 2, point.sigma * process.sigma_data / root
        return ((data - skip * state) / out).astype(np.float32)

    interface = Interface(name="mixture", exits=(1,), state=State(shape=(64,)), process=process)
    return Sampler(FakeEngine((1,), predict), interface)
