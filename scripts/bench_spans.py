"""Benchmarks of spans: their time beside full depth, what is kept of them, what cuts cost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec
import numpy as np
from bench_runtime import TimedEngine, open_samplers
from bundles import engine_set, random_recipe
from children import medians_in_turns, needed
from results import Row, medians

from eecompile import Program, Sampler
from eecompile.compiler import bundle_from_recipe
from eecompile.compiler.verify import random_inputs
from eecompile.measure.timing import interleaved
from eecompile.programs import Exit, Span
from eecompile.runtime.engines.device import DeviceEngine
from eecompile.runtime.trajectory.plan import Stretch
from eecompile.store.bundle import open_bundle, open_engine_set, write_manifest

TARGET = "cpu-chained"
EVALUATED = 3  # steps before every second one skips


def bundle_of(network: str, work: Path) -> Path:
    """A bundle of one of the networks with random weights."""
    recipe, _ = random_recipe(network, work)
    bundle_from_recipe(recipe, work / "bundle")
    return work / "bundle"


def without_cuts(bundle: Path, folder: Path) -> Path:
    """The same bundle, in which no blocks can be skipped."""
    shutil.copytree(bundle, folder)
    manifest = open_bundle(folder)
    interface = msgspec.structs.replace(manifest.interface, cuts=())
    write_manifest(folder, msgspec.structs.replace(manifest, interface=interface, spans=()))
    return folder


def every_second(sampler: Sampler, span: Span | None, steps: int) -> Program:
    """Full depth, with a span skipped in every second step once it has run often enough."""
    depth = sampler.interface.exits[-1]
    choices = iter(
        span if span and index >= EVALUATED and (index - EVALUATED) % 2 == 0 else Exit(depth)
        for index in range(steps)
    )
    return sampler.program("ddim", steps, "full").with_choices(lambda time: next(choices))


def middle_span(sampler: Sampler, order: int) -> Span:
    """The span whose length is nearest to half of the depth, and that stops last of these."""
    depth = sampler.interface.exits[-1]
    start, stop = min(
        sampler.interface.spans, key=lambda cuts: (abs(2 * (cuts[1] - cuts[0]) - depth), -cuts[1])
    )
    return Span(start, stop, order, depth)


def time_rows(
    network: str, engines: Path, batches: Sequence[int], steps: int, rounds: int
) -> Iterator[Row]:
    """Programs with spans beside full depth: time, the blocks that run, and what is between.

    The time that is promised is in proportion to the blocks. More is taken by what runs in every
    step, blocks skipped or not: what comes before the first block and after the last one, and the
    solver; by the sums of what spans add, on the host; and by the rest, such as what other work
    has left of the caches.
    """
    with Sampler.open(engines) as sampler:
        spans = {order: middle_span(sampler, order) for order in range(3)}
        full = every_second(sampler, None, steps)
        programs = {"full": full}
        programs |= {str(o): every_second(sampler, span, steps) for o, span in spans.items()}
        for batch in batches:
            inside, outside = _in_turns(sampler, programs, batch, rounds)
            ends = _share_of_ends(sampler, batch, rounds) * inside["full"]
            whole = inside["full"] + outside["full"]
            for order, span in spans.items():
                name = str(order)
                blocks = _blocks(programs[name]) / _blocks(full)
                taken = (inside[name] + outside[name]) / whole
                always = (1 - blocks) * (ends + outside["full"]) / whole
                sums = (outside[name] - outside["full"]) / whole
                yield {
                    "network": network,
                    "batch": batch,
                    "span": span.text,
                    "full depth, ms a step": 1e3 * whole / steps,
                    "share of blocks": blocks,
                    "share of time": taken,
                    "over": taken - blocks,
                    "over: runs in every step": always,
                    "over: sums on the host": sums,
                    "over: the rest": taken - blocks - always - sums,
                }


def _blocks(program: Program) -> int:
    return sum(step.chosen.blocks for step in program.steps)


def _in_turns(
    sampler: Sampler, programs: Mapping[str, Program], batch: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of a sampling with each program, in the engine and outside of it."""
    timed, given = TimedEngine(sampler.engine), needed(sampler.interface, batch)
    alone = Sampler(timed, sampler.interface)
    inside: dict[str, list[float]] = {name: [] for name in programs}
    outside: dict[str, list[float]] = {name: [] for name in programs}

    def sample(name: str) -> None:
        timed.seconds, started = 0.0, perf_counter()
        alone.sample(batch, solver=programs[name], guidance=1.0, **given)
        inside[name].append(timed.seconds)
        outside[name].append(perf_counter() - started - timed.seconds)

    interleaved({name: partial(sample, name) for name in programs}, rounds=rounds).checked()
    engine, host = (  # the first one of each warms up
        {name: median(taken[1:]) for name, taken in each.items()} for each in (inside, outside)
    )
    return engine, host


def _share_of_ends(sampler: Sampler, batch: int, rounds: int) -> float:
    """Which share of an evaluation of full depth what is before and after the blocks takes."""
    interface = sampler.interface
    given = random_inputs(interface, batch, 1.0, seed=0)
    x, t = given.pop("x"), given.pop("t")
    x, t = x.astype(np.float32), t.astype(np.float32)
    outputs = [np.empty_like(x) for _ in interface.outputs]
    run, depth = sampler.engine.bind(x, t, given, outputs), interface.exits[-1]
    first, last = Stretch(upto=0), Stretch(above=depth)
    run(depth)
    seconds = medians(
        {"ends": lambda: (run(depth, first), run(depth, last)), "all": lambda: run(depth)},
        rounds * 3,
    )
    return seconds["ends"] / seconds["all"]


def memory_rows(network: str, engines: Path, batch: int, rounds: int) -> Iterator[Row]:
    """MiB that each order of a span takes beyond order 0, and what the formula says."""
    calls = {str(order): (kept_memory, engines, order, batch) for order in range(3)}
    used = medians_in_turns(calls, rounds)
    with Sampler.open(engines) as sampler:
        span = middle_span(sampler, 0)
    (kept,) = (s for s in open_engine_set(engines).spans if (s.start, s.stop) == span.cuts)
    for order in (1, 2):
        yield {
            "network": network,
            "batch": batch,
            "span": msgspec.structs.replace(span, order=order).text,
            "kept beyond order 0, MiB": used[str(order)]["MiB"] - used["0"]["MiB"],
            "formula, MiB": order * batch * kept.bytes / 2**20,
        }


def kept_memory(engines: str, order: int, batch: int) -> Row:
    """Resident MiB of a process that has sampled with a span of that order; on a GPU, the GPU's."""
    from eecompile.measure.memory import on_gpus, resident

    with Sampler.open(engines) as sampler:
        program = every_second(sampler, middle_span(sampler, order), EVALUATED + 1)
        sampler.sample(batch, solver=program, guidance=1.0, **needed(sampler.interface, batch))
        return {"MiB": on_gpus() if isinstance(sampler.engine, DeviceEngine) else resident()}


def layout_rows(
    network: str, sets: Mapping[str, Path], batches: Sequence[int], rounds: int
) -> Iterator[Row]:
    """Milliseconds a step at every exit, for each engine set; one without cuts is the measure."""
    with open_samplers(sets) as samplers:
        exits = next(iter(samplers.values())).interface.exits
        for batch in batches:
            for depth in exits:
                actions = {
                    name: partial(
                        sampler.sample, batch, solver="ddim", steps=2, schedule=depth, guidance=1.0
                    )
                    for name, sampler in samplers.items()
                }
                seconds = medians(actions, rounds)
                row = {"network": network, "batch": batch, "depth": depth}
                row |= {f"{name}, ms a step": 500 * s for name, s in seconds.items()}
                alone = seconds["chained, no cuts"]
                row |= {
                    f"{name} over no cuts": s / alone
                    for name, s in seconds.items()
                    if name != "chained, no cuts"
                }
                yield row


def layouts_of(bundle: Path, work: Path) -> dict[str, Path]:
    """Engine sets of a bundle: chained with its cuts and without, and one engine an exit."""
    bare = without_cuts(bundle, work / "bundle without cuts")
    return {
        "chained": engine_set(bundle, work, TARGET),
        "chained, no cuts": engine_set(bare, work / "bare", TARGET),
        "per_exit": engine_set(bundle, work, "cpu"),
    }
