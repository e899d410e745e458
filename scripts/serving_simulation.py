"""Replicas of a server under load, simulated: what a scheduler and more machines do to latency.

Time is what evaluations take, by choice and rows, as they were measured; everything else is free.
A replica does what eecompile.serve does: joining forms a batch for each evaluation, of the oldest
request's choice or of one that fills it over twice as well; gathering runs what waits to the end.
"""

from __future__ import annotations

import heapq
import json
import time
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from results import Row

from eecompile import Sampler

Costs = Mapping[str, Mapping[int, float]]
"""Seconds of an evaluation, by choice and rows."""
Arrivals = Literal["poisson", "bursts"]
GATHER = 0  # rows of a batch that stands for gather-and-run
ALL = 64  # rows of the largest batch
SIZES = (1, 2, 4, 8, 16, 32, ALL)
LOADS = (0.3, 0.7, 0.9)  # of what one replica can do
SAMPLES = 2.5  # of a request, in the mean


@dataclass(frozen=True)
class Load:
    """What comes in.

    Attributes:
        rate: requests a second.
        program: the choices of a request's steps that evaluate.
        arrivals: Poisson, or bursts: half of the time four fifths of the requests come.
        most: samples of a request, uniformly from 1.
        count: of requests.
        seed: of their times and sizes.
    """

    rate: float
    program: Sequence[str]
    arrivals: Arrivals = "poisson"
    most: int = 4
    count: int = 4000
    seed: int = 0

    def requests(self) -> list[Request]:
        rng = np.random.default_rng(self.seed)
        sizes = rng.integers(1, self.most + 1, self.count)
        if self.arrivals == "poisson":
            times = np.cumsum(rng.exponential(1 / self.rate, self.count))
        else:
            times = _bursts(rng, self.rate, self.count)
        return [Request(float(t), int(n)) for t, n in zip(times, sizes, strict=True)]


@dataclass
class Request:
    """A request on its way."""

    came: float
    n: int
    step: int = 0
    ended: float = 0.0
    overtaken: int = 0

    def __lt__(self, other: Request) -> bool:
        return self.came < other.came


@dataclass
class Replica:
    """One server.

    Attributes:
        costs: of its evaluations.
        program: of all requests.
        rows: of a batch at most; GATHER gathers.
        largest: rows of a batch that is gathered, and half of what may be on its way.
    """

    costs: Costs
    program: Sequence[str]
    rows: int
    largest: int = ALL
    free_at: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    active: list[Request] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """What is there to do, for whoever chooses a replica."""
        return sum(each.n for each in (*self.waiting, *self.active))

    def turn(self, now: float) -> None:
        """Make one evaluation, or one whole gathered batch, from ``now`` on."""
        self.free_at = now + (self._gathered(now) if self.rows == GATHER else self._joined(now))

    def _gathered(self, now: float) -> float:
        batch, rows = [self.waiting.popleft()], 0
        rows = batch[0].n
        while self.waiting and rows + self.waiting[0].n <= self.largest:
            batch.append(self.waiting.popleft())
            rows += batch[-1].n
        taken = sum(seconds(self.costs, choice, rows) for choice in self.program)
        for each in batch:
            each.ended = now + taken
        return taken

    def _joined(self, now: float) -> float:
        room = 2 * self.largest - sum(each.n for each in self.active)
        while self.waiting and room > 0:
            insort(self.active, self.waiting.popleft())
            room -= self.active[-1].n
        choice = self._choice()
        batch, rows = list[Request](), 0
        for each in self.active:
            if self.program[each.step] != choice or (batch and rows + each.n > self.rows):
                continue
            batch.append(each)
            rows += each.n
        taken = seconds(self.costs, choice, rows)
        for each in batch:
            each.step += 1
            if each.step == len(self.program):
                each.ended = now + taken
                self.active.remove(each)
        return taken

    def _choice(self) -> str:
        """The oldest request's, or one where over twice as many rows wait, eight times at most."""
        oldest = self.active[0]
        own, waits = self.program[oldest.step], Counter[str]()
        for each in self.active:
            waits[self.program[each.step]] += each.n
        fuller = max(waits, key=lambda choice: min(waits[choice], self.rows))
        overtakes = min(waits[fuller], self.rows) > 2 * min(waits[own], self.rows)
        if overtakes and oldest.overtaken < 8:
            oldest.overtaken += 1
            return fuller
        oldest.overtaken = 0
        return own


def simulate(load: Load, costs: Costs, rows: int, replicas: int = 1) -> list[float]:
    """Seconds that each request takes, where each goes to the replica with least to do."""
    requests = load.requests()
    servers = [Replica(costs, load.program, rows) for _ in range(replicas)]
    busy: list[tuple[float, int]] = []  # when a replica is free again, and which
    idle = set(range(replicas))
    arriving = deque(requests)
    while arriving or busy:
        if arriving and (not busy or arriving[0].came <= busy[0][0]):
            request = arriving.popleft()
            now, index = request.came, min(range(replicas), key=lambda i: servers[i].samples)
            servers[index].waiting.append(request)
            wakes = index in idle
        else:
            now, index = heapq.heappop(busy)
            wakes = bool(servers[index].waiting or servers[index].active)
            idle.add(index)
        if wakes:
            idle.discard(index)
            servers[index].turn(now)
            heapq.heappush(busy, (servers[index].free_at, index))
    return [each.ended - each.came for each in requests]


def seconds(costs: Costs, choice: str, rows: int) -> float:
    """Of an evaluation: between sizes that were measured, straight; beyond them, in proportion."""
    known = costs[choice]
    sizes = sorted(known)
    place = bisect_left(sizes, rows)
    if place == len(sizes):
        return known[sizes[-1]] * rows / sizes[-1]
    high = sizes[place]
    if high == rows or not place:
        return known[high]
    low = sizes[place - 1]
    share = (rows - low) / (high - low)
    return known[low] * (1 - share) + known[high] * share


def capacity(costs: Costs, program: Sequence[str]) -> float:
    """Samples a second of one replica that is never idle, at the batch that suits it best."""
    return max(rows / sum(seconds(costs, choice, rows) for choice in program) for rows in SIZES)


def rows_that_pay(costs: Costs, program: Sequence[str]) -> int:
    """As eecompile.serve.rows_that_pay finds it, of the deepest choice."""
    deepest = max(program, key=int)
    each = {rows: seconds(costs, deepest, rows) / rows for rows in SIZES}
    return min(rows for rows in SIZES if each[rows] <= 1.025 * min(each.values()))


def read_costs(path: Path) -> dict[str, Costs]:
    """Of a JSON file: by name, seconds of each choice by rows."""
    told = json.loads(path.read_text("utf-8"))
    return {
        name: {choice: {int(n): float(s) for n, s in rows.items()} for choice, rows in by.items()}
        for name, by in told.items()
    }


def measured_costs(sampler: Sampler, rounds: int = 3) -> Costs:
    """Seconds of each exit, the least of some rounds."""
    interface, engine = sampler.interface, sampler.engine
    found: dict[str, dict[int, float]] = {str(depth): {} for depth in interface.exits}
    for depth in interface.exits:
        for rows in (size for size in SIZES if size <= engine.max_batch):
            x = np.zeros((rows, *interface.state.shape), np.float32)
            t = np.full(rows, 500, np.float32)
            given = {
                name: np.zeros((rows, *spec.shape), spec.dtype)
                for name, spec in interface.conditions.items()
            }
            taken = []
            for _ in range(rounds):
                started = time.perf_counter()
                engine.evaluate(depth, x, t, given)
                taken.append(time.perf_counter() - started)
            found[str(depth)][rows] = min(taken)
    return found


def evaluated(sampler: Sampler, schedule: str) -> list[str]:
    """The exits that a sampling with a schedule evaluates, in their order."""
    steps = sampler.program(None, None, schedule).steps
    return [step.chosen.text for step in steps if step.chosen.text.isdigit()]


def load_rows(
    name: str, costs: Costs, programs: Mapping[str, Sequence[str]], count: int
) -> Iterator[Row]:
    """One replica: latency of joining, over that of gathering, by schedule, arrivals and load."""
    for schedule, program in programs.items():
        pays, most = rows_that_pay(costs, program), capacity(costs, program)
        for arrivals in get_args(Arrivals):
            for share in LOADS:
                load = Load(share * most / SAMPLES, program, arrivals, count=count)
                gathered = np.quantile(simulate(load, costs, GATHER), [0.5, 0.95])
                row: Row = {
                    "machine": name,
                    "schedule": schedule,
                    "arrivals": arrivals,
                    "load": share,
                    "gathered p95 s": float(gathered[1]),
                    "rows that pay": pays,
                }
                for title, rows in (("all rows", ALL), ("rows that pay", pays)):
                    ratios = np.quantile(simulate(load, costs, rows), [0.5, 0.95]) / gathered
                    row |= {f"{title}, p50": float(ratios[0]), f"{title}, p95": float(ratios[1])}
                yield row


def plan_rows(
    name: str,
    costs: Costs,
    programs: Mapping[str, Sequence[str]],
    requests: Sequence[float],
    seconds_allowed: float,
    count: int,
) -> Iterator[Row]:
    """Replicas that a rate of requests needs at a p95 latency, joining or gathering."""
    for rate in requests:
        for arrivals in get_args(Arrivals):
            row: Row = {"machine": name, "requests/s": rate, "arrivals": arrivals}
            row["p95 s at most"] = seconds_allowed
            for schedule, program in programs.items():
                rows, most = rows_that_pay(costs, program), capacity(costs, program)
                replicas = max(1, int(rate * SAMPLES / most))
                load = Load(rate, program, arrivals, count=count)
                while (
                    min(
                        np.quantile(simulate(load, costs, mode, replicas), 0.95)
                        for mode in (rows, GATHER)
                    )
                    > seconds_allowed
                ):
                    replicas += max(1, replicas // 16)
                row[f"{schedule}: replicas"] = replicas
            yield row


def _bursts(rng: np.random.Generator, rate: float, count: int) -> np.ndarray:
    """Times of requests that come in bursts: spells of ten seconds or so, of 1.6 and 0.4 rates."""
    times, now, high = list[float](), 0.0, True
    while len(times) < count:
        end = now + rng.exponential(10.0)
        while (now := now + rng.exponential(1 / (rate * (1.6 if high else 0.4)))) < end:
            times.append(now)
        now, high = end, not high
    return np.array(times[:count])
