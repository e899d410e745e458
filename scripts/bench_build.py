"""Benchmarks of exports and builds: full size, layouts, half precision, rebuilds, OpenVINO."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from bench_runtime import exit_rows, open_samplers, step_row
from bundles import LAYOUTS, NETWORKS, engine_set, random_recipe, target
from children import exported, medians_in_turns, opening, runs_in_turns
from results import ROOT, Row, medians

from eecompile import Sampler
from eecompile.compiler import bundle_from_recipe
from eecompile.compiler.build import engine_set_from_bundle, planned_build
from eecompile.compiler.verify import random_inputs
from eecompile.runtime.opening import engine_from_manifest
from eecompile.store.bundle import open_engine_set, write_manifest

TARGETS = {"onnxruntime fp32": "cpu", "openvino fp32": "cpu-openvino", "openvino bf16": "cpu-bf16"}

# Networks of other benchmarks.
_OF_OTHERS = ("DiT-B/2", "tiny", "PixArt-alpha 256", "PixArt-alpha 256, 6 layers")


def export_rows(names: Sequence[str] | None, rounds: int | None) -> Iterator[Row]:
    """Time, peak memory, bytes and errors of exports at full size, a row a network.

    Networks are filled with random weights: what is measured does not depend on them. Every
    export runs in a process of its own; by default three of each kind, one above 1 GB.
    """
    (ROOT / "out").mkdir(exist_ok=True)
    for name in names or [name for name in NETWORKS if name not in _OF_OTHERS]:
        with TemporaryDirectory(dir=ROOT / "out") as temporary:
            row = _row(name, Path(temporary), rounds)
        print(json.dumps(row), flush=True)
        yield row


def _row(name: str, work: Path, rounds: int | None) -> Row:
    recipe, unique = random_recipe(name, work)
    rounds = rounds or (1 if unique > 1e9 else 3)
    kinds = {"full": True, "all": False}
    calls = {kind: (exported, recipe, work / "bundle", alone) for kind, alone in kinds.items()}
    runs = runs_in_turns(calls, rounds)
    full, every = runs["full"], runs["all"]
    seconds = {kind: median(columns["seconds"]) for kind, columns in runs.items()}
    return {
        "network": name,
        "exits": every["exits"][0],
        "parameters_m": unique / 4e6,
        "rounds": rounds,
        "seconds_full_depth": seconds["full"],
        "seconds_all_exits": seconds["all"],
        "ratio": seconds["all"] / seconds["full"],
        "peak_gib": max(every["peak_bytes"]) / 2**30,
        "peak_over_weights": max(every["peak_bytes"]) / unique,
        "bytes_over_unique": every["bundle_bytes"][0] / unique,
        "bytes_over_full": every["bundle_bytes"][0] / full["bundle_bytes"][0],
        "relative_error": every["relative_error"][0],
    }


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
    """Seconds of a build with nothing to do, and what one exit more than ``fewer`` builds."""
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
    """Milliseconds a step at full depth, speed-ups over ONNX Runtime, and errors relative to it."""
    with TemporaryDirectory() as temporary:
        folders = {n: engine_set(bundle, Path(temporary), kind) for n, kind in TARGETS.items()}
        with open_samplers(folders) as samplers:
            for batch in (1, 4, 16):
                times = step_row(samplers, batch, "full", rounds if batch > 1 else 5 * rounds)
                reference, *others = times
                depth = samplers[reference].interface.exits[-1]
                row: Row = {"batch": batch, "depth": depth}
                row |= {f"{name}, ms": value for name, value in times.items()}
                row |= {f"{name}, speed-up": times[reference] / times[name] for name in others}
                errors = _errors(samplers, depth, batch)
                yield row | {f"{name}, error": error for name, error in errors.items()}


def _errors(samplers: Mapping[str, Sampler], depth: int, batch: int) -> dict[str, float]:
    """Largest |difference| to the first engine over its largest |output|, at any timestep."""
    (_, reference), *others = samplers.items()
    worst = dict.fromkeys((name for name, _ in others), 0.0)
    last = reference.interface.process.timesteps - 1
    for t in np.linspace(0, last, 11).round():
        given = random_inputs(reference.interface, batch, t, seed=0)
        inputs = given.pop("x"), given.pop("t"), given
        wanted = reference.engine.evaluate(depth, *inputs)[0]
        for name, sampler in others:
            difference = np.abs(sampler.engine.evaluate(depth, *inputs)[0] - wanted).max()
            worst[name] = max(worst[name], float(difference / np.abs(wanted).max()))
    return worst


def openvino_layout_rows(bundle: Path, rounds: int) -> Iterator[Row]:
    """Milliseconds a step of BF16 engines in both layouts, at every exit."""
    with (
        TemporaryDirectory() as temporary,
        open_samplers(_in_layouts(bundle, Path(temporary))) as samplers,
    ):
        yield from exit_rows(samplers, (1,), 5 * rounds, ", ms")
        yield from exit_rows(samplers, (4, 16), rounds, ", ms")


def openvino_opening_rows(bundle: Path, rounds: int) -> Iterator[Row]:
    """Seconds and resident MiB of opening an engine set, with its blobs and without."""
    with TemporaryDirectory() as temporary:
        for layout, folder in _in_layouts(bundle, Path(temporary)).items():
            bare = folder.with_name(f"{layout}-bare")
            shutil.copytree(folder, bare)
            manifest = open_engine_set(bare)
            kept = tuple(record for record in manifest.files if not record.name.endswith(".blob"))
            write_manifest(bare, msgspec.structs.replace(manifest, files=kept))
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
