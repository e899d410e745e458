"""A recipe's network gets the checkpoint's weights, or is told which do not fit."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from eecompile.errors import CheckpointError, RecipeError
from eecompile.networks.base import MultiExitNetwork
from eecompile.networks.load import load_network
from eecompile.networks.truncated import Truncated
from eecompile.recipe import NetworkRecipe
from tests.conftest import Beside
from tests.networks.test_dit import TINY, inputs, tiny

State = dict[str, Tensor]


def recipe(checkpoint: str = "a.pt", **changes: Any) -> NetworkRecipe:
    given: dict[str, Any] = {
        "factory": "eecompile.networks.dit:DiT",
        "checkpoint": checkpoint,
        "exits": (1, 2, 4),
        "options": TINY,
    }
    return NetworkRecipe(**(given | changes))


@pytest.fixture
def weights() -> State:
    return dict(tiny().state_dict())


def state_of(network: MultiExitNetwork) -> State:
    assert isinstance(network, nn.Module)
    return dict(network.state_dict())


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def safetensors(content: State, path: Path) -> None:
    save_file(content, path)


def alone(content: State, path: Path) -> None:
    torch.save(content, path)


def legacy(content: State, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def training(content: State, path: Path) -> None:
    others = {name: torch.zeros_like(value) for name, value in content.items()}
    arguments = argparse.Namespace(lr=1e-4)
    torch.save({"model": others, "ema": content, "opt": {}, "args": arguments}, path)


def parallel(content: State, path: Path) -> None:
    torch.save({"model": {f"module.{name}": value for name, value in content.items()}}, path)


FORMATS = [safetensors, alone, legacy, training, parallel]
Save = Callable[[State, Path], None]


def suffix(save: Save) -> str:
    return "safetensors" if save is safetensors else "pt"


@pytest.mark.parametrize("save", FORMATS)
def test_every_format_gives_the_network_its_weights(
    tmp_path: Path, weights: State, save: Save
) -> None:
    name = f"a.{suffix(save)}"
    save(weights, tmp_path / name)
    network: Any = load_network(recipe(name), tmp_path)
    assert_same(state_of(network), weights)
    with torch.no_grad():
        for found, expected in zip(network(*inputs()), tiny()(*inputs()), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_become_float32(
    tmp_path: Path, weights: State, save: Save, dtype: torch.dtype
) -> None:
    name = f"a.{suffix(save)}"
    stored = {key: value.to(dtype) for key, value in weights.items()}
    save(stored, tmp_path / name)
    found = state_of(load_network(recipe(name), tmp_path))
    assert_same(found, {key: value.float() for key, value in stored.items()})
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_the_network_is_ready_to_predict_and_not_to_train(tmp_path: Path, weights: State) -> None:
    torch.save(weights, tmp_path / "a.pt")
    network = load_network(recipe(), tmp_path)
    assert isinstance(network, MultiExitNetwork)
    assert isinstance(network, nn.Module)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_checkpoints_path_is_relative_to_the_recipe_or_absolute(
    tmp_path: Path, weights: State
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "weights" / "a.pt"
    torch.save(weights, path)
    for name in ("../weights/a.pt", str(path)):
        network = load_network(recipe(name), tmp_path / "recipes")
        assert_same(state_of(network), weights)


def test_the_recipes_key_chooses_the_entry(tmp_path: Path, weights: State) -> None:
    averaged = {name: value / 2 for name, value in weights.items()}
    torch.save({"model": weights, "ema": averaged}, tmp_path / "a.pt")
    by_default = load_network(recipe(), tmp_path)
    chosen = load_network(recipe(checkpoint_key="model"), tmp_path)
    assert_same(state_of(by_default), averaged)
    assert_same(state_of(chosen), weights)


TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, exits):
        super().__init__()
        self.exits = exits
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.zeros(3))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("flags", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("derived", torch.full((2,), 5.0), persistent=False)

    def forward(self, x, t):
        first = self.first(x) * self.scale
        return first, self.second(first)
"""


def tied() -> State:
    return {
        "first.weight": torch.arange(9.0).reshape(3, 3),
        "first.bias": torch.ones(3),
        "second.weight": torch.arange(9.0).reshape(3, 3),
        "second.bias": torch.full((3,), 2.0),
        "scale": torch.tensor([1.0, 2.0, 3.0]),
        "steps": torch.tensor(7),
        "flags": torch.tensor([True, False]),
    }


@pytest.mark.parametrize("left_out", [None, "first.weight", "second.weight"])
@pytest.mark.parametrize("save", [safetensors, alone, legacy])
def test_tied_weights_may_be_stored_once(
    tmp_path: Path, beside: Beside, save: Save, left_out: str | None
) -> None:
    name = f"a.{suffix(save)}"
    save({key: value for key, value in tied().items() if key != left_out}, tmp_path / name)
    factory = f"{beside(TIED)}:Tied"
    network = load_network(recipe(name, factory=factory, options={}, exits=(1, 2)), tmp_path)
    assert_same(state_of(network), tied())
    x = torch.randn(2, 3)
    first, second = network(x, torch.zeros(2))
    expected = (x @ tied()["first.weight"].T + 1) * tied()["scale"]
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected @ tied()["first.weight"].T + 2)


def test_equal_weights_that_are_not_tied_are_missed(tmp_path: Path, beside: Beside) -> None:
    torch.save({k: v for k, v in tied().items() if k != "second.bias"}, tmp_path / "a.pt")
    factory = f"{beside(TIED)}:Tied"
    with pytest.raises(CheckpointError, match=r"1 missing \(second\.bias\)"):
        load_network(recipe(factory=factory, options={}, exits=(1, 2)), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_buffers_are_restored_and_keep_their_kind(
    tmp_path: Path, beside: Beside, dtype: torch.dtype
) -> None:
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tied().items()}
    torch.save(stored, tmp_path / "a.pt")
    factory = f"{beside(TIED)}:Tied"
    network: Any = load_network(recipe(factory=factory, options={}, exits=(1, 2)), tmp_path)
    assert_same(state_of(network), tied())  # types too: whole numbers stay whole
    assert network.derived.tolist() == [5.0, 5.0]


def test_wrong_keys_are_named_and_counted(tmp_path: Path, weights: State) -> None:
    del weights["final_layer.linear.bias"]
    weights["surplus"] = torch.zeros(1)
    weights["blocks.0.mlp.fc1.bias"] = torch.zeros(3)
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        load_network(recipe(), tmp_path)
    assert str(tmp_path / "a.pt") in caught.value.found
    assert "1 missing (final_layer.linear.bias)" in caught.value.found
    assert "1 unknown (surplus)" in caught.value.found
    assert "1 of another shape (blocks.0.mlp.fc1.bias [3] instead of [64])" in caught.value.found
    assert caught.value.expected == f"the network's {len(tiny().state_dict())} keys"


def test_a_network_beyond_its_checkpoint_takes_no_memory(tmp_path: Path, weights: State) -> None:
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"numbers in the checkpoint .* for a network of"):
        load_network(recipe(options={**TINY, "width": 2**24}), tmp_path)  # petabytes


def test_the_first_shapes_that_differ_are_named(tmp_path: Path, weights: State) -> None:
    torch.save(tiny(width=32).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        load_network(recipe(), tmp_path)
    listed = (
        "(x_embedder.proj.weight [32, 2, 2, 2] instead of [16, 2, 2, 2], "
        "x_embedder.proj.bias [32] instead of [16], "
        "t_embedder.mlp.0.weight [32, 256] instead of [16, 256], ...)"
    )
    assert f"of another shape {listed}" in caught.value.found


def test_a_checkpoint_of_another_depth_says_so(tmp_path: Path) -> None:
    torch.save(tiny(depth=6, exits=(6,)).state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"20 unknown \(blocks\.4\.attn\.qkv\.weight, "):
        load_network(recipe(), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, weights: State, value: float, dtype: torch.dtype
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    weights["blocks.0.mlp.fc1.bias"][5] = value
    weights["final_layer.linear.bias"][0] = value
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        load_network(recipe(), tmp_path)
    named = "(blocks.0.mlp.fc1.bias, final_layer.linear.bias)"
    path = tmp_path / "a.pt"
    assert caught.value.found == f"NaN or infinity in 2 tensors of {path} {named}"


def test_a_module_that_was_written_for_one_depth_is_cut(tmp_path: Path) -> None:
    options = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 2,
        "num_layers": 3,
        "sample_size": 8,
        "num_embeds_ada_norm": 5,
    }
    torch.manual_seed(0)
    make: Any = DiTTransformer2DModel  # diffusers is untyped
    network = make(**options).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    loaded = load_network(
        recipe(
            "a.safetensors",
            factory="diffusers:DiTTransformer2DModel",
            options=options,
            exits=(1, 3),
            blocks="transformer_blocks",
            arguments={"x": "hidden_states", "t": "timestep", "label": "class_labels"},
        ),
        tmp_path,
    )
    assert isinstance(loaded, Truncated)
    assert loaded.exits == (1, 3)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    x, t, label = torch.randn(2, 2, 8, 8), torch.tensor([0.0, 500.0]), torch.tensor([1, 5])
    with torch.no_grad():
        expected = network(x, timestep=t, class_labels=label).sample
        first, last = loaded(x=x, t=t, label=label)
        torch.testing.assert_close(last, expected)
        network.transformer_blocks = network.transformer_blocks[:1]
        expected = network(x, timestep=t, class_labels=label).sample
        torch.testing.assert_close(first, expected)


def test_a_list_of_blocks_that_is_not_there_is_refused(tmp_path: Path, weights: State) -> None:
    torch.save(weights, tmp_path / "a.pt")
    options = {**TINY, "exits": (4,)}
    with pytest.raises(RecipeError, match=r"such as \['t_embedder\.mlp', 'blocks', "):
        load_network(recipe(options=options, blocks="layers"), tmp_path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_prefix_of_a_parallel_module_is_stripped(
    tmp_path: Path, weights: dict[str, torch.Tensor], wrapped: bool
) -> None:
    parallel = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"model": parallel} if wrapped else parallel, tmp_path / "a.pt")
    network = load_network(recipe("a.pt"), tmp_path)
    for key, value in network.state_dict().items():  # type: ignore[attr-defined]
        torch.testing.assert_close(value, weights[key])


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.complex64, torch.bool])
def test_numbers_of_another_kind_are_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], kind: torch.dtype
) -> None:
    weights["final_layer.linear.bias"] = weights["final_layer.linear.bias"].to(kind)
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"1 of another kind \(final_layer\.linear\.bias"):
        load_network(recipe("a.pt"), tmp_path)


def test_a_figure_that_float32_cannot_hold_is_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    weights["final_layer.linear.bias"] = weights["final_layer.linear.bias"].double() + 1e300
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="NaN or infinity in 1 tensors"):
        load_network(recipe("a.pt"), tmp_path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_positions_in_half_precision_are_the_same_positions(
    tmp_path: Path, weights: dict[str, torch.Tensor], kind: torch.dtype
) -> None:
    whole = {**weights, "pos_embed": tiny().positions}
    torch.save({name: value.to(kind) for name, value in whole.items()}, tmp_path / "a.pt")
    load_network(recipe("a.pt"), tmp_path)
