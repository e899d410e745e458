"""What only a GPU can settle, most valuable first; gpu-NAME.json after every part."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import typer
from bundles import engine_set, random_recipe, target
from results import BENCHMARKS, OUT, RECIPE, ROOT, Results, Row, facts, main, medians, run_eecompile
from training import DATA

from eecompile import BackendError, Exit, Program, Sampler
from eecompile.compiler import bundle_from_recipe, engine_set_from_bundle
from eecompile.measure.machine import gpus
from eecompile.store import open_bundle, open_engine_set
from eecompile.tune.probe import rms
from eecompile.tune.published import every_nth

WORK = OUT / "gpu"
STEPS, BATCHES, LONG, ROUNDS = (20, (1, 4, 16), 50, 9) if gpus() else (4, (1,), 8, 1)
_LAST = 1500  # characters of a failure that are kept


def environment() -> Row:
    """The GPU, its driver, and what doctor says of this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "eecompile", "doctor", "--json"], capture_output=True, text=True
    )
    told = json.loads(done.stdout) if done.stdout else {"failed": done.stderr[-_LAST:]}
    return {"gpus": [msgspec.to_builtins(gpu) for gpu in gpus()], "doctor": told}


def tests() -> list[Row]:
    """The tests marked gpu: outcome and seconds of each."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/runtime"]
        subprocess.run([sys.executable, *command, f"--junitxml={report}"], cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    return [
        {
            "test": case.get("name"),
            "seconds": float(case.get("time", 0)),
            "outcome": case[0].tag if len(case) else "passed",
            "why": (case[0].get("message") or "")[-_LAST:] if len(case) else "",
        }
        for case in cases
    ]


def _shipped() -> Path:
    if not (OUT / "bundle").is_dir():
        bundle_from_recipe(RECIPE, OUT / "bundle")
    return OUT / "bundle"


def _targets() -> list[str]:
    """Targets that are tried, with an option that is set, if any; to rehearse, the CPU's."""
    names = ["cuda-fp16", "rtx-fp16", "rtx-fp16 current_gpu", "rtx-fp32", "tensorrt-fp16"]
    return names if gpus() else ["cpu", "tensorrt-fp16"]


def _built(bundle: Path, name: str) -> Path:
    """The engine set of a bundle for a target, beside the bundle."""
    kind, _, option = name.partition(" ")
    if not option:
        return engine_set(bundle, bundle.parent, kind)
    options: dict[str, Any] = {option: True}
    changed = msgspec.structs.replace(target(kind), name=f"{kind}-{option}", options=options)
    engine_set_from_bundle(bundle, changed, bundle.parent / changed.name)
    return bundle.parent / changed.name


def _running() -> list[str]:
    """Of the targets, those that run here."""
    found = []
    for name in _targets():
        with suppress(BackendError):
            Sampler.open(_built(_shipped(), name)).close()
            found.append(name)
    return found


def plans() -> list[Row]:
    """Building, opening and evaluating the shipped network, beside ONNX Runtime on the CPU."""
    bundle, rows = _shipped(), []
    with Sampler.open(engine_set(bundle, OUT, "cpu")) as reference:
        for name in _targets():
            row: Row = {"target": name}
            try:
                _measure_plans(row, bundle, reference)
            except BackendError as error:
                row["refused"] = str(error)
            rows.append(row)
    return rows


def _measure_plans(row: Row, bundle: Path, reference: Sampler) -> None:
    began = time.perf_counter()
    folder = _built(bundle, row["target"])
    row["build, s"] = time.perf_counter() - began
    manifest = open_engine_set(folder)
    row |= {"verified": manifest.verified, "bytes": sum(file.bytes for file in manifest.files)}
    if manifest.target.backend == "tensorrt-rtx":
        row["validity"] = [_validity(folder / each.file) for each in manifest.segments]
    for which in ("first", "second"):
        began = time.perf_counter()
        with Sampler.open(folder) as sampler:
            sampler.sample(4, steps=2)
            row[f"{which} opening and sampling, s"] = time.perf_counter() - began
            if which == "second":
                row |= _distances(sampler, reference)


def _validity(plan: Path) -> str:
    """What TensorRT-RTX says of a plan on this GPU."""
    library = import_module("tensorrt_rtx")
    runtime = library.Runtime(library.Logger(library.Logger.ERROR))
    return str(runtime.get_engine_validity(plan.read_bytes())[0]).rpartition(".")[2]


def _distances(sampler: Sampler, reference: Sampler) -> Row:
    """Root mean square of the samples' difference to FP32 on the CPU, by solver and guidance."""
    found: Row = {}
    for solver in ("ddim", "ddpm", "dpmpp-2m"):
        for guidance in (1.0, 3.0):
            given: Any = {"n": 4, "steps": 10, "solver": solver, "seed": 3, "guidance": guidance}
            difference = sampler.sample(**given) - reference.sample(**given)
            found[f"{solver}, guidance {guidance:g}"] = rms(difference)
    return found


def trajectories() -> list[Row]:
    """Graphs of whole trajectories against steps queued one by one, ms a step by batch."""
    rows = []
    for name in _running():
        with Sampler.open(_built(_shipped(), name)) as sampler:
            for batch in BATCHES:
                given: dict[str, Any] = {"n": batch, "steps": STEPS, "schedule": "full"}
                began = time.perf_counter()
                sampler.sample(**given)
                row = {"target": name, "batch": batch, "first, s": time.perf_counter() - began}
                steps = partial(sampler.steps, **given)
                graph = partial(sampler.sample, **given)
                seconds = medians({"graph": graph, "steps": lambda s=steps: [*s()]}, ROUNDS)
                row |= {f"{key}, ms a step": 1e3 * s / STEPS for key, s in seconds.items()}
                rows.append(row)
    return rows


def _programs(sampler: Sampler, solver: str, steps: int) -> Iterator[tuple[str, Program]]:
    full = sampler.program(solver, steps, "full")
    yield "full", full
    for depth in sampler.interface.exits[:-1]:
        yield f"exit {depth}", full.with_choices(lambda _, depth=depth: Exit(depth))
    for name in sampler.interface.schedules:
        if name != "full":
            yield name, sampler.program(solver, steps, name)
    for interval in (2, 3):
        choices = every_nth(steps, full.steps[0].chosen, interval=interval)
        chosen = {step.moment: each for step, each in zip(full.steps, choices, strict=True)}
        forecast = full.with_choices(chosen.__getitem__)
        yield f"evaluated at every {interval}. step, forecasts", forecast


def choices(bundle: Path | None = None, batch: int = BATCHES[-1]) -> list[Row]:
    """Exits, schedules and forecasts: ms a step, share of full depth's time, distance to it."""
    rows = []
    for name in _running()[:1]:
        folder = _built(bundle or _shipped(), name)
        with Sampler.open(folder) as sampler:
            programs = dict(_programs(sampler, "ddim", LONG))
            samples = {
                n: sampler.sample(batch, solver=p, guidance=1.0) for n, p in programs.items()
            }
            actions: dict[str, Callable[[], object]] = {
                n: partial(sampler.sample, batch, solver=p, guidance=1.0)
                for n, p in programs.items()
            }
            seconds, cost = medians(actions, ROUNDS), sampler.interface.cost
            scale = float(np.std(samples["full"])) or 1.0
            for each, program in programs.items():
                difference = samples[each] - samples["full"]
                rows.append(
                    {
                        "target": name,
                        "batch": batch,
                        "choices": each,
                        "ms a step": 1e3 * seconds[each] / LONG,
                        "of full depth's time": seconds[each] / seconds["full"],
                        "of its blocks": sum(cost(s.chosen) for s in program.steps) / LONG,
                        "distance over deviation": rms(difference) / scale,
                    }
                )
    return rows


def prepared(name: str) -> Path:
    """The bundle of a network of random weights, and its engine set for the first target."""
    work = WORK / re.sub(r"\W", "-", name)
    bundle = work / "bundle"
    if not bundle.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        recipe, _ = random_recipe(name, work)
        bundle_from_recipe(recipe, bundle)
    _built(bundle, _targets()[0])
    return bundle


def _large(name: str, batch: int) -> list[Row]:
    """The same for a network of random weights: time is what counts."""
    return [{"network": name} | row for row in choices(prepared(name), batch)]


def memory() -> list[Row]:
    """GPU memory in use after opening and sampling, MiB, over what was used before."""
    rows = []
    for name in _running()[:1]:
        folder, before = _built(_shipped(), name), _used()
        with Sampler.open(folder) as sampler:
            opened = _used() - before
            for batch in BATCHES:
                sampler.sample(batch, steps=STEPS)
            rows.append({"target": name, "opened": opened, "sampled": _used() - before})
    return rows


def _used() -> float:
    if not gpus():
        return 0.0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, capture_output=True, text=True).stdout.split()[0])


def peers(name: str, exits: bool, rounds: int = 7) -> Row:
    """A network of random weights beside PyTorch, plain ONNX Runtime and diffusers' loop."""
    import bench_peers

    bundle = prepared(name)
    interface = open_bundle(bundle).interface
    schedule = next(n for n in interface.schedules if n != "full") if exits else "full"
    device, steps = ("cuda", STEPS) if gpus() else ("cpu", 2)
    recipe = bundle.parent / "recipe.toml"
    case = bench_peers.Case(recipe, bundle, schedule, BATCHES[-1], steps, device)
    engines = {each: _built(bundle, each) for each in _running()[:1]}
    return {"network": name, "batch": case.batch} | bench_peers.measured(case, engines, rounds)


def caching() -> Row:
    """Caches around the shipped network in PyTorch, and forecasts."""
    import bench_caching
    import bench_peers

    device, bundle = "cuda" if gpus() else "cpu", _shipped()
    case = bench_peers.Case(RECIPE, bundle, "full", BATCHES[-1], LONG, device)
    engines = {each: _built(bundle, each) for each in _running()[:1]}
    return bench_caching.measured(case, "ddim", engines, ROUNDS)


def quality() -> list[Row]:
    """The Frechet distance of every schedule, of 10,000 samples, without guidance and with."""
    data = Path(os.environ.get("EECOMPILE_DATA", DATA)) / "t10k-images-idx3-ubyte.gz"
    rows, engines = [], _built(_shipped(), _running()[0])
    schedules = [f"--schedule={each}" for each in open_engine_set(engines).interface.schedules]
    for guidance in (1, 2):
        output = WORK / "evaluation.json"
        count = ("-n", 10_000 if gpus() else 20, "--batch", 1024, "--work", WORK / "evaluate")
        arguments = (*count, "--guidance", guidance, *schedules, "--reference", data)
        run_eecompile("evaluate", engines, *arguments, "-o", output)
        rows.append({"guidance": guidance} | json.loads(output.read_text()))
    return rows


# Parts, the most valuable first, and the seconds that each may take.
PARTS: dict[str, tuple[Callable[[], object], int]] = {
    "environment": (environment, 60),
    "plans": (plans, 150),
    "tests": (tests, 240),
    "trajectories": (trajectories, 60),
    "choices": (choices, 60),
    "memory": (memory, 40),
    "DiT-S/2": (partial(_large, "DiT-S/2", 16), 150),
    "quality": (quality, 200),
    "peers-DiT-S/2": (partial(peers, "DiT-S/2", exits=True), 240),
    "DiT-B/2": (partial(_large, "DiT-B/2", 16), 200),
    "peers-DiT-B/2": (partial(peers, "DiT-B/2", exits=False), 200),
    "caching": (caching, 200),
    "DiT-XL/2": (partial(_large, "DiT-XL/2", 8), 400),
}


def run(
    parts: Annotated[list[str] | None, typer.Argument(help="Default all.")] = None,
    again: Annotated[bool, typer.Option(help="Also parts that are done.")] = False,
    seconds: Annotated[float, typer.Option(help="No part begins later, or runs longer.")] = 1e9,
    output: Annotated[Path | None, typer.Option(help="JSON; default in docs/benchmarks.")] = None,
) -> None:
    """Run the parts, each in a process of its own; what is done is not done again.

    Without a GPU the parts are rehearsed on the CPU, as far as they can run there.
    """
    end = time.perf_counter() + seconds
    name = gpus()[0].name if gpus() else "rehearsal"
    place = output or BENCHMARKS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
    if not gpus() and output is None:
        place = WORK / "gpu-rehearsal.json"
    results = Results(place, "")
    if place.is_file() and not again:
        results.values = json.loads(place.read_text())
    results.values["machine"] = facts() | {"gpu": name}
    for part in parts or PARTS:
        if part not in PARTS:
            sys.exit(f"error: found part {part!r}; expected one of {', '.join(PARTS)}.")
        if "result" in results.values.get(part, {}):
            continue
        left = min(PARTS[part][1], end - time.perf_counter())
        if left < 5:
            print(f"{part}: no time is left; run the command again to go on")
            continue
        began = time.perf_counter()
        results.keep(part, _in_child(part, left))
        results.values[part]["seconds"] = time.perf_counter() - began
        results.write()
        done = "done" if "result" in results.values[part] else results.values[part]["failed"]
        print(f"{part}, {time.perf_counter() - began:.0f} s: {done}", flush=True)
    print(f"written: {place}")


def _in_child(part: str, seconds: float) -> Row:
    """A part's result, or why there is none; what it started ends with it."""
    code = "import json, sys, gpu; print(json.dumps(gpu.PARTS[sys.argv[1]][0](), default=str))"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-c", code, part], cwd=ROOT / "scripts", start_new_session=True, **pipes
    ) as child:
        try:
            made, said = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            _, said = child.communicate()
            return {"failed": f"it took longer than {seconds:.0f} s; {said[-_LAST:]}"}
    if child.returncode:
        return {"failed": f"it ended with {child.returncode}; {said[-_LAST:]}"}
    return {"result": json.loads(made.splitlines()[-1])}


if __name__ == "__main__":
    main(partial(typer.run, run))
