from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from eecompile.bundle import WEIGHTS, open_bundle
from eecompile.compiler import export as export_module
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.trace import graph_from_network
from eecompile.errors import (
    CheckpointError,
    EecompileError,
    OutputExistsError,
    TraceError,
    VerificationError,
)
from eecompile.networks.load import load_network
from eecompile.recipe import Tolerance, load_recipe
from eecompile.runtime.interface import Interface, State
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
        assert not any(node.metadata_props for node in model.graph.node)


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
    with pytest.raises(CheckpointError, match="no checkpoint"):
        bundle_from_recipe(path, tmp_path / "out" / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


class Odd(nn.Module):
    """A network with something wrong with it."""

    exits = (1, 2)

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        first = self.linear(x) + t[:, None]
        second = self.linear(first)
        if self.fault == "one output":
            return (first,)
        if self.fault == "shape":
            return first[:, :2], second
        if self.fault == "no tuple":
            return first
        if self.fault == "control flow" and bool(first.sum() > 0):
            return second, first
        if self.fault == "batch":
            return first.reshape(2, 3), second.reshape(6).reshape(2, 3)
        return first, second


INTERFACE = Interface(name="odd", exits=(1, 2), state=State(shape=(3,)))


@pytest.mark.parametrize("fault", ["one output", "shape", "no tuple", "control flow", "batch"])
def test_a_network_that_cannot_be_traced_says_why(fault: str) -> None:
    with pytest.raises(TraceError):
        graph_from_network(Odd(fault), INTERFACE)  # type: ignore[arg-type]


def test_a_difference_to_torch_names_the_exit(tmp_path: Path) -> None:
    network: Any = Odd("")
    model = graph_from_network(network, INTERFACE)
    export_module._write_graphs(tmp_path, model, INTERFACE)
    export_module._verify(tmp_path, network, INTERFACE, Tolerance())
    network.linear.weight.data += 0.01  # the graph no longer is this network
    with pytest.raises(VerificationError, match=r"exit 1 at timestep 0, batch 1"):
        export_module._verify(tmp_path, network, INTERFACE, Tolerance())


def test_errors_survive_pickling() -> None:
    import pickle

    error = OutputExistsError(found="a", expected="b", remedy="c")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, EecompileError)
    assert str(copy) == str(error) == "found a; expected b; c."
