"""Serving under load: requests that join, beside requests that are gathered and then run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from bench_runtime import NoEngine
from results import Row, medians

from eecompile import Interface, Sampler, SampleRequest
from eecompile.serve import Scheduler, rows_that_pay

LOAD = 0.7  # of the throughput
MODES = {"joining": True, "gather and run": False}
DATASET = 1024  # samples
QUEUE = 100_000  # samples: an open loop refuses nobody


def requests_of(count: int, seed: int) -> list[SampleRequest]:
    """Requests of 1 to 4 samples."""
    sizes = np.random.default_rng(seed).integers(1, 5, count)
    return [SampleRequest(n=int(n), seed=i) for i, n in enumerate(sizes)]


def throughput(sampler: Sampler, seconds: float, **way: Any) -> float:
    """Samples a second of a scheduler that is never idle: the better mode's."""
    found = []
    for joining in MODES.values():
        with Scheduler(sampler, joining=joining, max_waiting=QUEUE) as scheduler:
            scheduler.submit(SampleRequest(n=4), **way).result()
            started, done = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                requests = requests_of(24, done)
                for future in [scheduler.submit(request, **way) for request in requests]:
                    future.result()
                done += sum(request.n for request in requests)
            found.append(done / (time.perf_counter() - started))
    return max(found)


def loaded(sampler: Sampler, joining: bool, rate: float, seconds: float, **way: Any) -> Row:
    """Latencies of an open loop: requests come by Poisson, whether or not others have ended."""
    requests = requests_of(int(rate * seconds), 1)
    gaps = np.random.default_rng(2).exponential(1 / rate, len(requests))
    arrivals, taken = np.cumsum(gaps), np.empty(len(requests))
    rows = rows_that_pay(sampler) if joining else None
    with Scheduler(sampler, joining=joining, max_batch=rows, max_waiting=QUEUE) as scheduler:
        scheduler.submit(SampleRequest(n=4), **way).result()
        started, futures = time.perf_counter(), list[Future[Any]]()
        for index, (request, arrival) in enumerate(zip(requests, arrivals, strict=True)):
            time.sleep(max(0.0, started + arrival - time.perf_counter()))
            future = scheduler.submit(request, **way)
            future.add_done_callback(partial(_ended, taken, index, started + arrival))
            futures.append(future)
        for future in futures:
            future.result()
        whole = time.perf_counter() - started
    median, high = np.quantile(taken, [0.5, 0.95])
    made = sum(request.n for request in requests)
    return {"p50 s": float(median), "p95 s": float(high), "samples/s": made / whole}


def _ended(taken: Any, index: int, arrival: float, _: object) -> None:
    taken[index] = time.perf_counter() - arrival


def load_rows(samplers: Mapping[str, Sampler], seconds: float, **way: Any) -> Iterator[Row]:
    """Both modes at 70 % of the throughput, side by side."""
    for name, sampler in samplers.items():
        most = throughput(sampler, seconds / 3, **way)
        rate = LOAD * most / 2.5  # requests of 2.5 samples
        found = {
            mode: loaded(sampler, joining, rate, seconds, **way) for mode, joining in MODES.items()
        }
        ratio = found["joining"]["p95 s"] / found["gather and run"]["p95 s"]
        for mode, row in found.items():
            yield {"network": name, "mode": mode, "throughput": most} | row | {"p95 ratio": ratio}


def light_rows(samplers: Mapping[str, Sampler], rounds: int, **way: Any) -> Iterator[Row]:
    """A request alone through the scheduler, over a lone sample()."""
    for name, sampler in samplers.items():
        with Scheduler(sampler) as scheduler:
            request = SampleRequest(n=1)
            taken = medians(
                {
                    "sample": partial(sampler.sample, 1, **way),
                    "scheduler": lambda: scheduler.submit(request, **way).result(),  # noqa: B023
                },
                rounds,
            )
        yield {"network": name, **taken, "ratio": taken["scheduler"] / taken["sample"]}


def equality_row(sampler: Sampler, **way: Any) -> Row:
    """How far samples in company are from those made alone."""
    requests = requests_of(24, 3)
    with Scheduler(sampler) as scheduler:
        found = [f.result() for f in [scheduler.submit(each, **way) for each in requests]]
    alone = [sampler.sample_requests([each], **way)[0] for each in requests]
    far = [float(np.abs(a - b).max()) for a, b in zip(found, alone, strict=True)]
    return {"requests": len(far), "bit for bit": far.count(0.0), "largest difference": max(far)}


def overhead_rows(interface: Interface, rounds: int) -> Iterator[Row]:
    """Microseconds a step that the scheduler adds, where the engines take no time."""
    for together in (1, 4, 16):
        sampler = Sampler(NoEngine(interface), interface)
        program = sampler.program("ddim", 50, "full")
        requests = [SampleRequest(seed=seed) for seed in range(together)]
        with Scheduler(sampler) as scheduler:

            def joined(scheduler: Scheduler = scheduler, wanted: Any = requests) -> None:
                futures = [scheduler.submit(each, solver=program) for each in wanted]  # noqa: B023
                for future in futures:
                    future.result()

            def alone(sampler: Sampler = sampler, wanted: Any = requests) -> None:
                for each in wanted:
                    sampler.sample_requests([each], solver=program)  # noqa: B023

            taken = medians({"joined": joined, "alone": alone}, rounds)
        steps = 50 * together
        extra = {f"{name} us a step": 1e6 * value / steps for name, value in taken.items()}
        added = 1e6 * (taken["joined"] - taken["alone"]) / steps
        yield {"requests": together, **extra, "scheduler us a step": added}


def ray_rows(engines: Path, rounds: int) -> Iterator[Row]:
    """Samples a second of a data set made by one worker of Ray, and by two; none without Ray."""
    if find_spec("ray") is None:
        print("Ray is not installed (extra ray): left out")
        return
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # of the workers, too
    import ray

    from eecompile.serve.ray import sample_dataset

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init("local", num_cpus=2, _node_ip_address="127.0.0.1", **quiet)
    request = SampleRequest(n=DATASET)

    def made(workers: int) -> None:
        with TemporaryDirectory() as temporary:
            way: dict[str, Any] = {"solver": "ddim", "steps": 20, "schedule": "full", "block": 64}
            sample_dataset(engines, request, Path(temporary) / "set", workers=workers, **way)

    taken = medians({workers: partial(made, workers) for workers in (1, 2)}, rounds)
    ray.shutdown()
    for workers, seconds in taken.items():
        yield {
            "workers": workers,
            "samples/s": DATASET / seconds,
            "over one": taken[1] / seconds,
        }


def http_row(engines: Path, rounds: int) -> Row:
    """Milliseconds of a request: through HTTP, less the scheduler's, and of /health alone."""
    command = [sys.executable, "-m", "eecompile", "serve", str(engines), "--port", "0", "--json"]
    body = {"steps": 2, "schedule": "full", "solver": "ddim"}
    with subprocess.Popen([*command, "-q"], stdout=subprocess.PIPE) as process:
        try:
            url = _url(process)
            with (
                httpx.Client(base_url=url, timeout=60) as client,
                Sampler.open(engines) as sampler,
                Scheduler(sampler) as scheduler,
            ):
                request = SampleRequest()
                taken = medians(
                    {
                        "http": lambda: client.post("/samples", json=body).raise_for_status(),
                        "scheduler": lambda: scheduler.submit(request, **body).result(),
                        "health": lambda: client.get("/health").raise_for_status(),
                    },
                    rounds,
                )
        finally:
            process.terminate()
    row = {f"{name} ms": 1e3 * value for name, value in taken.items()}
    return row | {"added ms": 1e3 * (taken["http"] - taken["scheduler"] - taken["health"])}


def _url(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    lines = b""
    while b"}" not in lines:
        line = process.stdout.readline()
        if not line:
            raise SystemExit("error: the server ended before it served")
        lines += line
    return str(json.loads(lines)["url"])
