"""Benchmarks of the runtime: what it costs beside the engines, in time and in memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from eecompile.programs.interface import Interface
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler

Row = dict[str, Any]
SideBySide = Callable[[dict[str, Callable[[], object]], int], dict[str, float]]
STEPS = 50
SOLVERS = ("ddim", "dpmpp-2m", "ddpm", "unipc")


class NoEngine(Engine):
    """Evaluates nothing: what is left of a step is the runtime."""

    precision, max_batch = "fp32", 64

    def __init__(self, interface: Interface) -> None:
        self.exits = interface.exits

    def evaluate(self, *_: Any) -> Any:
        raise AssertionError("it is bound")

    def bind(
        self, x: Any, t: Any, conditions: Any, outputs: Sequence[Any]
    ) -> Callable[[int], None]:
        for output in outputs:
            output[:] = 0.1
        return lambda depth: None


def overhead_rows(interface: Interface, rounds: int) -> Iterator[Row]:
    """Microseconds a step outside the engines."""
    sampler = Sampler(NoEngine(interface), interface)
    for solver in SOLVERS:
        for batch, guidance in ((1, 1.0), (1, 2.0), (16, 1.0), (16, 2.0)):
            program = sampler.program(solver, STEPS)
            seconds = []
            for _ in range(rounds * 5):
                started = time.perf_counter()
                sampler.sample(batch, solver=program, guidance=guidance)
                seconds.append(time.perf_counter() - started)
            yield {
                "solver": solver,
                "batch": batch,
                "guidance": guidance,
                "microseconds a step": 1e6 * statistics.median(seconds) / len(program.steps),
            }


MEMORY = """
import json, resource, sys
import eecompile
page = resource.getpagesize()
used = lambda: int(open("/proc/self/statm").read().split()[1]) * page / 2**20
import onnxruntime
before = used()
with eecompile.Sampler.open(sys.argv[1]) as sampler:
    for depth in sampler.interface.exits:
        sampler.sample(4, steps=2, schedule=depth)
    print(json.dumps({"whole": used(), "engines": used() - before}))
"""


def memory_rows(sets: Mapping[str, Mapping[str, Path]], rounds: int) -> Iterator[Row]:
    """Resident MiB of a process with every exit opened, and with the deepest alone.

    Args:
        sets: by network, engine sets by name, among them ``full depth alone``.
        rounds: processes of each.
    """
    for network, folders in sets.items():
        row: Row = {"network": network}
        for kind in ("whole", "engines"):
            found = {
                name: statistics.median(_child(MEMORY, folder)[kind] for _ in range(rounds))
                for name, folder in folders.items()
            }
            alone = found.pop("full depth alone")
            row[f"{kind}: full depth alone, MiB"] = alone
            row |= {f"{kind}: {name}, ratio": mib / alone for name, mib in found.items()}
        yield row


LEAK = """
import json, resource, sys
import eecompile
page = resource.getpagesize()
used = lambda: int(open("/proc/self/statm").read().split()[1]) * page / 2**20
with eecompile.Sampler.open(sys.argv[1]) as sampler:
    for _ in range(50):
        sampler.sample(2, steps=2, solver="ddpm")
    before = used()
    for _ in range(1000):
        sampler.sample(2, steps=2, solver="ddpm")
    print(json.dumps({"before": before, "after": used()}))
"""


def leak_row(folder: Path) -> Row:
    """Resident MiB before and after a thousand samplings, one after the other."""
    found = _child(LEAK, folder)
    return {
        "before, MiB": found["before"],
        "after 1,000, MiB": found["after"],
        "growth": found["after"] / found["before"] - 1,
    }


POOL = """
import json, statistics, sys, time
import eecompile
folder, shared, batch = sys.argv[1], sys.argv[2] == "1", int(sys.argv[3])
with eecompile.Sampler.open(folder, shared_pool=shared) as sampler:
    sampler.warmup(batch)
    seconds = []
    for _ in range(int(sys.argv[4])):
        started = time.perf_counter()
        sampler.sample(batch, steps=10)
        seconds.append(time.perf_counter() - started)
    print(json.dumps(1e3 * statistics.median(seconds) / 10))
"""


def pool_rows(folders: Mapping[str, Path], rounds: int) -> Iterator[Row]:
    """Milliseconds a step of the default schedule: a pool a session, and one for all."""
    for layout, folder in folders.items():
        for batch in (1, 16):
            turns = {"a pool a session": "0", "shared_pool": "1"}
            found: dict[str, list[float]] = {name: [] for name in turns}
            for _ in range(rounds):  # each in a process of its own, taking turns
                for name, flag in turns.items():
                    count = 60 if batch == 1 else 8
                    found[name].append(_child(POOL, folder, flag, batch, count))
            row = {name: statistics.median(values) for name, values in found.items()}
            ratio = row["a pool a session"] / row["shared_pool"]
            yield {"layout": layout, "batch": batch} | row | {"faster by": ratio}


def requests_rows(sampler: Sampler, side_by_side: SideBySide, rounds: int) -> Iterator[Row]:
    """Eight callers with two samples each: apart, in threads, and batched together."""
    from eecompile.runtime.request import SampleRequest

    program = sampler.program("ddim", 10)
    requests = [SampleRequest(n=2, seed=seed) for seed in range(8)]

    def one(request: SampleRequest) -> object:
        return sampler.sample_requests([request], solver=program)

    with ThreadPoolExecutor(8) as threads:
        medians = side_by_side(
            {
                "one after the other": lambda: [one(request) for request in requests],
                "eight threads": lambda: list(threads.map(one, requests)),
                "batched together": lambda: sampler.sample_requests(requests, solver=program),
            },
            rounds,
        )
    yield {f"{name}, ms": 1e3 * seconds for name, seconds in medians.items()}


def outside_rows(sampler: Sampler, rounds: int) -> Iterator[Row]:
    """Share of a sampling that is spent outside the engines, with the real engine."""
    for solver in SOLVERS:
        for batch in (1, 16):
            program = sampler.program(solver, STEPS)
            shares = []
            for _ in range(rounds):
                timed = _Timed(sampler.engine)
                alone = Sampler(timed, sampler.interface)
                alone.sample(
                    batch, solver=msgspec.structs.replace(program, steps=program.steps[:2])
                )
                timed.seconds, started = 0.0, time.perf_counter()
                alone.sample(batch, solver=program)
                shares.append(1 - timed.seconds / (time.perf_counter() - started))
            yield {"solver": solver, "batch": batch, "outside engines": statistics.median(shares)}


class _Timed(Engine):
    """Adds up the seconds that another engine's evaluations take."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.exits, self.seconds = engine, engine.exits, 0.0
        self.precision, self.max_batch = engine.precision, engine.max_batch

    def evaluate(self, *_: Any) -> Any:
        raise AssertionError("it is bound")

    def bind(self, x: Any, t: Any, conditions: Any, outputs: Any) -> Callable[[int], None]:
        run = self.engine.bind(x, t, conditions, outputs)

        def timed(depth: int) -> None:
            started = time.perf_counter()
            run(depth)
            self.seconds += time.perf_counter() - started

        return timed


def _child(code: str, *arguments: object) -> Any:
    """What ``code`` prints, as JSON, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True)
    return msgspec.json.decode(done.stdout)


def agreement_row(folder: Path) -> Row:
    """Whether eight threads at once give the arrays that one gives."""
    with Sampler.open(folder) as sampler:
        call = lambda seed: sampler.sample(2, seed=seed, steps=5, solver="ddpm")  # noqa: E731
        expected = [call(seed) for seed in range(8)]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(call, range(8)))
    same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    return {"eight threads give the arrays of one": same}
