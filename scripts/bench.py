"""Benchmarks of sampling. Every claim is a ratio of medians measured side by side.

python scripts/bench.py sampling   all figures; docs/benchmarks/sampling-cpu.json and a table
python scripts/bench.py decisions  what docs/decisions.md rests on; decisions-cpu.json
python scripts/bench.py export     exports at full size; export-cpu.json
python scripts/bench.py build      plans, half precision, rebuilds, OpenVINO; build-cpu.json
python scripts/bench.py runtime    beside the engines: time, memory, threads; runtime-cpu.json
python scripts/bench.py peers      against what people would use instead; peers-cpu.json, and
                                   the documents' tables (--tables: only those)
python scripts/bench.py demo       the shipped schedule against full depth and torch eager
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_tables
import machine
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.errors import BackendError
from eecompile.networks.load import load_network
from eecompile.recipe import load_recipe
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_bundle

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "export" / "fashion-dit.toml"
OUT = ROOT / "out" / "fashion-dit"
BENCHMARKS = ROOT / "docs" / "benchmarks"
Row = dict[str, Any]


class TorchEngine(Engine):
    """The torch network behind the runtime's engine protocol: the loop stays the same."""

    precision, max_batch = "fp32", 64

    def __init__(self, network: Any, compile_: bool = False) -> None:
        self.exits = network.exits
        self._predict = torch.compile(network.predict_at) if compile_ else network.predict_at

    def evaluate(
        self, depth: int, x: np.ndarray, t: np.ndarray, conditions: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        tensors = {name: torch.from_numpy(array) for name, array in conditions.items()}
        with torch.inference_mode():
            made = self._predict(depth, torch.from_numpy(x), torch.from_numpy(t), **tensors)
        return [made.numpy()]


class TimedEngine(TorchEngine):
    """Adds up the seconds that another engine's evaluations take."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.exits, self.seconds = engine, engine.exits, 0.0

    def evaluate(
        self, depth: int, x: np.ndarray, t: np.ndarray, conditions: Mapping[str, np.ndarray]
    ) -> Sequence[np.ndarray]:
        started = time.perf_counter()
        result = self.engine.evaluate(depth, x, t, conditions)
        self.seconds += time.perf_counter() - started
        return result


def side_by_side(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each action, taking turns, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def torch_samplers(interface: Any, *, compiled: bool) -> dict[str, Sampler]:
    network = load_network(load_recipe(RECIPE).network, RECIPE.parent)
    engines = {"torch eager": TorchEngine(network)}
    if compiled:
        engines["torch.compile"] = TorchEngine(network, compile_=True)
    return {name: Sampler(engine, interface) for name, engine in engines.items()}


def schedule_speedup(sampler: Sampler, schedule: str, batch: int, steps: int, rounds: int) -> Row:
    """The schedule's speed-up over full depth, against its share of block evaluations."""
    programs = {name: sampler.program("ddim", steps, name) for name in ("full", schedule)}
    medians = side_by_side(
        {n: lambda p=p: sampler.sample(batch, solver=p) for n, p in programs.items()}, rounds
    )
    blocks = [step.chosen.blocks for step in programs[schedule].steps]
    promised = max(sampler.interface.exits) * len(blocks) / sum(blocks)
    speedup = medians["full"] / medians[schedule]
    return {
        "batch": batch,
        "schedule": schedule,
        "full_ms_per_step": 1e3 * medians["full"] / steps,
        "schedule_ms_per_step": 1e3 * medians[schedule] / steps,
        "promised": promised,
        "speedup": speedup,
        "of_promised": speedup / promised,
    }


def against_torch(samplers: Mapping[str, Sampler], batch: int, rounds: int) -> Row:
    """Milliseconds a step at full depth, every implementation in the same loop."""
    medians = side_by_side(
        {
            name: lambda s=sampler: s.sample(batch, solver="ddim", steps=5, schedule="full")
            for name, sampler in samplers.items()
        },
        rounds,
    )
    return {"batch": batch} | {name: 1e3 * seconds / 5 for name, seconds in medians.items()}


def overhead(sampler: Sampler, solver: str, batch: int, steps: int, rounds: int) -> Row:
    """Share of a step that is spent outside the engines."""
    shares = []
    for _ in range(rounds):
        timed = TimedEngine(sampler.engine)
        started = time.perf_counter()
        Sampler(timed, sampler.interface).sample(batch, solver=solver, steps=steps)
        shares.append(1 - timed.seconds / (time.perf_counter() - started))
    return {"solver": solver, "batch": batch, "outside_engines": statistics.median(shares)}


def in_fresh_process(code: str, rounds: int = 7) -> float:
    """Median of what ``code`` prints, each time in a new process."""
    runs = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(rounds)
    ]
    return statistics.median(runs)


def start_up(engines: Path) -> Row:
    timed = "import time; s = time.perf_counter(); {}; print(time.perf_counter() - s)"
    opening = f"import eecompile; eecompile.Sampler.open({str(engines)!r})"
    return {
        "import_seconds": in_fresh_process(timed.format("import eecompile")),
        "open_seconds": in_fresh_process(timed.format(opening)),
    }


def layout_rows(folders: Mapping[str, Path], rounds: int) -> list[Row]:
    """Latency and memory of both layouts, at every exit."""
    samplers = {name: Sampler.open(folder) for name, folder in folders.items()}
    rows = []
    for batch in (1, 16):
        for depth in next(iter(samplers.values())).interface.exits:
            medians = side_by_side(
                {
                    n: lambda s=s, d=depth, b=batch: s.sample(b, steps=5, schedule=d)
                    for n, s in samplers.items()
                },
                rounds,
            )
            row = {name: 1e3 * seconds / 5 for name, seconds in medians.items()}
            rows.append({"batch": batch, "depth": depth} | row)
    return rows


def memory(folder: Path) -> float:
    """Resident MiB that opening an engine set and running every exit adds."""
    code = (
        "import eecompile, onnxruntime, resource\n"
        "page = resource.getpagesize()\n"
        "used = lambda: int(open('/proc/self/statm').read().split()[1]) * page / 2**20\n"
        f"before = used(); s = eecompile.Sampler.open({str(folder)!r})\n"
        "[s.sample(4, steps=1, schedule=d) for d in s.interface.exits]\n"
        "print(used() - before)"
    )
    return in_fresh_process(code, rounds=3)


def sizes(folders: Mapping[str, Path]) -> Row:
    """Bytes of all exits over bytes of a full-depth-only export and its engine sets."""
    row = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        deepest = load_recipe(RECIPE).network.exits[-1:]
        bundle_from_recipe(RECIPE, work / "bundle", exits=deepest)
        row["bundle"] = _bytes(folders["bundle"]) / _bytes(work / "bundle")
        for name, target in TARGETS.items():
            engine_set_from_bundle(work / "bundle", target, work / name)
            row[name] = _bytes(folders[name]) / _bytes(work / name)
    return row


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


TARGETS = {
    "per_exit": ROOT / "engines" / "cpu.toml",
    "chained": ROOT / "engines" / "cpu-chained.toml",
}


def sampling(args: argparse.Namespace) -> None:
    folders = {"bundle": OUT / "bundle", "per_exit": OUT / "cpu", "chained": OUT / "cpu-chained"}
    bundle_from_recipe(RECIPE, folders["bundle"])
    for name, target in TARGETS.items():
        engine_set_from_bundle(folders["bundle"], target, folders[name])
    torch.set_num_threads(os.cpu_count() or 1)
    sampler = Sampler.open(folders["per_exit"], threads=torch.get_num_threads())
    schedule = sampler.interface.sampling.schedule
    others = torch_samplers(sampler.interface, compiled=True)
    names = [n for n in sampler.interface.schedules if n != "full"]
    result: Row = {
        "machine": machine.facts("numpy", "onnxruntime", "torch", "eecompile"),
        "threads": torch.get_num_threads(),
        "bundle": open_bundle(folders["bundle"]).interface.name,
        "default_schedule": schedule,
        "schedule_speedup": [
            schedule_speedup(sampler, name, batch, 10, args.rounds * (3 if batch > 1 else 15))
            for name in names
            for batch in (1, 16)
        ],
        "full_depth_ms_per_step": [
            against_torch({"eecompile": sampler} | others, batch, args.rounds * 3)
            for batch in (1, 16)
        ],
        "overhead": [overhead(sampler, s, 16, 20, args.rounds) for s in ("ddim", "ddpm")],
        "start_up": start_up(folders["per_exit"]),
        "layouts_ms_per_step": layout_rows(
            {name: folders[name] for name in TARGETS}, args.rounds * 2
        ),
        "layouts_memory_mib": {name: memory(folders[name]) for name in TARGETS},
        "bytes_over_full_depth_only": sizes(folders),
    }
    _report(result, args.output or BENCHMARKS / "sampling-cpu.json")


def _report(result: Row, output: Path) -> None:
    """Write the JSON, and print its tables."""
    console = Console() if sys.stdout.isatty() else Console(width=240)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(_rounded(result), indent=1) + "\n")
    for title, rows in result.items():
        if isinstance(rows, list):
            console.print(_table(title, rows))
        elif title != "machine":
            console.print(f"{title}: {json.dumps(_rounded(rows))}", highlight=False)
    console.print(f"written: {output}")


def decisions(args: argparse.Namespace) -> None:
    import bench_decisions

    bundle_from_recipe(RECIPE, OUT / "bundle")
    engine_set_from_bundle(OUT / "bundle", TARGETS["per_exit"], OUT / "cpu")
    result: Row = {
        "machine": machine.facts("numpy", "onnxruntime", "torch", "eecompile"),
        "thread_modes_ms": bench_decisions.thread_modes(OUT / "cpu", args.rounds),
        "levels_ms": bench_decisions.levels(OUT / "cpu", side_by_side, args.rounds),
        "attention_ms": bench_decisions.attention(RECIPE, side_by_side, args.rounds),
        "one_graph_ms": bench_decisions.one_graph(OUT / "bundle", side_by_side, args.rounds),
    }
    _report(result, args.output or BENCHMARKS / "decisions-cpu.json")


def export(args: argparse.Namespace) -> None:
    import bench_export

    output = args.output or BENCHMARKS / "export-cpu.json"
    OUT.mkdir(parents=True, exist_ok=True)
    result: Row = {"machine": machine.facts("onnx", "onnx-ir", "onnxruntime", "torch", "diffusers")}
    result["exports"] = []
    for row in bench_export.export_rows(args.networks, args.rounds):
        result["exports"].append(row)
        output.write_text(json.dumps(_rounded(result), indent=1) + "\n")
    _report(result, output)


def build(args: argparse.Namespace) -> None:
    import bench_build

    output = args.output or BENCHMARKS / "build-cpu.json"
    packages = ("onnxruntime", "openvino", "tensorrt_rtx", "nvidia-modelopt", "polygraphy")
    result: Row = {"machine": machine.facts(*packages)}

    def keep(title: str, rows: Iterable[Row]) -> None:
        result[title] = []
        for row in rows:
            result[title].append(row)
            output.write_text(json.dumps(_rounded(result), indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "small").mkdir()
        shipped, fewer = work / "shipped", work / "fewer"
        bundle_from_recipe(RECIPE, shipped)
        bundle_from_recipe(RECIPE, fewer, exits=(3, 9, 12))
        small = bench_build.random_bundle("DiT-S/2", work / "small")
        bundles = {"fashion-dit": shipped, "DiT-S/2": small}
        keep("plans", bench_build.plan_rows(min(args.rounds, 3)))
        keep("half_precision", bench_build.half_precision_rows(bundles))
        keep("rebuilds", bench_build.rebuild_rows(shipped, fewer))
        for name, bundle in bundles.items():
            keep(f"openvino, {name}", bench_build.openvino_rows(bundle, side_by_side, args.rounds))
        keep(
            "openvino_layouts", bench_build.openvino_layout_rows(shipped, side_by_side, args.rounds)
        )
        keep("openvino_opening", bench_build.openvino_opening_rows(shipped, args.rounds))
    _report(result, output)


def runtime(args: argparse.Namespace) -> None:
    import bench_build
    import bench_runtime

    output = args.output or BENCHMARKS / "runtime-cpu.json"
    result: Row = {"machine": machine.facts("numpy", "onnxruntime", "eecompile")}

    def keep(title: str, rows: Iterable[Row]) -> None:
        result[title] = []
        for row in rows:
            result[title].append(row)
            output.write_text(json.dumps(_rounded(result), indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "small").mkdir()
        deepest = load_recipe(RECIPE).network.exits[-1:]
        bundle_from_recipe(RECIPE, work / "shipped")
        bundle_from_recipe(RECIPE, work / "deepest", exits=deepest)
        bundles = {
            "fashion-dit": (work / "shipped", work / "deepest"),
            "DiT-S/2": (
                bench_build.random_bundle("DiT-S/2", work / "small"),
                bench_build.random_bundle("DiT-S/2", work / "small", exits=(12,)),
            ),
        }
        sets: dict[str, dict[str, Path]] = {}
        for network, (every, full) in bundles.items():
            place = work / f"engines-{network.replace('/', '-')}"
            sets[network] = {name: place / name for name in (*TARGETS, "full depth alone")}
            for name, target in TARGETS.items():
                engine_set_from_bundle(every, target, place / name)
            engine_set_from_bundle(full, TARGETS["chained"], place / "full depth alone")
        shipped = sets["fashion-dit"]
        sampler = Sampler.open(shipped["per_exit"])
        keep("overhead", bench_runtime.overhead_rows(sampler.interface, args.rounds))
        keep("outside_engines", bench_runtime.outside_rows(sampler, args.rounds))
        keep("start_up", [start_up(shipped["per_exit"])])
        keep("memory", bench_runtime.memory_rows(sets, min(args.rounds, 5)))
        keep("a_thousand_samplings", [bench_runtime.leak_row(shipped["chained"])])
        keep("threads", [bench_runtime.agreement_row(shipped["chained"])])
        pools = {name: shipped[name] for name in TARGETS}
        keep("thread_pools", bench_runtime.pool_rows(pools, args.rounds))
        keep("requests", bench_runtime.requests_rows(sampler, side_by_side, args.rounds * 2))
    _report(result, output)


PEERS_TARGETS = {
    "cpu": {"onnxruntime": "cpu", "openvino bf16": "cpu-bf16"},
    "cuda": {
        "onnxruntime cuda fp16": "cuda-fp16",
        "tensorrt-rtx fp16": "rtx-fp16",
        "tensorrt fp16": "tensorrt-fp16",
    },
}


def peers(args: argparse.Namespace) -> None:
    if args.tables:
        tables()
        return
    import bench_build
    import bench_peers

    device = args.device
    output = args.output or BENCHMARKS / f"peers-{device}.json"
    packages = ("onnxruntime", "openvino", "torch", "diffusers", "eecompile")
    result: Row = {"machine": machine.facts(*packages), "batch": 16}
    if device == "cuda":
        result["machine"]["gpu"] = torch.cuda.get_device_name()
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        bundle_from_recipe(RECIPE, work / "shipped")
        cases = {"fashion-dit": (RECIPE, work / "shipped", "balanced", 10)}
        (work / "small").mkdir()
        small = bench_build.random_bundle("DiT-S/2", work / "small")
        recipe = next((work / "small").glob("*.toml"))
        cases["DiT-S/2"] = (recipe, small, "ase", 4)
        for network, (path, bundle, schedule, steps) in cases.items():
            engines, skipped = _peers_engines(bundle, work, device)
            with Sampler.open(next(iter(engines.values()))) as sampler:
                saved = bench_peers.ideal_saving(sampler, schedule, steps)
            rows = bench_peers.peer_rows(
                path,
                bundle,
                engines,
                schedule,
                batch=16,
                steps=steps,
                rounds=args.rounds,
                device=device,
            )
            result[network] = {"schedule": schedule, "blocks left out": saved, "rows": list(rows)}
            result[network] |= {"skipped": skipped} if skipped else {}
            output.write_text(json.dumps(_rounded(result), indent=1) + "\n")
    for network in cases:
        Console(width=200).print(_table(network, result[network]["rows"]))
    print(f"written: {output}")
    if output.resolve() in bench_tables.peers_files():
        tables()


def _peers_engines(bundle: Path, work: Path, device: str) -> tuple[dict[str, Path], dict[str, str]]:
    """Engine sets of a bundle by name; on a GPU, of what is installed, and why not of the rest."""
    engines, skipped = {}, {}
    for name, target in PEERS_TARGETS[device].items():
        folder = work / f"{bundle.name}-{target}"
        try:
            engine_set_from_bundle(bundle, ROOT / "engines" / f"{target}.toml", folder)
            Sampler.open(folder).close()
        except BackendError as error:
            if device == "cpu":
                raise
            skipped[name] = str(error)
        else:
            engines[name] = folder
    if not engines:
        raise SystemExit(f"error: no engines for {device}: {skipped}")
    return engines, skipped


def tables() -> None:
    """Rewrite what the documents say of the peers."""
    for path in bench_tables.write_peers_tables():
        print(f"written: {path}")


def demo(args: argparse.Namespace) -> None:
    sampler = Sampler.open(OUT / "cpu")
    schedule, steps, batch = sampler.interface.sampling.schedule, 10, 16
    eager = torch_samplers(sampler.interface, compiled=False)["torch eager"]
    medians = side_by_side(
        {
            "schedule": lambda: sampler.sample(batch, steps=steps),
            "full": lambda: sampler.sample(batch, steps=steps, schedule="full"),
            "eager": lambda: eager.sample(batch, steps=steps, schedule="full"),
        },
        args.rounds,
    )
    console = Console()
    share = sampler.interface.share(sampler.interface.schedules[schedule])
    for name, label in (("full", "full depth on the same engines"), ("eager", "torch eager")):
        factor = medians[name] / medians["schedule"]
        console.print(f"schedule {schedule!r} is {factor:.2f} times as fast as {label}")
    console.print(f"(it runs {share:.0%} of the blocks; batch {batch}, medians of {args.rounds})")


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        low, middle, high = value
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "sampling": sampling,
    "decisions": decisions,
    "export": export,
    "build": build,
    "peers": peers,
    "runtime": runtime,
    "demo": demo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=tuple(COMMANDS))
    parser.add_argument("networks", nargs="*", help="export: names of networks; default all")
    parser.add_argument("--rounds", type=int, help="measurements of each action; default 9")
    parser.add_argument(
        "--tables", action="store_true", help="peers: only write the documents' tables anew"
    )
    parser.add_argument(
        "--device", choices=tuple(PEERS_TARGETS), default="cpu", help="peers: where they run"
    )
    parser.add_argument("--output", type=Path, help="JSON; default under docs/benchmarks")
    args = parser.parse_args()
    if args.rounds is None and args.what != "export":
        args.rounds = 9
    COMMANDS[args.what](args)


if __name__ == "__main__":
    main()
