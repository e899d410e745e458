"""The recipes' networks at a small size: chained, per exit and torch agree."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.graph.cuts import HEAD
from eecompile.compiler.verify import random_inputs
from eecompile.networks.load import load_network
from eecompile.recipe import load_recipe
from eecompile.runtime.opening import open_engine
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_bundle, open_engine_set
from eecompile.store.manifest import BundleManifest
from tests.compiler.small_networks import SMALL, write
from tests.conftest import TARGETS
from tests.networks import reference

# Of each kind of network one is exported fast by default, the others with the slow tests.
SLOW = ("dit of any size", "uvit with classes")
PARAMS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in SMALL
    if name != "DiT-S/2"
]


@pytest.fixture(params=PARAMS)
def exported(request: pytest.FixtureRequest, network_sets: Callable[[str], Path]) -> Path:
    """The folder of a small recipe, its bundle, and an engine set a layout."""
    return network_sets(request.param)


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
    exits, cuts = manifest.interface.exits, manifest.interface.cuts
    trunk = {(tuple(depth for depth in exits if depth >= cut), cut) for cut in cuts}
    heads = {((depth,), HEAD) for depth in exits}
    if manifest.interface.state.resizable:  # what is kept has one shape
        assert not cuts
        trunk = {(exits[index:], 0) for index in range(len(exits) - 1)}
        heads = {((depth,), 0) for depth in exits}
    assert {(segment.exits, segment.level) for segment in manifest.segments} == trunk | heads
    assert len(manifest.segments) == len(trunk | heads)
    spans = {(span.start, span.stop): span for span in manifest.spans}
    assert list(spans) == list(combinations(cuts, 2))
    assert all((span.relative_error or 0.0) < 1e-5 for span in spans.values())


def test_it_can_be_sampled(exported: Path) -> None:
    with Sampler.open(exported / "chained") as sampler:
        interface = sampler.interface
        given: dict[str, Any] = {}
        nulls: dict[str, Any] = {}
        if "text" in interface.conditions:
            given["text"] = np.ones(interface.conditions["text"].shape)
            nulls = {"text": 0 * given["text"], "mask": np.ones(7, np.int64)}
            guided = sampler.sample(2, steps=3, guidance=2.0, nulls=nulls, **given)
            plain = sampler.sample(2, steps=3, guidance=1.0, **given)
            assert np.abs(guided - plain).max() > 1e-3
        for solver in ("ddim", "ddpm"):
            result = list(sampler.steps(2, solver=solver, steps=6, nulls=nulls, **given))
            assert result[-1].state.shape == (2, *interface.state.shape)
            depths = [step.choice.blocks for step in result]
            assert depths == sorted(depths)
        if interface.state.resizable:
            wide = sampler.sample(1, steps=2, shape=(4, 16, 64))
            assert wide.shape == (1, 4, 16, 64)


def test_equal_embedders_of_every_block_are_stored_once(
    network_sets: Callable[[str], Path],
) -> None:
    folder = network_sets("dit of diffusers")
    network = load_network(load_recipe(folder / "recipe.toml").network, folder)
    state = network.state_dict()  # type: ignore[attr-defined]
    embedders = [v.nbytes for k, v in state.items() if ".norm1.emb." in k]
    total = sum(value.nbytes for value in state.values())
    # Four of the five copies are gone.
    exits = open_bundle(folder / "bundle").exits
    assert exits[-1].bytes < total - 0.79 * sum(embedders)


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
