"""Benchmarks of building: plans in both layouts, half precision, rebuilds, OpenVINO."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import bench_export
import msgspec
import numpy as np

from eecompile.compiler.build import engine_set_from_bundle, planned_build
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.verify import random_inputs
from eecompile.programs.interface import Interface
from eecompile.runtime.opening import engine_from_manifest, open_engine
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_engine_set, write_manifest
from eecompile.store.target import load_target

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
SideBySide = Callable[[dict[str, Callable[[], object]], int], dict[str, float]]
TARGETS = {"onnxruntime fp32": "cpu", "openvino fp32": "cpu-openvino", "openvino bf16": "cpu-bf16"}
LAYOUTS = ("per_exit", "chained")
NETWORKS = {
    "DiT-S/2": ("DiT-S/2", (4, 6, 8, 12)),
    "DiT-B/2": ("DiT-B/2", (4, 6, 8, 10, 12)),
}


def random_bundle(name: str, work: Path, exits: tuple[int, ...] | None = None) -> Path:
    """A bundle of one of NETWORKS, with random weights."""
    size, depths = NETWORKS[name]
    depths = exits or depths
    changes = {
        "exits = .*": f"exits = {list(depths)}",
        '"DiT-XL/2"': f'"{size}"',
        "ase = .*": f"ase = {list(reversed(depths))}",
    }
    recipe = bench_export.changed_recipe("dit-xl2-256", changes, work)
    if not (work / "weights.safetensors").exists():
        bench_export.make(recipe)
    bundle = work / f"bundle-{len(depths)}"
    bundle_from_recipe(recipe, bundle)
    return bundle


def plan_rows(rounds: int) -> Iterator[Row]:
    """Bytes and seconds of TensorRT-RTX plans in FP16, chained against an engine an exit."""
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary)
            bundle = random_bundle(name, work)
            seconds: dict[str, list[tuple[float, float]]] = {layout: [] for layout in LAYOUTS}
            sizes, errors = {}, {}
            for _ in range(rounds):
                for layout, taken in seconds.items():
                    shutil.rmtree(work / layout, ignore_errors=True)
                    target = load_target(ROOT / "engines" / "rtx-fp16.toml")
                    target = msgspec.structs.replace(target, layout=layout)
                    clock = _Clock("building ")
                    began = time.perf_counter()
                    built = engine_set_from_bundle(bundle, target, work / layout, report=clock)
                    taken.append((clock.seconds(), time.perf_counter() - began))
                    sizes[layout] = sum(record.bytes for record in built.manifest.files)
                    errors[layout] = max(p.relative_error for p in built.manifest.exits)
            row: Row = {"network": name, "exits": len(NETWORKS[name][1])}
            for layout, taken in seconds.items():
                row[f"{layout}, MiB"] = sizes[layout] / 2**20
                row[f"{layout}, plans s"] = statistics.median(plans for plans, _ in taken)
                row[f"{layout}, all s"] = statistics.median(whole for _, whole in taken)
            row["bytes, ratio"] = sizes["chained"] / sizes["per_exit"]
            row["plans, ratio"] = row["chained, plans s"] / row["per_exit, plans s"]
            row["all, ratio"] = row["chained, all s"] / row["per_exit, all s"]
            yield row | {"relative error": max(errors.values())}


class _Clock:
    """Adds up how long the phases last whose names begin so."""

    def __init__(self, start: str) -> None:
        self._start, self._since, self._total = start, 0.0, 0.0

    def __call__(self, phase: str, done: int = 0, total: int = 0) -> None:
        now = time.perf_counter()
        if self._since:
            self._total += now - self._since
        self._since = now if phase.startswith(self._start) else 0.0

    def seconds(self) -> float:
        self("")
        return self._total


def half_precision_rows(bundles: Mapping[str, Path]) -> Iterator[Row]:
    """FP16 graphs in ONNX Runtime: relative error, and PSNR of samples against FP32's."""
    for name, bundle in bundles.items():
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary)
            half = load_target(ROOT / "engines" / "cuda-fp16.toml")
            manifest = engine_set_from_bundle(bundle, half, work / "half").manifest
            # The same graphs on the CPU, which computes FP16 operators one by one.
            there = msgspec.structs.replace(manifest.target, options={})
            shown = msgspec.structs.replace(manifest, target=there)
            engine_set_from_bundle(bundle, ROOT / "engines" / "cpu.toml", work / "full")
            engine = engine_from_manifest(work / "half", shown)
            with (
                Sampler(engine, manifest.interface) as narrow,
                Sampler.open(work / "full") as wide,
            ):
                chosen = {"steps": 15, "seed": 0, "guidance": 1.0}
                expected, found = wide.sample(8, **chosen), narrow.sample(8, **chosen)
            peak = float(expected.max() - expected.min())
            squared = float(np.mean(np.square(expected - found)))
            worst = max(p.relative for plan in manifest.exits for p in plan.points)
            yield {
                "network": name,
                "relative error": worst,
                "PSNR, dB": 10 * np.log10(peak**2 / squared).item(),
            }


def rebuild_rows(bundle: Path, fewer: Path) -> list[Row]:
    """Seconds of a build with nothing to do, and what one more exit makes it build.

    Args:
        bundle: of all exits.
        fewer: of the same network with an exit less.
    """
    target, rows = load_target(ROOT / "engines" / "rtx-fp16.toml"), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "set"
        engine_set_from_bundle(fewer, target, folder)
        planned = planned_build(bundle, target, folder)
        engine_set_from_bundle(bundle, target, folder)
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            assert engine_set_from_bundle(bundle, target, folder).up_to_date
            seconds.append(time.perf_counter() - began)
        rows.append(
            {
                "segments": len(planned.segments),
                "built for one more exit": sum(not s.reused for s in planned.segments),
                "nothing changed, s": statistics.median(seconds),
            }
        )
    return rows


def openvino_rows(bundle: Path, side_by_side: SideBySide, rounds: int) -> list[Row]:
    """Milliseconds at full depth, speed-ups over ONNX Runtime, and errors relative to it."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = _built(bundle, Path(temporary), TARGETS)
        engines, interface = _opened(folders)
        depth, rows = interface.exits[-1], []
        for batch in (1, 4, 16):
            medians = _medians(engines, interface, depth, batch, side_by_side, rounds)
            reference, *others = medians
            row: Row = {"batch": batch, "depth": depth}
            row |= {f"{name}, ms": 1e3 * seconds for name, seconds in medians.items()}
            row |= {f"{n}, speed-up": medians[reference] / medians[n] for n in others}
            errors = _errors(engines, interface, depth, batch)
            rows.append(row | {f"{name}, error": error for name, error in errors.items()})
        return rows


def openvino_layout_rows(bundle: Path, side_by_side: SideBySide, rounds: int) -> list[Row]:
    """Milliseconds of BF16 engines in both layouts, at every exit."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = _built(bundle, Path(temporary), dict.fromkeys(LAYOUTS, "cpu-bf16"))
        engines, interface = _opened(folders)
        rows = []
        for batch in (1, 4, 16):
            for depth in interface.exits:
                medians = _medians(engines, interface, depth, batch, side_by_side, rounds)
                row = {f"{name}, ms": 1e3 * seconds for name, seconds in medians.items()}
                rows.append({"batch": batch, "depth": depth} | row)
        return rows


def openvino_opening_rows(bundle: Path, rounds: int) -> list[Row]:
    """Seconds and resident MiB of opening an engine set, with its blobs and without."""
    with tempfile.TemporaryDirectory() as temporary:
        work, rows = Path(temporary), []
        folders = _built(bundle, work, dict.fromkeys(LAYOUTS, "cpu-bf16"))
        for layout, folder in folders.items():
            bare = work / f"{layout}-bare"
            shutil.copytree(folder, bare)
            _without_blobs(bare)
            runs: dict[str, list[tuple[float, float]]] = {"blobs": [], "graphs": []}
            for _ in range(rounds):
                for name, place in (("blobs", folder), ("graphs", bare)):
                    runs[name].append(_opening(place))
            row: Row = {"layout": layout}
            for name, found in runs.items():
                row[f"{name}, s"] = statistics.median(seconds for seconds, _ in found)
                row[f"{name}, MiB"] = statistics.median(size for _, size in found)
            rows.append(row | {"speed-up": row["graphs, s"] / row["blobs, s"]})
        return rows


def _built(bundle: Path, work: Path, targets: Mapping[str, str]) -> dict[str, Path]:
    """An engine set for each target; where it is named as a layout, in that layout."""
    folders = {}
    for name, file in targets.items():
        target = load_target(ROOT / "engines" / f"{file}.toml")
        layout = name if name in LAYOUTS else "per_exit"
        folders[name] = work / name.replace(" ", "-")
        target = msgspec.structs.replace(target, layout=layout)
        engine_set_from_bundle(bundle, target, folders[name])
    return folders


def _opened(folders: Mapping[str, Path]) -> tuple[dict[str, Engine], Interface]:
    opened = {name: open_engine(folder) for name, folder in folders.items()}
    interface = next(iter(opened.values()))[1].interface
    return {name: engine for name, (engine, _) in opened.items()}, interface


def _call(engine: Engine, interface: Interface, depth: int, batch: int, t: float) -> np.ndarray:
    given = random_inputs(interface, batch, t, seed=0)
    conditions = {name: given[name] for name in interface.conditions}
    return engine.evaluate(depth, given["x"], given["t"], conditions)[0]


def _medians(
    engines: Mapping[str, Engine],
    interface: Interface,
    depth: int,
    batch: int,
    side_by_side: SideBySide,
    rounds: int,
) -> dict[str, float]:
    given = random_inputs(interface, batch, 500, seed=0)
    conditions = {name: given[name] for name in interface.conditions}
    actions: dict[str, Callable[[], object]] = {
        name: lambda e=engine: e.evaluate(depth, given["x"], given["t"], conditions)
        for name, engine in engines.items()
    }
    return side_by_side(actions, rounds if batch > 1 else 5 * rounds)


def _errors(
    engines: Mapping[str, Engine], interface: Interface, depth: int, batch: int
) -> dict[str, float]:
    """Largest |difference| to the first engine over its largest |output|, at any timestep."""
    (_, reference), *others = engines.items()
    worst = dict.fromkeys((name for name, _ in others), 0.0)
    last = interface.process.timesteps - 1
    for t in np.linspace(0, last, 11).round():
        wanted = _call(reference, interface, depth, batch, t)
        for name, engine in others:
            difference = np.abs(_call(engine, interface, depth, batch, t) - wanted).max()
            worst[name] = max(worst[name], float(difference / np.abs(wanted).max()))
    return worst


def _without_blobs(folder: Path) -> None:
    manifest = open_engine_set(folder)
    kept = tuple(record for record in manifest.files if not record.name.endswith(".blob"))
    write_manifest(folder, msgspec.structs.replace(manifest, files=kept))


def _opening(folder: Path) -> tuple[float, float]:
    """Seconds and MiB in a fresh process that has openvino imported, exits all run once."""
    code = (
        "import resource, sys, time; from pathlib import Path\n"
        "from eecompile.runtime.engines.openvino import import_openvino\n"
        "from eecompile.runtime.sampler import Sampler\n"
        "import_openvino().Core().get_property('CPU', 'FULL_DEVICE_NAME')\n"
        "page = resource.getpagesize()\n"
        "used = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * page / 2**20\n"
        "before, started = used(), time.perf_counter()\n"
        "sampler = Sampler.open(Path(sys.argv[1]))\n"
        "seconds = time.perf_counter() - started\n"
        "[sampler.sample(4, steps=1, schedule=d) for d in sampler.interface.exits]\n"
        "print(seconds, used() - before)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, size = map(float, done.stdout.split())
    return seconds, size
