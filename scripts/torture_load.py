"""Load: 8 threads on one sampler, or 8 clients of a server; arrays, memory, handles.

Every array must be what the sampler gives alone, and the memory and the handles of the process
that samples must stay what they are once it is warm. The server is ``eecompile serve``, or the
service of docs/how-to/embed.md, in a process of its own.
"""

from __future__ import annotations

import faulthandler
import gc
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np
import safetensors.numpy
from children import Row, in_child
from results import ROOT
from torture_trial import Outcome

from eecompile import EecompileError, Sampler, SampleRequest
from eecompile.arrays import Array
from eecompile.measure.memory import resident
from eecompile.programs.solvers import FACTS
from eecompile.store.target import BatchProfile

Act = Callable[[float], tuple[int, str]]
"""Does one thing, drawn from a seed: how many samples were right, and what went wrong."""
SMALL = 6
TRIALS = 12
SAMPLES = (600, 100_000)
"""Of each of the first trials, which are the small form, and of each of the others."""
ALLOWED = (0.2, 0.01)
"""Growth of resident memory after the warm-up, for which 600 samples are too few."""
AT_ONCE = 8
SET_UPS = ("threads", "service", "server")
ENGINES = ("cpu", "cpu-openvino")
_ROUNDS, _WARM = 24, 18
_JOBS = 48
_LONGEST = 1800  # seconds; what takes longer hangs
_CHANGES = {
    "width = 128": "width = 16",
    "depth = 12": "depth = 4",
    "size = 28": "size = 12",
    r"shape = \[1, 28, 28\]": "shape = [1, 12, 12]",
    r"exits = \[.*\]": "exits = [1, 2, 4]",
    r"(?s)half = \[.*?\n\]": 'half = [4, "forecast1", 4, 4]',
    "ase = .*": 'ase = [4, "4/1-2:1", 4, 4]',
    "balanced = .*": "balanced = [2, 4, 4, 1]",
    "fast = .*": "fast = [4, 2, 1]",
    "steps = 50": "steps = 4",
}
_SCHEDULES = ("full", "half", "ase", "balanced", "fast", 2, [4, "forecast2", 4, 4, 4])
_REFUSED: tuple[dict[str, Any], ...] = (
    *({"solver": "eulers"}, {"steps": 0}, {"schedule": "none"}, {"schedule": [3]}, {"n": 0}),
    *({"label": 12}, {"label": [1, 2, 3]}, {"size": 3}, {"seed": -1}, {"guidance": float("nan")}),
    *({"guidance": 1e38}, {"guidance_interval": (800, 200)}, {"nulls": {"label": "none"}}),
)
_HEADERS = {"Content-Type": "application/json", "Accept": "application/x-safetensors"}
_REFUSED_BODIES = (
    *(b'{"label": 12}', b'{"n": 0}', b'{"n": 65}', b'{"seed": -1}', b"{", b"[]"),
    *(b'{"guidance": "much"}', b'{"guidance": 1e38}'),
)
_REFUSED_BY_SERVE = (
    *(b'{"n": 0}', b'{"n": 65}', b'{"seed": -1}', b'{"label": 3}', b'{"steps": 0}', b"[]"),
    *(b'{"guidance": "much"}', b'{"guidance": 1e38}', b'{"conditions": {"label": 12}}'),
    *(b'{"solver": "eulers"}', b'{"schedule": [3]}', b'{"guidance": NaN}', b"{", b"\xff"),
    b"[" * 9999,
)


def prepare(work: Path) -> None:
    """A small network with random weights, and its engine sets."""
    if all((work / name).exists() for name in ENGINES):
        return
    # What samples is not to hold the compiler's libraries in memory.
    from bundles import changed_recipe, target

    from eecompile.compiler import bundle_from_recipe, engine_set_from_bundle

    recipe, _ = changed_recipe("fashion-dit", _CHANGES, work)
    bundle_from_recipe(recipe, work / "bundle", force=True)
    for name in ENGINES:
        batch = BatchProfile(min=1, opt=4, max=8)
        made = msgspec.structs.replace(target(name, "chained"), batch=batch, threads=1)
        engine_set_from_bundle(work / "bundle", made, work / name)


def trial(work: Path, number: int, seed: int) -> Outcome:
    """A process under load: some samples, by turns with each set-up and each engine set."""
    set_up, engines = SET_UPS[number % 3], ENGINES[number // 3 % 2]
    samples, allowed = SAMPLES[number >= SMALL], ALLOWED[number >= SMALL]
    began, kind = time.perf_counter(), f"{samples:,} samples, {set_up}, {engines}"
    try:
        at = str(work / engines)
        row = in_child(under_load, set_up, at, samples, allowed, f"{seed}/{number}")
        ended, faults = f"memory {row['memory']:+.1%}, handles {row['handles']:+d}", row["faults"]
    except SystemExit as error:  # the process died, or took too long
        ended, faults = "died", [str(error)[-2000:]]
    return Outcome(number, kind, ended, "; ".join(faults[:5]), time.perf_counter() - began)


class Level(NamedTuple):
    """What a process has: MiB in memory, open files, threads."""

    memory: float
    handles: int
    threads: int


def level(process: int) -> Level:
    """What a process has now."""
    place = Path("/proc") / str(process)
    counts = (sum(1 for _ in (place / name).iterdir()) for name in ("fd", "task"))
    return Level(resident(process) or 0, *counts)


def under_load(set_up: str, engines: str, samples: int, allowed: float, seed: str) -> Row:
    """How a process does with so many samples: faults, and what grew once it was warm."""
    faulthandler.dump_traceback_later(_LONGEST, exit=True)
    draws, levels, faults = Random(seed), list[Level](), list[str]()
    load = {"threads": sampler_in_threads, "service": example_service, "server": own_server}[set_up]
    with load(Path(engines), draws) as (process, act), ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in range(_ROUNDS):
            left = samples / _ROUNDS
            while left > 0:
                seeds = [draws.random() for _ in range(8 * AT_ONCE)]
                for count, fault in threads.map(act, seeds):
                    left -= count
                    faults += [fault] if fault else []
            gc.collect()
            levels.append(settled(process, levels))
    pool = AT_ONCE if set_up == "server" else 0
    found, memory, handles = growth(levels, allowed, pool)
    return {"faults": faults + found, "memory": memory, "handles": handles}


def growth(levels: Sequence[Level], allowed: float, pool: int = 0) -> tuple[list[str], float, int]:
    """Faults, and by how much of itself memory, and how many handles, grew after the warm-up.

    A server's ``pool`` may have so many threads more, which come and go.
    """
    warm, most = levels[_WARM], Level(*map(max, zip(*levels[_WARM:], strict=True)))
    memory, handles, faults = most.memory / warm.memory - 1, most.handles - warm.handles, []
    if memory > allowed:
        faults.append(f"memory grew from {warm.memory:.1f} to {most.memory:.1f} MiB")
    if handles or most.threads > warm.threads + pool:
        faults.append(f"handles or threads grew: {warm} to {most}")
    return faults, memory, handles


def settled(process: int, before: Sequence[Level]) -> Level:
    """What a process has once it has closed what callers left, for which it gets some seconds."""
    until = time.monotonic() + 5
    while (now := level(process)) and before and time.monotonic() < until:
        if now.handles <= before[-1].handles and now.threads <= before[-1].threads:
            break
        time.sleep(0.05)
    return now


class Job(NamedTuple):
    """What is asked of a sampler, and what it gave alone."""

    requests: list[SampleRequest]
    options: dict[str, Any]
    expected: list[Array]


@contextmanager
def sampler_in_threads(engines: Path, draws: Random) -> Iterator[tuple[int, Act]]:
    """This process, and what its threads do with one sampler."""
    with Sampler.open(engines) as sampler:
        yield os.getpid(), partial(sample, sampler, list(jobs(sampler, draws)))


def jobs(sampler: Sampler, draws: Random, *, steady: bool = False) -> Iterator[Job]:
    """Requests of all kinds that the sampler takes.

    With random weights, solvers of several evaluations a step raise the last digits, in which
    batches of other sizes differ, to 1e-2. ``steady`` leaves these solvers out, and asks for one
    request at a time.
    """
    solvers = [name for name, facts in FACTS.items() if "diffusion" in facts.families]
    solvers += ["ddim:eta=0.5", "dpmpp-2m:grid=karras"]
    if steady:
        solvers = [name for name in solvers if not name.startswith(("heun", "dpm-solver"))]
    count = 0
    while count < _JOBS:
        options = {
            "solver": draws.choice(solvers),
            "steps": draws.randint(3, 6),
            "schedule": draws.choice(_SCHEDULES),
        }
        interval = draws.choice([None, (200.0, 800.0)])
        requests = [request(draws, interval) for _ in range(draws.choice([1, 1, 2, 3]))]
        requests = requests[:1] if steady else requests
        with suppress(EecompileError):  # a solver that needs more steps, or another schedule
            yield Job(requests, options, sampler.sample_requests(requests, **options))
            count += 1


def request(draws: Random, interval: tuple[float, float] | None) -> SampleRequest:
    """A request of up to 12 samples."""
    n = draws.choice([1, 1, 2, 3, 4, 6, 12])
    scales = [draws.choice([1.0, 2.0, 4.0]) for _ in range(n)]
    labels = [draws.randint(0, 9) for _ in range(n)]
    return SampleRequest(
        n=n,
        seed=draws.getrandbits(64),
        guidance=draws.choice([None, 2.0, scales]),
        guidance_interval=interval,
        conditions=draws.choice([{}, {"label": 3}, {"label": labels}]),
        first=draws.choice([0, 0, 5]),
    )


def sample(sampler: Sampler, known: Sequence[Job], seed: float) -> tuple[int, str]:
    """One thing that a thread does: how many samples were right, and what went wrong."""
    draws = Random(seed)
    job, how = draws.choice(known), draws.random()
    (first, *others), options = job.requests, job.options
    single = {} if others else asked(first)
    try:
        if how < 0.1:
            return refused(sampler, draws.choice(_REFUSED))
        if how < 0.2 and single:  # a caller that stops
            for _ in islice(sampler.steps(**single, **options), draws.randint(0, 3)):
                pass
            return 0, ""
        if how < 0.3 and single:
            *_, last = sampler.steps(**single, **options)
            arrays = [last.state]
        else:
            arrays = sampler.sample_requests(job.requests, **options)
    except Exception as error:
        return 0, f"{options}: {error!r}"
    if not all(map(np.array_equal, arrays, job.expected)):
        return 0, f"{options}: other samples than alone"
    return sum(map(len, arrays)), ""


def asked(request: SampleRequest) -> dict[str, Any]:
    """What :meth:`Sampler.steps` takes for a request."""
    names = ("n", "seed", "guidance", "guidance_interval", "first")
    return {name: getattr(request, name) for name in names} | dict(request.conditions)


def refused(sampler: Sampler, wrong: dict[str, Any]) -> tuple[int, str]:
    """A request that no sampler takes."""
    try:
        sampler.sample(**{"n": 2, "steps": 3} | wrong)
    except EecompileError:
        return 0, ""
    return 0, f"{wrong} was not refused"


class Call(NamedTuple):
    """A request of a server, and the samples that answer it."""

    body: bytes
    expected: Array


class Calls(NamedTuple):
    """What callers know of a server: requests, bodies that it refuses, and how it answers."""

    known: list[Call]
    refused: Sequence[bytes]
    read: Callable[[bytes], Any]


@contextmanager
def example_service(engines: Path, draws: Random) -> Iterator[tuple[int, Act]]:
    """The process of the service that the documents show, and what its callers do."""
    text = (ROOT / "docs" / "how-to" / "embed.md").read_text()
    (source,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    calls = Calls(list(plain_calls(engines, draws)), _REFUSED_BODIES, json.loads)
    command = ["uvicorn", "service:app", "--port", "0", "--no-access-log"]
    with serving(command, {"ENGINES": str(engines)}, {"service.py": source}) as (process, port):
        yield process, partial(call, port, calls)


@contextmanager
def own_server(engines: Path, draws: Random) -> Iterator[tuple[int, Act]]:
    """The process of ``eecompile serve``, and what its callers do."""
    calls = Calls(list(any_calls(engines, draws)), _REFUSED_BY_SERVE, samples_in)
    command = ["eecompile", "serve", str(engines), "--port", "0"]
    with serving(command, {}, {}) as (process, port):
        yield process, partial(call, port, calls)


@contextmanager
def serving(
    module: Sequence[str], variables: dict[str, str], files: dict[str, str]
) -> Iterator[tuple[int, int]]:
    """The process and the port of a server; it must end as asked, without a traceback."""
    with tempfile.TemporaryDirectory() as place, Path(place, "log").open("w+") as log:
        for name, text in files.items():
            Path(place, name).write_text(text)
        command = [sys.executable, "-m", *module]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
        server = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
        try:
            yield server.pid, _port(server, Path(log.name))
        finally:
            server.terminate()
            code = server.wait(60)
        said = Path(log.name).read_text()
        if code not in (0, -15) or "Traceback" in said:
            sys.exit(f"the server ended with {code}: {said[-1500:]}")


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    """The port at which a server listens, once it does."""
    while server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()):
            return int(found[1])
        time.sleep(0.1)
    sys.exit(f"the server did not start: {log.read_text()[-1500:]}")


def plain_calls(engines: Path, draws: Random) -> Iterator[Call]:
    """Requests of the example service, which takes few things."""
    with Sampler.open(engines) as sampler:
        for _ in range(_JOBS):
            body = {"n": draws.choice([1, 1, 2, 4, 12]), "seed": draws.getrandbits(53)}
            body |= {"label": draws.randint(0, 9), "guidance": draws.choice([1.0, 2.0, 4.0])}
            yield Call(json.dumps(body).encode(), sampler.sample(**body))


def any_calls(engines: Path, draws: Random) -> Iterator[Call]:
    """Requests of ``eecompile serve``: those that threads make of a sampler, one at a time."""
    with Sampler.open(engines) as sampler:
        for job in jobs(sampler, draws, steady=True):
            asked = job.requests[0]
            body = job.options | {"n": asked.n, "seed": asked.seed, "first": asked.first}
            body |= {"conditions": dict(asked.conditions), "guidance": asked.guidance}
            body |= {
                "guidance_interval": asked.guidance_interval,
                "priority": draws.choice([0, 0, 0.5]),
            }
            told = {name: value for name, value in body.items() if value is not None}
            yield Call(json.dumps(told).encode(), job.expected[0])


def samples_in(answer: bytes) -> Array:
    """The samples in an answer of ``eecompile serve``."""
    samples: Array = safetensors.numpy.load(answer)["samples"]
    return samples


def call(port: int, calls: Calls, seed: float) -> tuple[int, str]:
    """One thing that a caller does: how many samples were right, and what went wrong."""
    draws = Random(seed)
    (body, expected), how = draws.choice(calls.known), draws.random()
    wanted: tuple[int, ...] = (200,)
    if how < 0.1:
        wanted, body = (400, 422), draws.choice(calls.refused)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/samples", body, _HEADERS)
        if 0.1 <= how < 0.2:  # a caller that goes
            time.sleep(draws.random() / 20)
            return 0, ""
        response = connection.getresponse()
        status, answer = response.status, response.read()
    except Exception as error:
        return 0, f"{body[:200]!r}: {error!r}"
    finally:
        connection.close()
    if status not in wanted:
        return 0, f"{body[:200]!r}: {status} {answer[:200]!r}"
    if status != 200:
        return 0, ""
    # Requests that came together share batches: the last digits may be others.
    right = np.allclose(calls.read(answer), expected, atol=1e-4)
    return (len(expected), "") if right else (0, f"{body!r}: other samples than alone")
