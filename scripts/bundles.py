"""The networks that benchmarks run: bundles with random weights, and engine sets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from children import in_child, random_checkpoint
from results import ROOT

from eecompile.compiler import bundle_from_recipe, engine_set_from_bundle
from eecompile.recipe import load_recipe
from eecompile.store import Target, load_target

LAYOUTS = ("per_exit", "chained")
TARGETS = {"per_exit": "cpu", "chained": "cpu-chained"}


def _dit(size: str, exits: Sequence[int]) -> tuple[str, dict[str, str]]:
    """The recipe of DiT-XL/2, changed to a smaller one."""
    changes = {
        "exits = .*": f"exits = {list(exits)}",
        '"DiT-XL/2"': f'"{size}"',
        "ase = .*": f"ase = {list(reversed(exits))}",
    }
    return "dit-xl2-256", changes


# Of 4 narrow blocks: commands take seconds.
_TINY = {
    r"(?s)half = \[.*?\n\]\nase = .*?\n": "",
    "width = 128": "width = 16",
    "depth = 12": "depth = 4",
    r"exits = \[3, 6, 9, 12\]": "exits = [1, 2, 4]",
    r"balanced = \[.*?\]": "balanced = [2, 4, 4, 2, 1]",
    r"fast = \[.*?\]": "fast = [4, 2, 1, 1]",
    'schedule = "half"': 'schedule = "balanced"',
}

_PIXART_256 = {
    "sample_size = .*": "sample_size = 32",
    r"shape = \[4, 64, 64\]": "shape = [4, 32, 32]",
}

# Recipe, and what of it is changed.
NETWORKS = {
    "tiny": ("fashion-dit", _TINY),
    "fashion-dit": ("fashion-dit", {}),
    "DiT-S/2": _dit("DiT-S/2", (4, 6, 8, 12)),
    "DiT-B/2": _dit("DiT-B/2", (4, 6, 8, 10, 12)),
    "U-ViT-S/4 CelebA-64": ("uvit-s4-celeba64", {}),
    "U-ViT-L/2 ImageNet-256": ("uvit-l2-imagenet256", {}),
    "U-ViT-H/2 ImageNet-256": ("uvit-h2-imagenet256", {}),
    "DiT-XL/2": ("dit-xl2-256", {}),
    "DiT-XL/2 of diffusers": ("dit-xl2-256-diffusers", {}),
    "PixArt-alpha 512": ("pixart-alpha-512", {}),
    # Its U-Net alone, without encoder and decoder.
    "Stable Diffusion 1.5": (
        "stable-diffusion-v1-5",
        {r"(?s)\[encoders\..*?(?=\[sampling\])": "", "guidance = .*": "guidance = 1"},
    ),
    "PixArt-Sigma 256 with T5-XXL, 6 layers": (
        "pixart-sigma-xl-2-1024-ms",
        {
            "sample_size = .*": "sample_size = 32",
            r"shape = \[4, 128, 128\]": "shape = [4, 32, 32]",
            r'checkpoint = ".*/text_encoder"': 'checkpoint = "t5"',
            "tokenizer = .*": 'tokenizer = "t5"',
            r"(?s)\[decoder\].*?(?=\[sampling\])": "",
        },
    ),
    # For a smaller picture.
    "PixArt-alpha 256": ("pixart-alpha-512", _PIXART_256),
    # Of its true width and heads.
    "PixArt-alpha 256, 6 layers": (
        "pixart-alpha-512",
        {
            **_PIXART_256,
            "exits = .*": "exits = [6]",
            "num_layers = .*": "num_layers = 6",
            r"descending = .*": "descending = [6]",
        },
    ),
}


def random_recipe(name: str, work: Path) -> tuple[Path, int]:
    """A recipe of one of NETWORKS with a random checkpoint beside it; its path and bytes."""
    return changed_recipe(*NETWORKS[name], work)


def changed_recipe(recipe: str, changes: Mapping[str, str], work: Path) -> tuple[Path, int]:
    """The same of one of the project's recipes, with what regular expressions find replaced."""
    text = (ROOT / "export" / f"{recipe}.toml").read_text()
    for old, new in changes.items():
        text, count = re.subn(old, new, text)
        assert count, old
    work.mkdir(exist_ok=True)
    path = work / "recipe.toml"
    path.write_text(
        re.sub('checkpoint = ".*"', 'checkpoint = "weights.safetensors"', text, count=1)
    )
    return path, in_child(random_checkpoint, path)


def bundles_of(recipe: Path, work: Path) -> tuple[Path, Path]:
    """Bundles of a recipe's network, with all exits, and with full depth alone."""
    bundle_from_recipe(recipe, work / "bundle")
    deepest = load_recipe(recipe).network.exits[-1:]
    bundle_from_recipe(recipe, work / "deepest", exits=deepest)
    return work / "bundle", work / "deepest"


def target(name: str, layout: str = "") -> Target:
    """A target of the project, in another layout where one is named."""
    made = load_target(ROOT / "engines" / f"{name}.toml")
    return msgspec.structs.replace(made, layout=layout) if layout else made


def engine_set(bundle: Path, work: Path, name: str, layout: str = "") -> Path:
    """The engine set of a bundle for a target of the project; its folder is within ``work``."""
    folder = work / (f"{name}-{layout}" if layout else name)
    engine_set_from_bundle(bundle, target(name, layout), folder)
    return folder
