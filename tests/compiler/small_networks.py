"""Recipes of published networks, made small, with random weights."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from eecompile.recipe import load_recipe
from tests.conftest import ROOT

# A DiT of 4 narrow blocks instead of one of the paper's.
NARROW = {
    "dit:dit_from_name": "dit:DiT",
    'name = "DiT.*"': "depth = 4\nwidth = 32\nheads = 4\npatch = 8\nlearn_sigma = true",
}
# Recipe, and what of it is changed to make the network small.
SMALL: dict[str, tuple[str, dict[str, str]]] = {
    "dit": (
        "dit-xl2-256",
        {
            **NARROW,
            "exits = .*": "exits = [1, 2, 4]",
            "size = 32.*": "size = 16\nchannels = 2\nclasses = 9",
            "shape = .*": "shape = [2, 16, 16]",
            r"range = \[0, 999\]": "range = [0, 8]",
            "null = 1000": "null = 9",
            "ase = .*": "ase = [4, 2, 1]",
            "guided_channels = .*": "guided_channels = 1",
        },
    ),
    "dit of any size": (
        "dit-xl2-256",
        {
            **NARROW,
            "exits = .*": "exits = [2, 4]",
            "size = 32.*": "size = 32\nchannels = 4\nclasses = 1000\nlargest = 64",
            "shape = .*": "shape = [4, 32, 32]\n"
            "resizable = { axes = [1, 2], min = 16, max = 64, multiple = 8 }",
            "ase = .*": "ase = [4, 2]",
        },
    ),
    "uvit": (
        "uvit-s4-celeba64",
        {
            "exits = .*": "exits = [3, 4, 5]",
            "width = .*": "width = 32",
            "depth = .*": "depth = 4",
            "heads = .*": "heads = 4\nmlp_time_embed = true",
            "size = 64": "size = 16",
            "shape = .*": "shape = [3, 16, 16]",
            "descending = .*": "descending = [5, 4, 3]",
        },
    ),
    "uvit with classes": (
        "uvit-h2-imagenet256",
        {
            "exits = .*": "exits = [3, 5]",
            "width = .*": "width = 32",
            "depth = .*": "depth = 4",
            "heads = .*": "heads = 4",
            "size = 32.*": "size = 8",
            "shape = .*": "shape = [4, 8, 8]",
            "descending = .*": "descending = [5, 3]",
        },
    ),
    "dit of diffusers": (
        "dit-xl2-256-diffusers",
        {
            "exits = .*": "exits = [2, 3, 5]",
            "num_attention_heads = .*": "num_attention_heads = 2",
            "attention_head_dim = .*": "attention_head_dim = 8",
            "num_layers = .*": "num_layers = 5",
            "sample_size = .*": "sample_size = 8",
            "shape = .*": "shape = [4, 8, 8]",
            "ase = .*": "ase = [5, 3, 2]",
        },
    ),
    "pixart": (
        "pixart-alpha-512",
        {
            "exits = .*": "exits = [2, 3, 5]",
            "num_attention_heads = .*": "num_attention_heads = 2",
            "attention_head_dim = .*": "attention_head_dim = 8",
            "num_layers = .*": "num_layers = 5",
            "cross_attention_dim = .*": "cross_attention_dim = 16",
            "caption_channels = .*": "caption_channels = 12",
            "sample_size = .*": "sample_size = 8",
            r"shape = \[4, 64, 64\]": "shape = [4, 8, 8]",
            r"shape = \[120, 4096\]": "shape = [7, 12]",
            r"shape = \[120\]": "shape = [7]",
            "descending = .*": "descending = [5, 3, 2]",
        },
    ),
}


SMALL["DiT-S/2"] = (
    "dit-xl2-256",
    {
        "exits = .*": "exits = [6, 12]",
        '"DiT-XL/2"': '"DiT-S/2"',
        "ase = .*": "ase = [12, 6]",
    },
)


def write(name: str, folder: Path) -> Path:
    """The small recipe and its checkpoint, of random weights; returns the recipe."""
    recipe, changes = SMALL[name]
    text = (ROOT / "export" / f"{recipe}.toml").read_text()
    for old, new in {**changes, 'checkpoint = ".*"': 'checkpoint = "w.safetensors"'}.items():
        text, count = re.subn(old, new, text)
        assert count, old
    path = folder / "recipe.toml"
    path.write_text(text)
    network = load_recipe(path).network
    assert network.factory
    module, _, attribute = network.factory.partition(":")
    exits: dict[str, Any] = {} if network.blocks else {"exits": network.exits}
    made = getattr(importlib.import_module(module), attribute)(**exits, **network.options)
    draws = torch.Generator().manual_seed(0)
    state = made.state_dict()
    for key, value in state.items():
        fan = value[0].numel() if value.ndim > 1 else 50
        value.copy_(torch.randn(value.shape, generator=draws) / fan**0.5)
        # The published checkpoint repeats the embedders in every block.
        first = re.sub(r"\.\d+\.norm1\.emb\.", ".0.norm1.emb.", key)
        value.copy_(state[first])
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "w.safetensors")
    return path
