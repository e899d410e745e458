"""Exports at full size: time, peak memory, bytes and errors, all exits against the deepest.

Networks are filled with random weights: what is measured does not depend on them. Every
export runs in a process of its own; peak memory is what the system says of that process,
pages of mapped files included.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]

# Recipe, and what of it is changed.
NETWORKS: dict[str, tuple[str, dict[str, str]]] = {
    "fashion-dit": ("fashion-dit", {}),
    "DiT-S/2": (
        "dit-xl2-256",
        {
            "exits = .*": "exits = [4, 6, 8, 12]",
            '"DiT-XL/2"': '"DiT-S/2"',
            "ase = .*": "ase = [12, 8, 6, 4]",
        },
    ),
    "U-ViT-S/4 CelebA-64": ("uvit-s4-celeba64", {}),
    "U-ViT-L/2 ImageNet-256": ("uvit-l2-imagenet256", {}),
    "U-ViT-H/2 ImageNet-256": ("uvit-h2-imagenet256", {}),
    "DiT-XL/2": ("dit-xl2-256", {}),
    "DiT-XL/2 of diffusers": ("dit-xl2-256-diffusers", {}),
    "PixArt-alpha 512": ("pixart-alpha-512", {}),
}


def export_rows(names: list[str], rounds: int | None) -> Iterator[Row]:
    """A row a network, as each is done.

    Args:
        names: of networks; all if empty.
        rounds: exports of each kind; None takes three, one for networks above 1 GB.
    """
    for name in names or NETWORKS:
        with tempfile.TemporaryDirectory(dir=ROOT / "out") as temporary:
            row = _row(name, Path(temporary), rounds)
        print(json.dumps(row), flush=True)
        yield row


def _row(name: str, work: Path, rounds: int | None) -> Row:
    recipe = _recipe(name, work)
    unique = _child("make", recipe)["unique_bytes"]
    rounds = rounds or (1 if unique > 1e9 else 3)
    alternating: dict[str, list[Row]] = {"full": [], "all": []}
    for _ in range(rounds):
        for exits, runs in alternating.items():
            runs.append(_child("export", recipe, exits))
            shutil.rmtree(work / "bundle")
    full, every = alternating["full"], alternating["all"]
    seconds = {
        what: statistics.median(run["seconds"] for run in runs)
        for what, runs in alternating.items()
    }
    return {
        "network": name,
        "exits": len(every[0]["exits"]),
        "parameters_m": unique / 4e6,
        "rounds": rounds,
        "seconds_full_depth": seconds["full"],
        "seconds_all_exits": seconds["all"],
        "ratio": seconds["all"] / seconds["full"],
        "peak_gib": max(run["peak_bytes"] for run in every) / 2**30,
        "peak_over_weights": max(run["peak_bytes"] for run in every) / unique,
        "bytes_over_unique": every[0]["bundle_bytes"] / unique,
        "bytes_over_full": every[0]["bundle_bytes"] / full[0]["bundle_bytes"],
        "relative_error": every[0]["relative_error"],
    }


def _recipe(name: str, work: Path) -> Path:
    return changed_recipe(*NETWORKS[name], work)


def changed_recipe(recipe: str, changes: dict[str, str], work: Path) -> Path:
    """A recipe of the project with lines replaced, and a checkpoint beside it; its path."""
    text = (ROOT / "export" / f"{recipe}.toml").read_text()
    for old, new in changes.items():
        text, count = re.subn(old, new, text)
        assert count, old
    path = work / "recipe.toml"
    path.write_text(re.sub('checkpoint = ".*"', 'checkpoint = "weights.safetensors"', text))
    return path


def _child(*arguments: object) -> Row:
    command = [sys.executable, __file__, *map(str, arguments)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    row: Row = json.loads(result.stdout.splitlines()[-1])
    return row


def make(path: Path) -> Row:
    """Fill the recipe's network at random; write its checkpoint. Equal embedders stay equal."""
    import torch
    from safetensors.torch import save_file

    from eecompile.recipe import load_recipe

    recipe = load_recipe(path).network
    module, _, name = (recipe.factory or "").partition(":")
    exits = {} if recipe.blocks else {"exits": recipe.exits}
    network = getattr(importlib.import_module(module), name)(**exits, **recipe.options)
    draws = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            fan = value[0].numel() if value.ndim > 1 else 100
            value.copy_(torch.randn(value.shape, generator=draws) / fan**0.5)
        first = re.sub(r"\.\d+\.norm1\.emb\.", ".0.norm1.emb.", key)
        if first != key:  # the published checkpoint repeats the embedder in every block
            value.copy_(state[first])
    save_file(
        {key: value.contiguous() for key, value in state.items()},
        path.parent / "weights.safetensors",
    )
    tensors = [*network.parameters(), *network.buffers()]
    sizes = {
        hashlib.sha256(tensor.detach().numpy().tobytes()).digest(): 4 * tensor.numel()
        for tensor in tensors
    }
    return {"unique_bytes": sum(sizes.values())}


def export(path: Path, exits: str) -> Row:
    """Export once; time and peak memory of this process."""
    from eecompile.compiler.export import bundle_from_recipe
    from eecompile.recipe import load_recipe

    deepest = load_recipe(path).network.exits[-1:]
    began = time.perf_counter()
    manifest = bundle_from_recipe(
        path, path.parent / "bundle", exits=deepest if exits == "full" else None
    )
    return {
        "seconds": time.perf_counter() - began,
        "peak_bytes": _peak_memory(),
        "bundle_bytes": sum(record.bytes for record in manifest.files),
        "exits": manifest.interface.exits,
        "relative_error": max(exit_.relative_error for exit_ in manifest.exits),
    }


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    steps = {"make": make, "export": lambda path, exits="all": export(path, exits)}
    print(json.dumps(steps[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])))
