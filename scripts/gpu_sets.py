"""What the parts of scripts/gpu measure: networks, their bundles, and their engine sets.

A rehearsal has a tiny network in the place of every other, and few and small samples.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from bundles import random_recipe, target
from rehearsal import REHEARSES
from results import RECIPE, ROOT, Row

from eecompile import BackendError, Sampler
from eecompile.compiler import bundle_from_recipe, engine_set_from_bundle

WORK = ROOT / "out" / ("rehearsal" if REHEARSES else "gpu")
DEVICE = "cpu" if REHEARSES else "cuda"
SHIPPED, SMALL, LARGE = ("tiny",) * 3 if REHEARSES else ("fashion-dit", "DiT-S/2", "DiT-XL/2")
BATCHES, STEPS, LONG, ROUNDS = ((2,), 6, 8, 1) if REHEARSES else ((1, 4, 16), 20, 50, 7)

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
QUANTISED = ("rtx-int8", "rtx-fp8", "tensorrt-int8", "tensorrt-fp8")
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
    folder = work(network)
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        random_recipe(network, part)
        part.rename(folder)
    return folder / "recipe.toml"


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


def running(network: str, names: Iterable[str] = SERVED) -> dict[str, Path]:
    """Of these targets, those that run here: their engine sets.

    Which ones those are the shipped network tells, whose engine sets are built in seconds.
    """
    found = {}
    for name in names if network == SHIPPED else running(SHIPPED, names):
        with suppress(BackendError):
            folder = built(network, name)
            Sampler.open(folder).close()
            found[name] = folder
    return found


def best(network: str) -> dict[str, Path]:
    """The first engine set that runs here and has spans."""
    for name in SERVED:
        chained = target(TARGETS[name][0]).layout == "chained" or "layout" in TARGETS[name][1]
        if chained and (found := running(network, [name])):
            return found
    raise SystemExit("error: no engine set with spans runs here; the part 'plans' says why.")


def sets(network: str) -> dict[str, Path]:
    """The engine sets that are measured; of a large network, one."""
    return best(network) if network == "DiT-XL/2" else running(network)
