"""Benchmarks of precisions: speed on a CPU, samples, calibration, weights alone, plans."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from bench_runtime import open_samplers, step_row
from bundles import engine_set, random_recipe, target
from children import medians_in_turns, opening
from results import OUT, RECIPE, Row, run_eecompile

from eecompile import Sampler
from eecompile.backends import BACKENDS
from eecompile.compiler import bundle_from_recipe
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.recipe import load_recipe
from eecompile.store.bundle import open_engine_set
from eecompile.store.manifest import EngineManifest
from eecompile.store.target import Quantise, Tolerance
from eecompile.tune.report import Front, read_front

TARGETS = {
    "onnxruntime fp32": "cpu",
    "openvino fp32": "cpu-openvino",
    "openvino bf16": "cpu-bf16",
    "onnxruntime int8": "cpu-int8-ort",
    "openvino int8": "cpu-int8",
}
STEPS = 15
TRAINED = "fashion-dit"
SMALL = (TRAINED, "DiT-S/2", "DiT-B/2")
LARGE = ("DiT-XL/2", "PixArt-alpha 256")
WEIGHTS = {
    "fp32": None,
    "int8": Quantise(kind="int8-weights", search=False),
    "int4": Quantise(kind="int4-weights", search=False),
}
TUNED = (("ddim", 50), ("dpmpp-2m", 20))
BUDGETS = (0.5, 0.3, 0.2, 0.1)
_ANY = Tolerance(absolute=1e9, relative=1.0)


class Bundles:
    """Bundles by network, made where they are first asked for; large ones of full depth alone."""

    def __init__(self, work: Path) -> None:
        self._work = work

    def __getitem__(self, network: str) -> Path:
        folder = self._work / network.replace("/", "-")
        if not (folder / "bundle").exists():
            recipe = RECIPE if network == TRAINED else random_recipe(network, folder)[0]
            deepest = load_recipe(recipe).network.exits[-1:]
            bundle_from_recipe(
                recipe, folder / "bundle", exits=deepest if network in LARGE else None
            )
        return folder / "bundle"


def built(bundle: Path, work: Path, name: str, trained: bool) -> Path:
    """The engine set of a bundle for a target of the project, within ``work``.

    Samplings with random weights diverge, which no tolerance fits: of such a network every operator
    is quantised, and only speed and bytes say anything.
    """
    chosen = target(name)
    if chosen.quantise is not None and not trained:
        quantise = msgspec.structs.replace(chosen.quantise, samples=2, search=False)
        chosen = msgspec.structs.replace(chosen, quantise=quantise, tolerance=_ANY)
    engine_set_from_bundle(bundle, chosen, work / name)
    return work / name


def speed_rows(bundles: Bundles, batches: tuple[int, ...], rounds: int) -> Iterator[Row]:
    """Milliseconds a step at full depth, and speed-ups over ONNX Runtime in FP32."""
    for network in SMALL:
        with TemporaryDirectory() as temporary:
            bundle = bundles[network]
            work, trained = Path(temporary), network == TRAINED
            folders = {n: built(bundle, work, k, trained) for n, k in TARGETS.items()}
            with open_samplers(folders) as samplers:
                for batch in batches:
                    times = step_row(samplers, batch, "full", rounds)
                    reference, *others = times
                    row: Row = {"network": network, "batch": batch}
                    row[f"{reference}, ms"] = times[reference]
                    yield row | {f"{n}, speed-up": times[reference] / times[n] for n in others}


def sample_rows(bundles: Bundles) -> Iterator[Row]:
    """What is quantised, errors of evaluations, and PSNR of samples against FP32's."""
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders = {name: engine_set(bundles[TRAINED], work, k) for name, k in TARGETS.items()}
        chosen = {"steps": STEPS, "seed": 0, "guidance": 1.0, "schedule": "full"}
        with Sampler.open(folders["onnxruntime fp32"]) as sampler:
            expected = sampler.sample(8, **chosen)
        for name, folder in folders.items():
            if "fp32" in name:
                continue
            with Sampler.open(folder) as sampler:
                found = sampler.sample(8, **chosen)
            peak = float(expected.max() - expected.min())
            squared = float(np.mean(np.square(expected - found)))
            manifest = open_engine_set(folder)
            yield (
                {"network": TRAINED, "target": name}
                | _quantised(manifest)
                | {
                    "worst relative error": max(p.relative_error for p in manifest.exits),
                    "PSNR, dB": 10 * np.log10(peak**2 / squared).item(),
                }
            )


def _quantised(manifest: EngineManifest) -> Row:
    found = manifest.quantisation
    if found is None:
        return {"quantised": 0.0, "kept": 0, "operators": 0}
    return {
        "quantised": found.share,
        "kept": sum(operator.kept for operator in found.operators),
        "operators": len(found.operators),
    }


def calibration_rows(bundles: Bundles) -> Iterator[Row]:
    """Errors of held-out samples by the number of samples that ranges are taken from.

    What the usual number of samples leaves in FP32 is left so with all.
    """
    with TemporaryDirectory() as temporary:
        searched = open_engine_set(engine_set(bundles[TRAINED], Path(temporary), "cpu-int8-ort"))
    assert searched.quantisation is not None
    kept = tuple(f" {re.escape(o.name)}$" for o in searched.quantisation.operators if o.kept)
    for samples in (1, 2, 4, 8, 16):
        with TemporaryDirectory() as temporary:
            quantise = Quantise(kind="int8", samples=samples, keep=kept, search=False)
            wide = msgspec.structs.replace(
                target("cpu-int8-ort"),
                quantise=quantise,
                tolerance=Tolerance(absolute=0, relative=10),
            )
            built = engine_set_from_bundle(bundles[TRAINED], wide, Path(temporary) / "set")
            found = built.manifest.quantisation
            assert found is not None
            errors = [point.mean for plan in built.manifest.exits for point in plan.points]
            yield {
                "samples": samples,
                "rows": found.rows,
                "worst relative error": max(p.relative_error for p in built.manifest.exits),
                "mean error": float(np.mean(errors)),
            }


def weight_rows(
    bundles: Bundles, networks: Sequence[str], kinds: Sequence[str], rounds: int
) -> Iterator[Row]:
    """Bytes of graphs, and MiB that a set takes once opened, by what weights are stored in."""
    for network in networks:
        bundle = bundles[network]
        for backend in ("openvino", "onnxruntime"):
            with TemporaryDirectory() as temporary:
                folders = {}
                for name in kinds:
                    folders[name] = Path(temporary) / name
                    wide = msgspec.structs.replace(
                        target("cpu-int4"),
                        backend=backend,
                        options=target("cpu-int4").options if backend == "openvino" else {},
                        quantise=WEIGHTS[name],
                        tolerance=_ANY,
                    )
                    engine_set_from_bundle(bundle, wide, folders[name])
                library = BACKENDS[backend].library
                calls = {name: (opening, place, library, 1) for name, place in folders.items()}
                opened = medians_in_turns(calls, rounds)
                sets = {name: open_engine_set(folder) for name, folder in folders.items()}
                size = {name: made.segments[-1].bytes for name, made in sets.items()}
                row: Row = {"network": network, "backend": backend}
                for name in kinds:
                    row[f"{name}, weights over fp32"] = size[name] / size["fp32"]
                    row[f"{name}, resident MiB"] = opened[name]["engines"]
                    row[f"{name}, at most MiB"] = opened[name]["peak"]
                    if network == TRAINED:  # those of random weights say nothing
                        row[f"{name}, error"] = max(p.relative_error for p in sets[name].exits)
                yield row


def choice_rows(bundles: Bundles) -> Iterator[Row]:
    """What INT8, depth and forecasts each buy alone, and together, by 'eecompile tune'.

    Engine sets and fronts stay in the shipped network's folder, for 'eecompile evaluate'.
    """
    names = ("cpu-openvino", "cpu-bf16", "cpu-int8")
    first, *more = (engine_set(bundles[TRAINED], OUT, name) for name in names)
    for solver, steps in TUNED:
        folder = OUT / f"precision-{solver}-{steps}"
        run_eecompile(
            *("tune", first, *(f"--engines={each}" for each in more), "-o", folder, "--force"),
            *("--solver", solver, "--steps", steps),
            *(f"--budget={budget}" for budget in BUDGETS),
        )
        yield from front_rows(f"{solver}, {steps} steps", read_front(folder / "front.json"))


def front_rows(solver: str, front: Front) -> Iterator[Row]:
    """What was found for each budget, with one kind of choice and with all; other engine sets."""
    deepest = front.points[0].choices[0].blocks
    for point in front.points:
        whole = point.kind == "exit" and point.choices[0].blocks == deepest
        if whole or point.kind in ("found", "alone", "steps"):
            name = point.name.partition(" alone")[0].removeprefix(f"exit {deepest}@")
            yield {
                "solver": solver,
                "within": point.budget,
                "by": "all together" if point.kind == "found" else name,
                "time": point.time_share,
                "distance": point.distance,
                "95 %": point.interval,
            }


def plan_rows(bundles: Bundles) -> Iterator[Row]:
    """Bytes of TensorRT-RTX plans over those in FP16, and errors of their graphs."""
    for network in SMALL:
        bundle = bundles[network]
        with TemporaryDirectory() as temporary:
            names = ("rtx-fp16", "rtx-int8", "rtx-fp8")
            work = Path(temporary)
            sets = {name: built(bundle, work, name, network == TRAINED) for name in names}
            size = {n: sum(r.bytes for r in open_engine_set(f).files) for n, f in sets.items()}
            for name in names[1:]:
                manifest = open_engine_set(sets[name])
                yield (
                    {"network": network, "target": name}
                    | _quantised(manifest)
                    | {
                        "bytes over FP16": size[name] / size["rtx-fp16"],
                        "worst relative error": max(p.relative_error for p in manifest.exits),
                    }
                )
