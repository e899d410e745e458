"""Benchmarks of engine sets of several backends, built from one bundle.

python scripts/bench_build.py openvino BUNDLE   OpenVINO against ONNX Runtime, on the CPU
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from eecompile.bundle import open_engine_set, write_manifest
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.verify import random_inputs
from eecompile.recipe import load_target
from eecompile.runtime.engine import Engine, open_engine
from eecompile.runtime.interface import Interface

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
SideBySide = Callable[[dict[str, Callable[[], object]], int], dict[str, float]]
TARGETS = {"onnxruntime fp32": "cpu", "openvino fp32": "cpu-openvino", "openvino bf16": "cpu-bf16"}
LAYOUTS = ("per_exit", "chained")


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
        "from eecompile.runtime.openvino import import_openvino\n"
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


def openvino(args: argparse.Namespace) -> Row:
    from bench import side_by_side

    return {
        "latency": openvino_rows(args.bundle, side_by_side, args.rounds),
        "layouts": openvino_layout_rows(args.bundle, side_by_side, args.rounds),
        "opening": openvino_opening_rows(args.bundle, args.rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("openvino",))
    parser.add_argument("bundle", type=Path, help="what eecompile export wrote")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each action")
    args = parser.parse_args()
    print(json.dumps({"openvino": openvino}[args.what](args), indent=1))


if __name__ == "__main__":
    main()
