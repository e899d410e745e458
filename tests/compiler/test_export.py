from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from eecompile.compiler import export as export_module
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.graph.cuts import MARK
from eecompile.compiler.progress import silent
from eecompile.compiler.trace import graph_from_network
from eecompile.errors import (
    CheckpointError,
    EecompileError,
    OutputExistsError,
    VerificationError,
)
from eecompile.networks.load import load_network
from eecompile.recipe import load_recipe
from eecompile.store.bundle import WEIGHTS, open_bundle
from eecompile.store.manifest import exit_graph_name
from eecompile.store.target import Tolerance
from tests.compiler.test_trace import INTERFACE, Odd
from tests.conftest import RECIPE


def test_every_exit_is_the_torch_network(bundle: Path) -> None:
    recipe = load_recipe(RECIPE)
    network: Any = load_network(recipe.network, RECIPE.parent)
    draws = torch.Generator().manual_seed(7)
    for depth, exit_ in zip(network.exits, open_bundle(bundle).exits, strict=True):
        session = onnxruntime.InferenceSession(str(bundle / exit_.graph))
        for batch, timestep in ((1, 3.0), (2, 250.0), (7, 998.0)):
            x = torch.randn(batch, 1, 28, 28, generator=draws)
            t = torch.full((batch,), timestep)
            label = torch.randint(0, 11, (batch,), generator=draws)
            feeds = {"x": x.numpy(), "t": t.numpy(), "label": label.numpy()}
            (found,) = session.run(None, feeds)
            expected = network.predict_at(depth, x, t, label).numpy()
            np.testing.assert_allclose(found, expected, atol=2e-5)


def test_every_weight_is_stored_once(bundle: Path) -> None:
    manifest = open_bundle(bundle)
    stored = (bundle / WEIGHTS).stat().st_size
    deepest = manifest.exits[-1]
    assert stored < 1.01 * deepest.bytes
    assert sum(record.bytes for record in manifest.files) < 1.05 * (
        stored + (bundle / deepest.graph).stat().st_size
    )
    assert [exit_.unique_bytes > 0 for exit_ in manifest.exits] == [False] * 3 + [True]


def test_the_graphs_are_plain_onnx(bundle: Path) -> None:
    for exit_ in open_bundle(bundle).exits:
        onnx.checker.check_model(str(bundle / exit_.graph), full_check=True)
        model = onnx.load(str(bundle / exit_.graph))
        assert [value.name for value in model.graph.input] == ["x", "t", "label"]
        keys = {each.key for node in model.graph.node for each in node.metadata_props}
        assert keys == {MARK}  # where blocks end, and nothing of the exporter's


def test_the_manifest_records_what_was_checked(bundle: Path) -> None:
    manifest = open_bundle(bundle)
    assert manifest.checked_timesteps == (0, 500, 999)
    assert manifest.checked_batches == (1, 3)
    assert all(0 < exit_.mean_error < exit_.worst_error < 1e-4 for exit_ in manifest.exits)
    assert manifest.interface.exits == (3, 6, 9, 12)
    assert {"full"} < set(manifest.interface.schedules)


def test_a_bundle_replaces_only_an_older_version_of_itself(
    bundle: Path, copied: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(bundle)
    other = tmp_path / "other.toml"
    text = RECIPE.read_text().replace('name = "fashion-dit"', 'name = "other"')
    other.write_text(text.replace("../eecompile", str(RECIPE.parent.parent / "eecompile")))

    class ReachedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise ReachedError

    monkeypatch.setattr(export_module, "load_network", stop)
    with pytest.raises(ReachedError):
        bundle_from_recipe(RECIPE, folder)
    with pytest.raises(OutputExistsError, match="--force"):
        bundle_from_recipe(other, folder)
    with pytest.raises(ReachedError):
        bundle_from_recipe(other, folder, force=True)
    assert open_bundle(folder) == open_bundle(bundle)


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.read_text())  # its checkpoint is relative to the recipe
    with pytest.raises(CheckpointError, match="no package eecompile_fashion_dit"):
        bundle_from_recipe(path, tmp_path / "out" / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


def test_a_difference_to_torch_names_the_exit(tmp_path: Path) -> None:
    network: Any = Odd("")
    model = graph_from_network(network, INTERFACE)
    reference = export_module._evaluate_network(network, INTERFACE)
    source = export_module._Source(model, reference, reference, "torch")
    export_module._write_graphs(tmp_path, model, INTERFACE)
    export_module._verify(tmp_path, source, INTERFACE, Tolerance(), silent)
    network.linear.weight.data += 0.01  # the graph no longer is this network
    with pytest.raises(VerificationError, match=r"exit 1 at timestep 0, batch 1"):
        export_module._verify(tmp_path, source, INTERFACE, Tolerance(), silent)


def test_a_damaged_graph_of_one_exit_is_noticed(tmp_path: Path) -> None:
    network: Any = Odd("")
    model = graph_from_network(network, INTERFACE)
    reference = export_module._evaluate_network(network, INTERFACE)
    source = export_module._Source(model, reference, reference, "torch")
    export_module._write_graphs(tmp_path, model, INTERFACE)
    path = tmp_path / exit_graph_name(1)
    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        if node.op_type == "Add":
            node.op_type = "Sub"
    onnx.save(graph, path)
    with pytest.raises(VerificationError, match=r"exit 1 "):
        export_module._verify(tmp_path, source, INTERFACE, Tolerance(), silent)


def test_other_exits_and_another_checkpoint_than_the_recipes(
    tmp_path: Path, small_recipe: Path, small_bundle: Path
) -> None:
    weights = tmp_path / "again.safetensors"
    shutil.copy(small_recipe.with_suffix(".safetensors"), weights)
    folder = tmp_path / "bundle"
    manifest = bundle_from_recipe(small_recipe, folder, exits=(2, 4), checkpoint=weights)
    whole = open_bundle(small_bundle)
    assert manifest.interface.exits == (2, 4)
    assert set(manifest.interface.schedules) == {"full"}  # the others name exit 1
    assert manifest.interface.sampling.schedule == "full"
    assert list(manifest.sources) == ["again.safetensors"]
    assert list(manifest.sources.values()) == list(whole.sources.values())
    assert [exit_.nodes for exit_ in manifest.exits] == [exit_.nodes for exit_ in whole.exits[1:]]


def test_the_manifest_says_what_is_shared(bundle: Path) -> None:
    manifest = open_bundle(bundle)
    shared = {entry.exits: entry for entry in manifest.sharing}
    assert set(shared) == {(3, 6, 9, 12), (6, 9, 12), (9, 12), (3,), (6,), (9,), (12,)}
    for exit_ in manifest.exits:
        mine = [entry for entry in manifest.sharing if exit_.depth in entry.exits]
        assert sum(entry.nodes for entry in mine) == exit_.nodes
        assert sum(entry.bytes for entry in mine) == exit_.bytes
    assert shared[12,].bytes == manifest.exits[-1].unique_bytes > 0
    assert shared[3,].bytes == 0  # the head is the same for all


def test_errors_survive_pickling() -> None:
    import pickle

    error = OutputExistsError(found="a", expected="b", remedy="c")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, EecompileError)
    assert str(copy) == str(error) == "found a; expected b; c."
