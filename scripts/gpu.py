"""What only a GPU can settle, most valuable first; gpu-NAME.json after every part.

Each part is a process with its own limit of time. Parts that are done are not done again; those
that failed are tried again once all others have been.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple
from xml.etree import ElementTree

import msgspec
import numpy as np
import typer
from bundles import changed_recipe, random_recipe, target
from rehearsal import REHEARSES, rehearse
from results import BENCHMARKS, RECIPE, ROOT, Results, Row, facts, main, medians, run_eecompile

from eecompile import BackendError, Exit, Forecast, Program, Sampler, Span
from eecompile.compiler import bundle_from_recipe, engine_set_from_bundle
from eecompile.measure.machine import Gpu, gpus
from eecompile.store import open_bundle, open_engine_set
from eecompile.tune.probe import rms
from eecompile.tune.published import every_nth

OLDEST = "7.5"  # compute capability: that of kernels.ptx, and of onnxruntime-gpu for CUDA 13
WORK = ROOT / "out" / ("rehearsal" if REHEARSES else "gpu")
DEVICE = "cpu" if REHEARSES else "cuda"
SHIPPED, SMALL, LARGE = ("tiny",) * 3 if REHEARSES else ("fashion-dit", "DiT-S/2", "DiT-XL/2")
BATCHES, STEPS, LONG, ROUNDS = ((2,), 6, 8, 1) if REHEARSES else ((1, 4, 16), 20, 50, 9)
_LAST = 1500  # characters of a failure that are kept

# Targets, and what is changed of them. What spans need is a chained engine set.
TARGETS: dict[str, tuple[str, Row]] = {
    "rtx-fp16": ("rtx-fp16", {}),
    "tensorrt-fp16": ("tensorrt-fp16", {}),
    "cuda-fp16": ("cuda-fp16", {}),
    "cuda-fp16-chained": ("cuda-fp16", {"layout": "chained"}),
    "rtx-fp16-current_gpu": ("rtx-fp16", {"options": {"current_gpu": True}}),
    "rtx-fp32": ("rtx-fp32", {}),
    "tensorrt-fp32": ("tensorrt-fp32", {}),
    "cuda-fp32": ("cuda-fp16", {"layout": "chained", "precision": "fp32"}),
    "cuda-tensorrt": ("cuda-fp16", {"options": {"provider": "tensorrt"}}),
}
SERVED = tuple(TARGETS)[:4]  # what would be deployed, the best first
TOGETHER = (("rtx-fp16", "rtx-fp32"), ("tensorrt-fp16", "tensorrt-fp32"))
TOGETHER += (("cuda-fp16-chained", "cuda-fp32"),)


def work(network: str) -> Path:
    """The folder of a network."""
    return WORK / re.sub(r"\W", "-", network)


def recipe(network: str) -> Path:
    """The recipe of the shipped network, or of one with random weights."""
    if network == "fashion-dit":
        return RECIPE
    path = work(network) / "recipe.toml"
    if not path.with_name("weights.safetensors").exists():
        work(network).mkdir(parents=True, exist_ok=True)
        random_recipe(network, work(network))
    return path


def bundle(network: str) -> Path:
    """A network's bundle."""
    folder = work(network) / "bundle"
    if not folder.is_dir():
        bundle_from_recipe(recipe(network), folder)
    return folder


def built(network: str, name: str) -> Path:
    """A network's engine set for a target of TARGETS, or of the project."""
    kind, changes = TARGETS.get(name, (name, {}))
    folder = work(network) / name
    changed = msgspec.structs.replace(target(kind), name=name, **changes)
    engine_set_from_bundle(bundle(network), changed, folder)
    return folder


def running(network: str, names: Sequence[str] = SERVED) -> dict[str, Path]:
    """Of these targets, those that run here: their engine sets."""
    found = {}
    for name in names:
        with suppress(BackendError):
            folder = built(network, name)
            Sampler.open(folder).close()
            found[name] = folder
    return found


def best(network: str) -> dict[str, Path]:
    """The first engine set that runs here and has spans."""
    for name in SERVED:
        if target(TARGETS[name][0]).layout == "chained" or "layout" in TARGETS[name][1]:
            if found := running(network, [name]):
                return found
    raise SystemExit("error: no engine set with spans runs here; the part 'plans' says why.")


def environment() -> Iterator[Row]:
    """The GPU, its driver, and what doctor says of this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "eecompile", "doctor", "--json"], capture_output=True, text=True
    )
    told = json.loads(done.stdout) if done.stdout else {"failed": done.stderr[-_LAST:]}
    yield {"gpus": [msgspec.to_builtins(gpu) for gpu in gpus()], "doctor": told}


def plans() -> Iterator[Row]:
    """Building, opening and sampling the shipped network, for every target."""
    for name in TARGETS:
        row: Row = {"target": name}
        try:
            there, began = (work(SHIPPED) / name).exists(), time.perf_counter()
            folder = built(SHIPPED, name)
            row["build, s"] = None if there else time.perf_counter() - began
            manifest = open_engine_set(folder)
            row |= {"verified": manifest.verified, "bytes": sum(f.bytes for f in manifest.files)}
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
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/runtime"]
        subprocess.run([sys.executable, *command, f"--junitxml={report}"], cwd=ROOT, check=False)
        for case in ElementTree.parse(report).iter("testcase"):
            yield {
                "test": case.get("name"),
                "seconds": float(case.get("time", 0)),
                "outcome": case[0].tag if len(case) else "passed",
                "why": (case[0].get("message") or "")[-_LAST:] if len(case) else "",
            }


def comparison() -> Iterator[Row]:
    """``eecompile compare``: time, memory and error of every exit, beside ONNX Runtime on the CPU."""
    from eecompile.compare.report import read_report

    sets = running(SHIPPED)
    engines = [part for folder in sets.values() for part in ("--engines", folder)]
    output = work(SHIPPED) / "comparison"
    run_eecompile(
        *("compare", bundle(SHIPPED), *engines, "-o", output, "--schedule", "full"),
        *("--batch", ",".join(map(str, BATCHES)), "--rounds", ROUNDS, "--steps", STEPS),
    )
    for found in read_report(output / "report.json").candidates:
        row = {"by": found.name, "GPU, MiB": found.gpu_mib, "skipped": found.skipped}
        for each in found.exits:
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
    for name, folder in running(network).items():
        with ExitStack() as stack:
            sampler = stack.enter_context(Sampler.open(folder))
            beside = stack.enter_context(Sampler.open(built(network, "cpu-chained")))
            for batch, guidance in cases:
                case = {"network": network, "target": name, "batch": batch, "guidance": guidance}
                for row in _trajectory_rows(sampler, beside if host else None, batch, guidance):
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
        f"{name}, queued": lambda steps=partial(sampler.steps, solver=every[name], **given): [
            *steps()
        ]
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


def together() -> Iterator[Row]:
    """Two precisions in one graph: the first steps in FP32, then FP16, a forecast and a span."""
    from bench_spans import middle_span

    for names in TOGETHER:
        sets = running(SHIPPED, names)
        if len(sets) < len(names):
            continue
        with (
            Sampler.open(*sets.values()) as both,
            Sampler.open(sets[names[0]]) as alone,
            Sampler.open(built(SHIPPED, "cpu-chained")) as host,
        ):
            depth, span = both.interface.exits[-1], middle_span(both, 1)
            cycle = (Exit(depth), span, Exit(depth), Forecast(1))
            choices = {name: _mixed(cycle, depth, name) for name in ("", names[1])}
            made = {
                name: both.program("ddim", STEPS, "full").with_choices(each)
                for name, each in choices.items()
            }
            graph = partial(both.sample, BATCHES[-1], solver=made[names[1]], guidance=1.0)
            queued = partial(both.steps, BATCHES[-1], solver=made[names[1]], guidance=1.0)
            apart = partial(alone.sample, BATCHES[-1], solver=made[""], guidance=1.0)
            actions = {"graph": graph, "queued": lambda: [*queued()], "FP16 alone": apart}
            seconds = medians(actions, ROUNDS)
            right = host.sample(BATCHES[-1], solver=made[""], guidance=1.0)
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


def tuned(network: str, solver: str, steps: int) -> Iterator[Row]:
    """``eecompile tune`` with exits, forecasts and spans: every program on the held-out samples."""
    from bench_schedules import SMALL as FEW
    from bench_schedules import front_rows

    for name, folder in best(network).items():
        place = work(network) / f"schedules-{solver}"
        few = FEW if REHEARSES else ("--minutes", 0.5)
        run_eecompile(
            *("tune", folder, "-o", place, "--force", "--use", "exits,forecasts,spans"),
            *("--solver", solver, "--steps", steps, "--batch", BATCHES[-1], *few),
        )
        yield from ({"target": name} | row for row in front_rows(_front(place)))


def _front(folder: Path) -> Any:
    from eecompile.tune.report import read_front

    return read_front(folder / "front.json")


def peers(network: str, batch: int, compiled: bool) -> Iterator[Row]:
    """A network of random weights beside PyTorch, diffusers' loop and plain ONNX Runtime.

    At full depth, with the authors' schedule and, by eecompile alone, with that which the part
    'tune' found nearest to half of the time.
    """
    import bench_peers

    sets = running(network)
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
        half=sets.get("cuda-fp16"),
    )
    own = {}
    with suppress(FileNotFoundError):
        points = [p for p in _front(work(network) / "schedules-ddim").points if p.kind == "found"]
        own["found"] = min(points, key=lambda p: abs(p.predicted_share - 0.5)).schedule
    made = bench_peers.measured(case, sets, ROUNDS, own)
    yield from ({"network": network, "batch": batch} | row for row in made["rows"])


def caching(compiled: bool) -> Iterator[Row]:
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

    if not REHEARSES:
        return Path(os.environ.get("EECOMPILE_DATA", DATA))
    folder, draws = WORK / "data", np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        for name, shape, most in (("images-idx3", (64, 28, 28), 256), ("labels-idx1", (64,), 10)):
            head = np.array([0x0800 + len(shape), *shape], ">i4").tobytes()
            values = draws.integers(0, most, shape, np.uint8).tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + values))
    return folder


def quality() -> Iterator[Row]:
    """The Frechet distance of full depth, of the recipe's schedules and of those that were found."""
    for name, engines in best(SHIPPED).items():
        given = [*open_engine_set(engines).interface.schedules]
        for guidance in (1, 2):
            output = WORK / "evaluation.json"
            run_eecompile(
                *("evaluate", engines, "-o", output, "--guidance", guidance),
                *("-n", *((20, "--batch", 20) if REHEARSES else (5000, "--batch", 1000))),
                *("--work", WORK / "evaluate", "--reference", data() / "t10k-images-idx3-ubyte.gz"),
                *(f"--schedule={each}" for each in dict.fromkeys(["full", *given])),
            )
            for row in json.loads(output.read_text())["rows"]:
                yield {"target": name, "guidance": guidance} | row


def training(what: str) -> Iterator[Row]:
    """A network too large for a CPU: trained at all exits, fine-tuned to ``fast``, both evaluated."""
    place = WORK / "training"
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "recipe.toml").exists():
        from bundles import NETWORKS

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
        few = ("-n", 20 if REHEARSES else 2000, "--target", "cpu" if REHEARSES else "cuda-fp16")
        few += ("--data", data(), "--output", output, "--work", WORK / "evaluate")
        _script("evaluate", "finetuned", place / "recipe.toml", "--run", runs["fine-tune"], *few)
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
    """What gives the rows of a part, and the seconds that it may take."""

    rows: Callable[[], Iterator[Row]]
    seconds: int


SIZES = tuple(reversed(BATCHES))  # the largest batch first
PARTS: dict[str, Part] = {
    "environment": Part(environment, 60),
    "plans": Part(plans, 200),
    "tests": Part(tests, 240),
    "trajectories": Part(
        partial(trajectories, SHIPPED, [*((n, 1.0) for n in SIZES), (SIZES[0], 3.0)], True), 150
    ),
    "comparison": Part(comparison, 120),
    "together": Part(together, 90),
    "tune": Part(partial(tuned, SHIPPED, "dpmpp-2m", STEPS), 240),
    f"trajectories {SMALL}": Part(partial(trajectories, SMALL, [(SIZES[0], 1.0)], False), 200),
    f"memory {SMALL}": Part(partial(memory, SMALL), 90),
    f"tune {SMALL}": Part(partial(tuned, SMALL, "ddim", STEPS), 240),
    **{f"peers {SMALL}, {n}": Part(partial(peers, SMALL, n, False), 120) for n in SIZES},
    **{f"compiled {SMALL}, {n}": Part(partial(peers, SMALL, n, True), 300) for n in SIZES},
    "quality": Part(quality, 300),
    "caching": Part(partial(caching, False), 200),
    f"trajectories {LARGE}": Part(partial(trajectories, LARGE, [(SIZES[0], 1.0)], False), 500),
    **{f"peers {LARGE}, {n}": Part(partial(peers, LARGE, n, False), 200) for n in SIZES},
    **{f"compiled {LARGE}, {n}": Part(partial(peers, LARGE, n, True), 500) for n in SIZES},
    "caching, compiled": Part(partial(caching, True), 400),
    **{name: Part(partial(training, name), 300) for name in ("train", "fine-tune", "fine-tuned")},
}


def run(
    parts: Annotated[list[str] | None, typer.Argument(help="Default all.")] = None,
    again: Annotated[bool, typer.Option(help="Also parts that are done.")] = False,
    minutes: Annotated[float, typer.Option(help="No part begins later, or runs longer.")] = 9.5,
    output: Annotated[Path | None, typer.Option(help="JSON; default in docs/benchmarks.")] = None,
) -> None:
    """Run the parts, each in a process of its own; what is done is not done again."""
    end = time.perf_counter() + 60 * minutes
    if unknown := {*(parts or ())} - set(PARTS):
        sys.exit(
            f"error: found part {', '.join(sorted(unknown))}; expected one of {'; '.join(PARTS)}."
        )
    name = "rehearsal" if REHEARSES else found_gpu(gpus())
    place = output or (WORK if REHEARSES else BENCHMARKS) / (
        f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
    )
    results = Results(place, "")
    if place.is_file():
        results.values = json.loads(place.read_text())
    results.values["machine"] = facts() | {"gpu": name}
    known: dict[str, Row] = results.values.setdefault("parts", {})
    asked = [part for part in parts or PARTS if again or "failed" in known.get(part, {"failed": 1})]
    left = sorted(asked, key=lambda part: part in known)  # those that failed come last
    for index, part in enumerate(left):
        seconds = min(PARTS[part].seconds, end - time.perf_counter())
        if seconds < 5:
            waiting = ", ".join(left[index:])
            print(f"the time of {minutes:g} minutes is up; run the command again for: {waiting}")
            break
        began = time.perf_counter()
        known[part] = _in_child(part, seconds) | {"seconds": time.perf_counter() - began}
        results.write()
        print(f"{part}, {known[part]['seconds']:.0f} s: {known[part].get('failed', 'done')}")
        sys.stdout.flush()
    print(f"written: {place}")
    if failed := [part for part in asked if "failed" in known.get(part, {})]:
        sys.exit(f"error: failed: {', '.join(failed)}; the file says why.")


def found_gpu(found: Sequence[Gpu]) -> str:
    """The name of the first GPU; where there is none, or one too old, the script ends."""
    if not found:
        sys.exit(
            "error: found no NVIDIA GPU; expected one with its driver; run 'eecompile doctor', "
            "or scripts/gpu --rehearse, which does every part on the CPU."
        )
    capability = found[0].compute_capability or OLDEST  # a driver that does not say
    if _numbers(capability) < _numbers(OLDEST):
        sys.exit(
            f"error: found {found[0].name}, compute capability {capability}; expected {OLDEST} or "
            "newer, for kernels.ptx and onnxruntime-gpu; set CUDA_VISIBLE_DEVICES to a newer GPU "
            "of this machine, or use another machine."
        )
    return found[0].name


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _in_child(part: str, seconds: float) -> Row:
    """A part's rows, and why there are no more if it failed; what it started ends with it."""
    WORK.mkdir(parents=True, exist_ok=True)
    rows = WORK / "rows.jsonl"
    rows.unlink(missing_ok=True)
    more = {"TORCHINDUCTOR_CACHE_DIR": str(WORK / "inductor")}  # what is compiled is kept
    if REHEARSES:  # on a CPU, compiling takes minutes, and says nothing of a GPU
        more["TORCH_COMPILE_DISABLE"] = "1"
    code = "import sys, gpu; gpu.write_rows(*sys.argv[1:])"
    pipe: Mapping[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    failed = ""
    with subprocess.Popen(
        [sys.executable, "-c", code, part, str(rows)],
        cwd=ROOT / "scripts",
        env=os.environ | more,
        start_new_session=True,
        text=True,
        **pipe,
    ) as child:
        try:
            _, said = child.communicate(timeout=seconds)
            if child.returncode:
                failed = f"it ended with {child.returncode}; {said[-_LAST:]}"
        except subprocess.TimeoutExpired:
            failed = f"it took longer than {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    lines = rows.read_text().splitlines() if rows.exists() else []
    made = {"rows": [json.loads(line) for line in lines if line.endswith("}")]}
    return made | {"failed": failed} if failed else made


def write_rows(part: str, path: str) -> None:
    """Write each row as it is measured, in the process of the part."""
    rehearse()
    with Path(path).open("w") as file:
        for row in PARTS[part].rows():
            file.write(json.dumps(msgspec.to_builtins(row)) + "\n")
            file.flush()


if __name__ == "__main__":
    main(partial(typer.run, run))
