"""The parts of scripts/gpu: what each measures, by the command and by the benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from xml.etree import ElementTree

import msgspec
import numpy as np
from bundles import NETWORKS, changed_recipe
from gpu_sets import (
    BATCHES,
    DEVICE,
    LARGE,
    LONG,
    QUANTISED,
    ROUNDS,
    SERVED,
    SHIPPED,
    SMALL,
    STEPS,
    TARGETS,
    TOGETHER,
    WORK,
    best,
    built,
    bundle,
    recipe,
    running,
    sets,
    work,
)
from rehearsal import FEATURES, REHEARSES, pictures
from results import ROOT, Row, medians, run_eecompile

from eecompile import BackendError, Exit, Forecast, Program, Sampler, UsageError
from eecompile.measure.machine import gpus
from eecompile.store import open_bundle, open_engine_set
from eecompile.tune.probe import rms
from eecompile.tune.published import every_nth

LAST = 1500  # characters of a failure that are kept


def prepared(network: str) -> Iterator[Row]:
    """Exporting and building a network: seconds and bytes."""
    began = time.perf_counter()
    manifest = open_bundle(bundle(network))
    yield {"network": network, "export, s": time.perf_counter() - began, "bytes": _bytes(manifest)}
    began = time.perf_counter()
    for name, folder in sets(network).items():
        made = {"target": name, "build, s": time.perf_counter() - began}
        yield made | {"bytes": _bytes(open_engine_set(folder))}


def _bytes(manifest: Any) -> int:
    return sum(record.bytes for record in manifest.files)


def environment() -> Iterator[Row]:
    """The GPU, its driver, and what doctor says of this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "eecompile", "doctor", "--json"], capture_output=True, text=True
    )
    told = json.loads(done.stdout) if done.stdout else {"failed": done.stderr[-LAST:]}
    yield {"gpus": [msgspec.to_builtins(gpu) for gpu in gpus()], "doctor": told}


def plans(names: Iterable[str]) -> Iterator[Row]:
    """Building, opening and sampling the shipped network, for each of these targets."""
    for name in names:
        row: Row = {"target": name}
        try:
            there, began = (work(SHIPPED) / name).exists(), time.perf_counter()
            folder = built(SHIPPED, name)
            row["build, s"] = None if there else time.perf_counter() - began
            manifest = open_engine_set(folder)
            row |= {"verified": manifest.verified, "bytes": _bytes(manifest)}
            for which in ("first", "second"):
                began = time.perf_counter()
                with Sampler.open(folder) as sampler:
                    sampler.sample(4, steps=2)
                row[f"{which} opening and sampling, s"] = time.perf_counter() - began
        except BackendError as error:
            row["refused"] = str(error)
        yield row


def tests() -> Iterator[Row]:
    """The tests marked gpu: outcome and seconds of each."""
    wrong = 0
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest = ["scripts/rehearsal.py", "pytest"] if REHEARSES else ["-m", "pytest"]
        command = [*pytest, "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/runtime"]
        subprocess.run([sys.executable, *command, f"--junitxml={report}"], cwd=ROOT, check=False)
        for case in ElementTree.parse(report).iter("testcase"):
            yield {
                "test": case.get("name"),
                "seconds": float(case.get("time", 0)),
                "outcome": case[0].tag if len(case) else "passed",
                "why": (case[0].get("message") or "")[-LAST:] if len(case) else "",
            }
            wrong += len(case) > 0 and case[0].tag != "skipped"
    if wrong:
        sys.exit(f"{wrong} tests failed")


def comparison(names: Iterable[str]) -> Iterator[Row]:
    """Time, memory and error of every exit, beside ONNX Runtime on the CPU, by the command."""
    from eecompile.compare.report import read_report

    found = running(SHIPPED, names)
    if not found:
        return  # the plans' part says why
    engines = [part for folder in found.values() for part in ("--engines", folder)]
    output = work(SHIPPED) / f"comparison-{next(iter(found))}"
    run_eecompile(
        *("compare", bundle(SHIPPED), *engines, "-o", output, "--schedule", "full"),
        *("--batch", ",".join(map(str, BATCHES)), "--rounds", ROUNDS, "--steps", STEPS),
    )
    for candidate in read_report(output / "report.json").candidates:
        row = {"by": candidate.name, "GPU, MiB": candidate.gpu_mib, "skipped": candidate.skipped}
        for each in candidate.exits:
            times = {f"batch {t.batch}, ms": t.median for t in each.latencies}
            error = {"relative error": each.relative, "passed": each.passed}
            yield row | {"depth": each.depth} | error | times


def programs(sampler: Sampler, steps: int) -> Iterator[tuple[str, Program]]:
    """Programs of DDIM: full depth, exits, schedules, forecasts and, where there are any, spans."""
    from bench_spans import every_second, middle_span

    full = sampler.program("ddim", steps, "full")
    yield "full", full
    for depth in sampler.interface.exits[:-1]:
        yield f"exit {depth}", full.with_choices(lambda _, depth=depth: Exit(depth))
    for name in sampler.interface.schedules:
        if name != "full":
            yield name, sampler.program("ddim", steps, name)
    for interval in (2, 3):
        chosen = iter(every_nth(steps, full.steps[0].chosen, interval=interval))
        forecast = full.with_choices(lambda _, chosen=chosen: next(chosen))
        yield f"evaluated at every {interval}. step, forecasts", forecast
    for order in (0, 1, 2) if sampler.engine.spans else ():
        span = middle_span(sampler, order)
        yield f"every second step {span.text}", every_second(sampler, span, steps)


def trajectories(network: str, cases: Sequence[tuple[int, float]], host: bool) -> Iterator[Row]:
    """Choices in graphs of whole trajectories, by batch and guidance.

    Beside the same steps queued one by one, full depth (in its deviations) and, where ``host``,
    the same in FP32 on the CPU (likewise).
    """
    for name, folder in sets(network).items():
        with ExitStack() as stack:
            sampler, beside = stack.enter_context(Sampler.open(folder)), None
            if host:
                beside = stack.enter_context(Sampler.open(built(network, "cpu-chained")))
            for batch, guidance in cases:
                case = {"network": network, "target": name, "batch": batch, "guidance": guidance}
                for row in _trajectory_rows(sampler, beside, batch, guidance):
                    yield case | row


def _trajectory_rows(
    sampler: Sampler, host: Sampler | None, batch: int, guidance: float
) -> Iterator[Row]:
    every = dict(programs(sampler, LONG))
    given: Row = {"n": batch, "guidance": guidance}
    graphs: dict[str, Callable[[], Any]] = {
        name: partial(sampler.sample, solver=program, **given) for name, program in every.items()
    }
    first, samples = {}, {}
    for name, sample in graphs.items():
        began = time.perf_counter()
        sample()  # step by step, and recorded
        first[name], samples[name] = time.perf_counter() - began, sample()
    last = next(reversed(every))
    queued = {
        f"{name}, queued": partial(_queued, sampler, solver=every[name], **given)
        for name in ("full", last)
    }
    seconds, cost = medians(graphs | queued, ROUNDS), sampler.interface.cost
    scale = float(np.std(samples["full"])) or 1.0
    for name, program in every.items():
        row = {
            "choices": name,
            "graph, ms a step": 1e3 * seconds[name] / LONG,
            "of full depth's time": seconds[name] / seconds["full"],
            "of its blocks": sum(cost(step.chosen) for step in program.steps) / LONG,
            "distance to full depth": rms(samples[name] - samples["full"]) / scale,
            "first, s": first[name],
        }
        if f"{name}, queued" in seconds:
            row["queued, ms a step"] = 1e3 * seconds[f"{name}, queued"] / LONG
        if host is not None:
            right = host.sample(solver=program, **given)
            row["distance to the CPU"] = rms(samples[name] - right) / scale
        yield row


def _queued(sampler: Sampler, **given: Any) -> None:
    """Sample step by step, without a graph."""
    for _ in sampler.steps(**given):
        pass


def together() -> Iterator[Row]:
    """Two precisions in one graph: the first steps in FP32, then FP16, a forecast and a span."""
    from bench_spans import middle_span

    for names in TOGETHER:
        pair = running(SHIPPED, names)
        if len(pair) < len(names):
            continue
        with (
            Sampler.open(*pair.values()) as both,
            Sampler.open(pair[names[0]]) as alone,
            Sampler.open(built(SHIPPED, "cpu-chained")) as host,
        ):
            depth, span = both.interface.exits[-1], middle_span(both, 1)
            cycle = (Exit(depth), span, Exit(depth), Forecast(1))
            choices = {name: _mixed(cycle, depth, name) for name in ("", names[1])}
            made = {
                name: both.program("ddim", STEPS, "full").with_choices(each)
                for name, each in choices.items()
            }
            given: Row = {"n": BATCHES[-1], "solver": made[names[1]], "guidance": 1.0}
            graph = partial(both.sample, **given)
            apart = partial(alone.sample, **given | {"solver": made[""]})
            queued = partial(_queued, both, **given)
            actions = {"graph": graph, "queued": queued, "FP16 alone": apart}
            seconds = medians(actions, ROUNDS)
            right = host.sample(**given | {"solver": made[""]})
            yield {
                "engine sets": list(names),
                **{f"{name}, ms a step": 1e3 * s / STEPS for name, s in seconds.items()},
                "distance to the CPU": rms(graph() - right),
                "FP16 alone, distance to the CPU": rms(apart() - right),
            }


def _mixed(cycle: Sequence[Any], depth: int, second: str) -> Callable[[float], Any]:
    """Choices in turn, after three evaluations by the engine set of that name."""
    chosen = iter([Exit(depth, second)] * 3 + [*cycle] * STEPS)
    return lambda _: next(chosen)


def memory(network: str) -> Iterator[Row]:
    """GPU memory of what spans keep, beside what the formula says."""
    from bench_spans import memory_rows

    for folder in best(network).values():
        yield from memory_rows(network, folder, BATCHES[-1], 1)


def tuned(network: str, solver: str) -> Iterator[Row]:
    """``eecompile tune`` with exits, forecasts and spans: every program on the held-out samples."""
    from bench_schedules import SMALL as FEW
    from bench_schedules import front_rows

    for name, folder in best(network).items():
        place = work(network) / f"schedules-{solver}"
        few = () if network == SHIPPED else ("--seeds", 4, "--held-out", 8)
        run_eecompile(
            *("tune", folder, "-o", place, "--force", "--use", "exits,forecasts,spans"),
            *("--solver", solver, "--steps", STEPS, "--batch", BATCHES[-1]),
            *((*FEW, "--minutes", 0.02) if REHEARSES else ("--minutes", 0.5, *few)),
        )
        yield from ({"target": name} | row for row in front_rows(_front(place)))


def _front(folder: Path) -> Any:
    from eecompile.tune.report import read_front

    return read_front(folder / "front.json")


def peers(network: str, batch: int, compiled: bool = False) -> Iterator[Row]:
    """A network of random weights beside PyTorch, diffusers' loop and plain ONNX Runtime.

    At full depth, with the authors' schedule and, by eecompile alone, with that which the part
    'tune' found nearest to half of the time.
    """
    import bench_peers

    engines = sets(network)
    names = [n for n in open_bundle(bundle(network)).interface.schedules if n != "full"]
    others = [bench_peers.EAGER, bench_peers.COMPILED] if compiled else bench_peers.PEERS
    case = bench_peers.Case(
        recipe=recipe(network),
        bundle=bundle(network),
        schedule=names[0],
        batch=batch,
        steps=STEPS,
        device=DEVICE,
        peers=[n for n in others if compiled or n != bench_peers.COMPILED],
        half=engines.get("cuda-fp16"),
    )
    own = {}
    with suppress(UsageError):  # not tuned yet
        points = [p for p in _front(work(network) / "schedules-ddim").points if p.kind == "found"]
        own["found"] = min(points, key=lambda p: abs(p.predicted_share - 0.5)).schedule
    made = bench_peers.measured(case, engines, ROUNDS, own)
    yield from ({"network": network, "batch": batch} | row for row in made["rows"])


def caching(compiled: bool = False) -> Iterator[Row]:
    """Caches around the shipped network in PyTorch, diffusers' hooks among them, and forecasts."""
    import bench_caching
    import bench_peers

    kinds = [bench_peers.COMPILED if compiled else bench_peers.EAGER]
    case = bench_peers.Case(
        recipe(SHIPPED), bundle(SHIPPED), "full", BATCHES[-1], LONG, DEVICE, kinds
    )
    made = bench_caching.measured(case, "ddim", best(SHIPPED), min(ROUNDS, 5))
    yield from made["rows"]
    yield {"skipped": made["skipped"]}


def data() -> Path:
    """The folder of the pictures; in a rehearsal, of some that are none."""
    from training import DATA

    return pictures(WORK / "data") if REHEARSES else Path(os.environ.get("EECOMPILE_DATA", DATA))


def evaluation(count: int, work: Path) -> tuple[object, ...]:
    """Options of an evaluation of so many samples, kept in a folder; in a rehearsal, of few."""
    few = ("-n", 20, "--batch", 20, "--steps", 6, "--features", data() / FEATURES)
    return *(few if REHEARSES else ("-n", count, "--batch", 1000)), "--work", work


def quality() -> Iterator[Row]:
    """The Frechet distance of every schedule of the recipe, without guidance and with."""
    reference = data() / "t10k-images-idx3-ubyte.gz"
    for name, engines in best(SHIPPED).items():
        schedules = open_engine_set(engines).interface.schedules
        for guidance in (1,) if REHEARSES else (1, 2):
            output = WORK / "evaluation.json"
            run_eecompile(
                *("evaluate", engines, "-o", output, "--guidance", guidance),
                *("--reference", reference, *evaluation(5000, WORK / "kept")),
                *(f"--schedule={each}" for each in schedules),
            )
            for row in json.loads(output.read_text())["rows"]:
                yield {"target": name, "guidance": guidance} | row


def training(what: str) -> Iterator[Row]:
    """A network too large for a CPU: trained, fine-tuned to ``fast``, evaluated on both sides."""
    place = WORK / "training"
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "recipe.toml").exists():
        wide = {"patch = 4": "patch = 2", "width = 128": "width = 384", "heads = 4": "heads = 6"}
        changed_recipe("fashion-dit", NETWORKS["tiny"][1] if REHEARSES else wide, place)
    steps, batch = (4, 16) if REHEARSES else (2000, 256)
    size = ("--steps", steps, "--batch", batch, "--data", data())
    size += ("--no-compile",) if REHEARSES else ()
    runs = {"train": place / "run", "fine-tune": place / "fine-tuned"}
    if what == "train":
        _script("train", place / "recipe.toml", "--run", runs[what], *size)
    elif what == "fine-tune":
        weights = ("--checkpoint", runs["train"] / "weights.safetensors", "--schedule", "fast")
        _script("finetune", place / "recipe.toml", *weights, "--run", runs[what], *size)
    else:
        output = place / "quality.json"
        where = ("--run", runs["fine-tune"], "--data", data(), "--output", output)
        how = ("--target", "cpu" if REHEARSES else "cuda-fp16", *evaluation(2000, place / "kept"))
        _script("evaluate", "finetuned", place / "recipe.toml", *where, *how)
        found = json.loads(output.read_text())
        for name in ("before", "after"):
            yield from ({"when": name} | row for row in found[name]["rows"])
        return
    for line in (runs[what] / "log.jsonl").read_text().splitlines():
        yield json.loads(line)


def _script(name: str, *arguments: object) -> None:
    command = [sys.executable, ROOT / "scripts" / f"{name}.py", *arguments]
    if code := subprocess.run([*map(str, command)], check=False).returncode:
        sys.exit(code)


class Part(NamedTuple):
    """What gives the rows of a part, the seconds that it may take, and what it comes after."""

    rows: Callable[[], Iterator[Row]]
    seconds: int
    after: Sequence[str] = ("plans",)


SIZES = tuple(reversed(BATCHES))  # the largest batch first


def of_network(network: str, seconds: int) -> dict[str, Part]:
    """The parts of a network with random weights; PyTorch compiles for ``seconds`` at most."""
    build, tune = f"build-{network}", f"tune-{network}"
    cases = [(SIZES[0], 1.0)]
    return {
        build: Part(partial(prepared, network), 560),
        f"trajectories-{network}": Part(
            partial(trajectories, network, cases, host=False), 240, [build]
        ),
        f"memory-{network}": Part(partial(memory, network), 120, [build]),
        tune: Part(partial(tuned, network, "ddim"), 300, [build]),
        **{f"peers-{network}-{n}": Part(partial(peers, network, n), 200, [tune]) for n in SIZES},
        **{
            f"compiled-{network}-{n}": Part(partial(peers, network, n, True), seconds, [tune])
            for n in SIZES
        },
    }


PARTS: dict[str, Part] = {
    "environment": Part(environment, 60, ()),
    "plans": Part(partial(plans, [*TARGETS, "cpu-chained"]), 200, ()),
    "tests": Part(tests, 240, ()),
    "trajectories": Part(
        partial(trajectories, SHIPPED, [*((n, 1.0) for n in SIZES), (SIZES[0], 3.0)], host=True),
        240,
    ),
    "comparison": Part(partial(comparison, SERVED), 120),
    "together": Part(together, 90),
    "tune": Part(partial(tuned, SHIPPED, "dpmpp-2m"), 240),
    **of_network(SMALL, 300),
    "quantised": Part(partial(plans, QUANTISED), 300),
    "quantised-comparison": Part(partial(comparison, QUANTISED), 120, ["quantised"]),
    "quality": Part(quality, 300),
    "caching": Part(caching, 200),
    **of_network(LARGE, 500),
    "caching-compiled": Part(partial(caching, compiled=True), 400),
    "train": Part(partial(training, "train"), 300, ()),
    "fine-tune": Part(partial(training, "fine-tune"), 300, ["train"]),
    "fine-tuned": Part(partial(training, "fine-tuned"), 300, ["fine-tune"]),
}
