"""Benchmarks of sampling and of the runtime: time and memory, in the engines and beside them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from bundles import TARGETS, bundles_of, engine_set
from children import medians_in_turns, opening, pooled
from results import RECIPE, Row, medians, milliseconds

from eecompile import Interface, Sampler, SampleRequest
from eecompile.compare.trained import TorchPeer, TrainedNetwork
from eecompile.runtime import Engine

STEPS = 50
SOLVERS = ("ddim", "dpmpp-2m", "ddpm", "unipc")


class NoEngine(Engine):
    """Evaluates nothing: what is left of a step is the runtime."""

    precision, max_batch = "fp32", 64

    def __init__(self, network: Interface | Engine) -> None:
        self.exits = network.exits

    def evaluate(self, *_: Any) -> Any:
        raise AssertionError("it is bound")

    def bind(
        self, x: Any, t: Any, conditions: Any, outputs: Sequence[Any], tensors: Any = None
    ) -> Callable[..., None]:
        for output in outputs:
            output[:] = 0.1
        return lambda depth, stretch=None: None


class TimedEngine(NoEngine):
    """Adds up the seconds that another engine's evaluations take."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.engine, self.seconds = engine, 0.0
        self.precision, self.max_batch = engine.precision, engine.max_batch
        self.spans = engine.spans

    def bind(self, *arrays: Any) -> Callable[..., None]:
        run = self.engine.bind(*arrays)

        def timed(*part: Any) -> None:
            started = time.perf_counter()
            run(*part)
            self.seconds += time.perf_counter() - started

        return timed


def torch_samplers(bundle: Path) -> dict[str, Sampler]:
    """Samplers of the shipped network in torch, by name."""
    network = TrainedNetwork(bundle, RECIPE)
    kinds = {"torch eager": False, "torch.compile": True}
    engines = {name: TorchPeer(network, compiled=compiled) for name, compiled in kinds.items()}
    return {name: Sampler(engine, network.interface) for name, engine in engines.items()}


def schedule_speedup(sampler: Sampler, schedule: str, batch: int, steps: int, rounds: int) -> Row:
    """The schedule's speed-up over full depth, against its share of block evaluations."""
    programs = {name: sampler.program("ddim", steps, name) for name in ("full", schedule)}
    actions = {n: partial(sampler.sample, batch, solver=p) for n, p in programs.items()}
    times = milliseconds(actions, rounds, per=steps)
    blocks = [step.chosen.blocks for step in programs[schedule].steps]
    promised = max(sampler.interface.exits) * len(blocks) / sum(blocks)
    speedup = times["full"] / times[schedule]
    return {
        "batch": batch,
        "schedule": schedule,
        "full_ms_per_step": times["full"],
        "schedule_ms_per_step": times[schedule],
        "promised": promised,
        "speedup": speedup,
        "of_promised": speedup / promised,
    }


@contextmanager
def open_samplers(folders: Mapping[str, Path]) -> Iterator[dict[str, Sampler]]:
    """Samplers of engine sets by name, closed in the end."""
    with ExitStack() as stack:
        yield {n: stack.enter_context(Sampler.open(folder)) for n, folder in folders.items()}


def step_row(
    samplers: Mapping[str, Sampler],
    batch: int,
    depth: int | str,
    rounds: int,
    unit: str = "",
) -> Row:
    """Milliseconds a step at a depth, by sampler; ``unit`` ends the names."""
    actions = {
        name: partial(sampler.sample, batch, solver="ddim", steps=5, schedule=depth, guidance=1.0)
        for name, sampler in samplers.items()
    }
    return milliseconds(actions, rounds, per=5, unit=unit)


def exit_rows(
    samplers: Mapping[str, Sampler], batches: Sequence[int], rounds: int, unit: str = ""
) -> Iterator[Row]:
    """The same at every exit."""
    exits = next(iter(samplers.values())).interface.exits
    for batch, depth in product(batches, exits):
        yield {"batch": batch, "depth": depth} | step_row(samplers, batch, depth, rounds, unit)


def overhead_rows(interface: Interface, rounds: int) -> Iterator[Row]:
    """Microseconds a step outside the engines."""
    sampler = Sampler(NoEngine(interface), interface)
    for solver in SOLVERS:
        for batch, guidance in ((1, 1.0), (1, 2.0), (16, 1.0), (16, 2.0)):
            program = sampler.program(solver, STEPS)
            sample = partial(sampler.sample, batch, solver=program, guidance=guidance)
            seconds = medians({"": sample}, rounds * 5)[""] / len(program.steps)
            row = {"solver": solver, "batch": batch, "guidance": guidance}
            yield row | {"microseconds a step": 1e6 * seconds}


def outside_rows(sampler: Sampler, rounds: int) -> Iterator[Row]:
    """Share of a sampling that is spent outside the engines, with the real engine."""
    for solver, batch in product(SOLVERS, (1, 16)):
        program, shares = sampler.program(solver, STEPS), []
        for _ in range(rounds):
            timed = TimedEngine(sampler.engine)
            alone = Sampler(timed, sampler.interface)
            alone.sample(batch, solver=msgspec.structs.replace(program, steps=program.steps[:2]))
            timed.seconds, started = 0.0, time.perf_counter()
            alone.sample(batch, solver=program)
            shares.append(1 - timed.seconds / (time.perf_counter() - started))
        yield {"solver": solver, "batch": batch, "outside engines": median(shares)}


def start_up(engines: Path) -> Row:
    """Seconds until the package is imported, and until an engine set is open.

    Each time in a new process that has imported nothing else.
    """
    code = (
        "import time; started = time.perf_counter(); import eecompile\n"
        f"imported = time.perf_counter(); eecompile.Sampler.open({str(engines)!r})\n"
        "print(imported - started, time.perf_counter() - started)"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code]).split() for _ in range(7)]
    imported, opened = (median(map(float, column)) for column in zip(*runs, strict=True))
    return {"import_seconds": imported, "open_seconds": opened}


def memory_rows(sets: Mapping[str, Mapping[str, Path]], rounds: int) -> Iterator[Row]:
    """Resident MiB with every exit opened and run, over that of the set ``full depth alone``."""
    for network, folders in sets.items():
        calls = {name: (opening, folder, "onnxruntime") for name, folder in folders.items()}
        used, row = medians_in_turns(calls, rounds), {"network": network}
        alone = used.pop("full depth alone")
        for kind in ("whole", "engines"):
            row[f"{kind}: full depth alone, MiB"] = alone[kind]
            row |= {f"{kind}: {n}, ratio": mib[kind] / alone[kind] for n, mib in used.items()}
        yield row


def pool_rows(folders: Mapping[str, Path], rounds: int) -> Iterator[Row]:
    """Milliseconds a step of the default schedule: a pool a session, and one for all."""
    for layout, folder in folders.items():
        for batch, count in ((1, 60), (16, 8)):
            calls = {
                name: (pooled, folder, shared, batch, count)
                for name, shared in (("a pool a session", False), ("shared_pool", True))
            }
            row = {name: made["ms"] for name, made in medians_in_turns(calls, rounds).items()}
            ratio = row["a pool a session"] / row["shared_pool"]
            yield {"layout": layout, "batch": batch} | row | {"faster by": ratio}


def requests_rows(sampler: Sampler, rounds: int) -> Iterator[Row]:
    """Eight callers with two samples each: apart, in threads, and batched together."""
    program = sampler.program("ddim", 10)
    requests = [SampleRequest(n=2, seed=seed) for seed in range(8)]

    def one(request: SampleRequest) -> object:
        return sampler.sample_requests([request], solver=program)

    with ThreadPoolExecutor(8) as threads:
        ways = {
            "one after the other": lambda: [one(request) for request in requests],
            "eight threads": lambda: list(threads.map(one, requests)),
            "batched together": lambda: sampler.sample_requests(requests, solver=program),
        }
        yield milliseconds(ways, rounds, unit=", ms")


def agreement_row(folder: Path) -> Row:
    """Whether eight threads at once give the arrays that one gives."""
    with Sampler.open(folder) as sampler:
        call = lambda seed: sampler.sample(2, seed=seed, steps=5, solver="ddpm")  # noqa: E731
        expected = [call(seed) for seed in range(8)]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(call, range(8)))
    same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    return {"eight threads give the arrays of one": same}


def sizes(folders: Mapping[str, Path]) -> Row:
    """Bytes of all exits over bytes of a full-depth-only export and its engine sets."""
    with TemporaryDirectory() as temporary:
        _, deepest = bundles_of(RECIPE, Path(temporary))
        alone = {"bundle": deepest}
        alone |= {n: engine_set(deepest, Path(temporary), target) for n, target in TARGETS.items()}
        return {name: _bytes(folders[name]) / _bytes(folder) for name, folder in alone.items()}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
