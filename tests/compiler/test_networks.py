"""The recipes' networks at a small size: chained, per exit and torch agree."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.verify import random_inputs
from eecompile.networks.load import load_network
from eecompile.recipe import load_recipe
from eecompile.runtime.opening import open_engine
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import BundleManifest, open_bundle, open_engine_set
from tests.conftest import ROOT, TARGETS
from tests.networks import reference

# Recipe, and what of it is changed to make the network small.
SMALL: dict[str, tuple[str, dict[str, str]]] = {
    "dit": (
        "dit-xl2-256",
        {
            "exits = .*": "exits = [3, 6, 12]",
            '"DiT-XL/2"': '"DiT-S/8"',
            "size = 32.*": "size = 16\nchannels = 2\nclasses = 9",
            "shape = .*": "shape = [2, 16, 16]",
            r"range = \[0, 999\]": "range = [0, 8]",
            "null = 1000": "null = 9",
            "ase = .*": "ase = [12, 6, 3]",
            "guided_channels = .*": "guided_channels = 1",
        },
    ),
    "dit of any size": (
        "dit-xl2-256",
        {
            "exits = .*": "exits = [4, 12]",
            '"DiT-XL/2"': '"DiT-S/8"',
            "size = 32.*": "size = 32\nlargest = 64",
            "shape = .*": "shape = [4, 32, 32]\n"
            "resizable = { axes = [1, 2], min = 16, max = 64, multiple = 8 }",
            "ase = .*": "ase = [12, 4]",
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
        "exits = .*": "exits = [4, 6, 8, 12]",
        '"DiT-XL/2"': '"DiT-S/2"',
        "ase = .*": "ase = [12, 8, 6, 4]",
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


# Of each kind of network one is exported fast by default, the others with the slow tests.
SLOW = ("dit of any size", "uvit with classes", "dit of diffusers")
PARAMS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in SMALL
    if name != "DiT-S/2"
]


@pytest.fixture(scope="module", params=PARAMS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small recipe, its bundle, and an engine set a layout."""
    folder = tmp_path_factory.mktemp("network")
    bundle_from_recipe(write(request.param, folder), folder / "bundle")
    for layout, target in TARGETS.items():
        engine_set_from_bundle(folder / "bundle", target, folder / layout)
    return folder


def test_chained_per_exit_and_torch_agree(exported: Path) -> None:
    recipe = load_recipe(exported / "recipe.toml")
    network = load_network(recipe.network, exported)
    manifest = open_bundle(exported / "bundle")
    interface = manifest.interface
    shapes = [interface.state.shape]
    if interface.state.resizable:
        shapes.append((4, 16, 56))
    engines = [open_engine(exported / layout)[0] for layout in TARGETS]
    for seed, shape in enumerate(shapes):
        point = random_inputs(interface, 5, 700, seed=seed + 50, shape=shape)
        with torch.no_grad():
            predictions = network(**{name: torch.from_numpy(v) for name, v in point.items()})
        conditions = {name: point[name] for name in interface.conditions}
        x, t = point["x"].astype(np.float32), point["t"].astype(np.float32)
        for depth, whole in zip(interface.exits, predictions, strict=True):
            expected = np.split(whole.numpy(), len(interface.outputs), axis=1)
            for engine in engines:
                found = engine.evaluate(depth, x, t, conditions)
                for output, right in zip(found, expected, strict=True):
                    np.testing.assert_allclose(output, right, atol=1e-4 * np.abs(right).max())


def test_every_exit_is_within_the_tolerance_of_torch(exported: Path) -> None:
    manifest = open_bundle(exported / "bundle")
    assert manifest.reference == "torch"
    assert all(0 < exit_.relative_error < 2e-4 for exit_ in manifest.exits)
    assert len({exit_.nodes for exit_ in manifest.exits}) == len(manifest.exits)


def test_every_weight_is_stored_once(exported: Path) -> None:
    manifest = open_bundle(exported / "bundle")
    shared = sum(entry.bytes for entry in manifest.sharing)
    weights = next(r.bytes for r in manifest.files if r.name == "weights.safetensors")
    padding = 8192 + 128 * weights_count(manifest, exported)
    assert shared <= weights < shared + padding
    # What the shallowest exit needs, every other one needs too: nothing is there twice.
    first = manifest.exits[0]
    assert first.unique_bytes == 0
    assert manifest.exits[-1].bytes == shared


def weights_count(manifest: BundleManifest, exported: Path) -> int:
    from safetensors import safe_open

    assert manifest.files
    with safe_open(exported / "bundle" / "weights.safetensors", "numpy") as file:
        return len(list(file.keys()))


def test_the_trunk_is_a_chain_with_a_head_an_exit(exported: Path) -> None:
    manifest = open_engine_set(exported / "chained")
    exits = manifest.interface.exits
    trunk = [exits[index:] for index in range(len(exits) - 1)]
    heads = [(depth,) for depth in exits]
    assert [segment.exits for segment in manifest.segments] == [*trunk, *heads]


def test_it_can_be_sampled(exported: Path) -> None:
    with Sampler.open(exported / "chained") as sampler:
        interface = sampler.interface
        given: dict[str, Any] = {}
        if "text" in interface.conditions:
            given["text"] = np.ones(interface.conditions["text"].shape)
            nulls = {"text": 0 * given["text"], "mask": np.ones(7, np.int64)}
            guided = sampler.sample(2, steps=3, guidance=2.0, nulls=nulls, **given)
            plain = sampler.sample(2, steps=3, guidance=1.0, **given)
            assert np.abs(guided - plain).max() > 1e-3
        for solver in ("ddim", "ddpm"):
            result = list(sampler.steps(2, solver=solver, steps=6, **given))
            assert result[-1].state.shape == (2, *interface.state.shape)
            assert [step.depth for step in result] == sorted(step.depth for step in result)
        if interface.state.resizable:
            wide = sampler.sample(1, steps=2, shape=(4, 16, 64))
            assert wide.shape == (1, 4, 16, 64)


def test_equal_embedders_of_every_block_are_stored_once(tmp_path: Path) -> None:
    path = write("dit of diffusers", tmp_path)
    manifest = bundle_from_recipe(path, tmp_path / "bundle")
    state = load_network(load_recipe(path).network, tmp_path).state_dict()  # type: ignore[attr-defined]
    embedders = [v.nbytes for k, v in state.items() if ".norm1.emb." in k]
    total = sum(value.nbytes for value in state.values())
    # Four of the five copies are gone.
    assert manifest.exits[-1].bytes < total - 0.79 * sum(embedders)


@pytest.mark.slow
def test_dit_s2_is_the_authors_forward_pass_cut_at_its_exits(tmp_path: Path) -> None:
    path = write("DiT-S/2", tmp_path)
    manifest = bundle_from_recipe(path, tmp_path / "bundle")
    state = load_file(tmp_path / "w.safetensors")
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 32, 32, generator=draws)
    t, label = torch.tensor([3.0, 700.0]), torch.tensor([1000, 207])
    for exit_ in manifest.exits:
        session = onnxruntime.InferenceSession(tmp_path / "bundle" / exit_.graph)
        feeds = {"x": x.numpy(), "t": t.numpy(), "label": label.numpy()}
        found = np.concatenate(session.run(None, feeds), axis=1)
        expected = reference.dit(state, x, t, label, depth=exit_.depth, heads=6).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
