"""Benchmarks of building: plans in both layouts, half precision, rebuilds, OpenVINO."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from bundles import LAYOUTS, engine_set, random_recipe, target
from children import medians_in_turns, opening
from results import Row, medians, milliseconds

from eecompile.arrays import Array
from eecompile.compiler.build import engine_set_from_bundle, planned_build
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.verify import random_inputs
from eecompile.programs.interface import Interface
from eecompile.runtime.opening import engine_from_manifest, open_engine
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_engine_set, write_manifest

TARGETS = {"onnxruntime fp32": "cpu", "openvino fp32": "cpu-openvino", "openvino bf16": "cpu-bf16"}


def plan_rows(rounds: int) -> Iterator[Row]:
    """Bytes and seconds of TensorRT-RTX plans in FP16, chained against an engine an exit."""
    for name in ("DiT-S/2", "DiT-B/2"):
        with TemporaryDirectory() as temporary:
            work = Path(temporary)
            recipe, _ = random_recipe(name, work)
            bundle = work / "bundle"
            exits = len(bundle_from_recipe(recipe, bundle).exits)
            seconds: dict[str, list[tuple[float, float]]] = {layout: [] for layout in LAYOUTS}
            sizes, errors = {}, {}
            for _ in range(rounds):
                for layout, taken in seconds.items():
                    shutil.rmtree(work / layout, ignore_errors=True)
                    plans, clock = target("rtx-fp16", layout), _Clock("building ")
                    began = time.perf_counter()
                    built = engine_set_from_bundle(bundle, plans, work / layout, report=clock)
                    taken.append((clock.seconds(), time.perf_counter() - began))
                    sizes[layout] = sum(record.bytes for record in built.manifest.files)
                    errors[layout] = max(p.relative_error for p in built.manifest.exits)
            row: Row = {"network": name, "exits": exits}
            for layout, taken in seconds.items():
                row[f"{layout}, MiB"] = sizes[layout] / 2**20
                row[f"{layout}, plans s"] = median(plans for plans, _ in taken)
                row[f"{layout}, all s"] = median(whole for _, whole in taken)
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
        with TemporaryDirectory() as temporary:
            work = Path(temporary)
            half, full = (engine_set(bundle, work, kind) for kind in ("cuda-fp16", "cpu"))
            manifest = open_engine_set(half)
            # The same graphs on the CPU, which computes FP16 operators one by one.
            there = msgspec.structs.replace(manifest.target, options={})
            shown = msgspec.structs.replace(manifest, target=there)
            engine = engine_from_manifest(half, shown)
            with (
                Sampler(engine, manifest.interface) as narrow,
                Sampler.open(full) as wide,
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
    plans = target("rtx-fp16")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "set"
        engine_set_from_bundle(fewer, plans, folder)
        planned = planned_build(bundle, plans, folder)
        engine_set_from_bundle(bundle, plans, folder)
        again = partial(engine_set_from_bundle, bundle, plans, folder)
        assert again().up_to_date
        return [
            {
                "segments": len(planned.segments),
                "built for one more exit": sum(not s.reused for s in planned.segments),
                "nothing changed, s": medians({"": again}, 5)[""],
            }
        ]


def openvino_rows(bundle: Path, rounds: int) -> Iterator[Row]:
    """Milliseconds at full depth, speed-ups over ONNX Runtime, and errors relative to it."""
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        folders = {n: engine_set(bundle, Path(temporary), kind) for n, kind in TARGETS.items()}
        engines, interface = _opened(folders, stack)
        depth = interface.exits[-1]
        for batch in (1, 4, 16):
            times = _times(engines, interface, depth, batch, rounds)
            reference, *others = times
            row: Row = {"batch": batch, "depth": depth}
            row |= {f"{name}, ms": value for name, value in times.items()}
            row |= {f"{name}, speed-up": times[reference] / times[name] for name in others}
            errors = _errors(engines, interface, depth, batch)
            yield row | {f"{name}, error": error for name, error in errors.items()}


def openvino_layout_rows(bundle: Path, rounds: int) -> Iterator[Row]:
    """Milliseconds of BF16 engines in both layouts, at every exit."""
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        engines, interface = _opened(_in_layouts(bundle, Path(temporary)), stack)
        for batch in (1, 4, 16):
            for depth in interface.exits:
                times = _times(engines, interface, depth, batch, rounds)
                row = {f"{name}, ms": value for name, value in times.items()}
                yield {"batch": batch, "depth": depth} | row


def openvino_opening_rows(bundle: Path, rounds: int) -> Iterator[Row]:
    """Seconds and resident MiB of opening an engine set, with its blobs and without."""
    with TemporaryDirectory() as temporary:
        for layout, folder in _in_layouts(bundle, Path(temporary)).items():
            bare = folder.with_name(f"{layout}-bare")
            shutil.copytree(folder, bare)
            _without_blobs(bare)
            calls = {
                name: (opening, place, "openvino")
                for name, place in (("blobs", folder), ("graphs", bare))
            }
            row: Row = {"layout": layout}
            for name, opened in medians_in_turns(calls, rounds).items():
                row |= {f"{name}, s": opened["open"], f"{name}, MiB": opened["engines"]}
            yield row | {"speed-up": row["graphs, s"] / row["blobs, s"]}


def _in_layouts(bundle: Path, work: Path) -> dict[str, Path]:
    return {layout: engine_set(bundle, work, "cpu-bf16", layout) for layout in LAYOUTS}


def _opened(folders: Mapping[str, Path], stack: ExitStack) -> tuple[dict[str, Engine], Interface]:
    """Engines by name, open as long as the stack lasts, and their interface."""
    opened = {name: open_engine(folder) for name, folder in folders.items()}
    interface = next(iter(opened.values()))[1].interface
    return {name: stack.enter_context(engine) for name, (engine, _) in opened.items()}, interface


def _times(
    engines: Mapping[str, Engine], interface: Interface, depth: int, batch: int, rounds: int
) -> Row:
    """Milliseconds of an evaluation by each engine, in turns."""
    actions = {
        name: partial(engine.evaluate, depth, *_given(interface, batch, 500))
        for name, engine in engines.items()
    }
    return milliseconds(actions, rounds if batch > 1 else 5 * rounds)


def _given(interface: Interface, batch: int, t: float) -> tuple[Array, Array, dict[str, Array]]:
    """Input, timestep and conditions of an evaluation."""
    given = random_inputs(interface, batch, t, seed=0)
    return given["x"], given["t"], {name: given[name] for name in interface.conditions}


def _errors(
    engines: Mapping[str, Engine], interface: Interface, depth: int, batch: int
) -> dict[str, float]:
    """Largest |difference| to the first engine over its largest |output|, at any timestep."""
    (_, reference), *others = engines.items()
    worst = dict.fromkeys((name for name, _ in others), 0.0)
    last = interface.process.timesteps - 1
    for t in np.linspace(0, last, 11).round():
        given = _given(interface, batch, t)
        wanted = reference.evaluate(depth, *given)[0]
        for name, engine in others:
            difference = np.abs(engine.evaluate(depth, *given)[0] - wanted).max()
            worst[name] = max(worst[name], float(difference / np.abs(wanted).max()))
    return worst


def _without_blobs(folder: Path) -> None:
    manifest = open_engine_set(folder)
    kept = tuple(record for record in manifest.files if not record.name.endswith(".blob"))
    write_manifest(folder, msgspec.structs.replace(manifest, files=kept))
