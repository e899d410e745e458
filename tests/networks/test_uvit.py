"""U-ViT against tests/networks/reference.py, and against what is published of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eecompile.errors import CheckpointError, RecipeError
from eecompile.networks.base import MultiExitNetwork
from eecompile.networks.load import load_network
from eecompile.networks.uvit import UViT
from eecompile.recipe import NetworkRecipe, load_recipe
from tests.networks import reference
from tests.networks.reference import assert_near

EXPORT = Path(__file__).resolve().parents[2] / "export"
TINY: dict[str, Any] = {
    "depth": 4,
    "size": 8,
    "channels": 3,
    "patch": 2,
    "width": 16,
    "heads": 2,
}
SHAPES: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name != "heads"},
    "classes": 0,
    "conv": True,
    "mlp_time_embed": False,
    "qkv_bias": False,
}
VARIANTS = [
    pytest.param(
        {"mlp_time_embed": mlp, "classes": classes, "conv": conv, "qkv_bias": bias},
        id=f"{'mlp' if mlp else 'plain'}-{classes}-{'conv' if conv else 'none'}-{bias}",
    )
    for mlp in (False, True)
    for classes in (0, 5)
    for conv in (False, True)
    for bias in (False, True)
]


def tiny(**changes: Any) -> UViT:
    torch.manual_seed(0)
    network = UViT(**({"exits": (3, 4, 5)} | TINY | changes)).eval()
    for parameter in network.parameters():  # positions start at zero, and norms at one
        torch.nn.init.normal_(parameter, std=0.25)
    return network


def inputs(classes: int) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 2, classes - 1]) if classes else None
    return x, torch.tensor([0.0, 5.25, 999.0]), label


@pytest.mark.parametrize("options", VARIANTS)
def test_each_exit_drops_later_attention_and_mlp_and_keeps_every_skip(
    options: dict[str, Any],
) -> None:
    network, given = tiny(**options), inputs(options["classes"])
    assert isinstance(network, MultiExitNetwork)
    with torch.no_grad():
        predictions = network(*given)
    assert len(predictions) == len(network.exits)
    for runs, found in zip(network.exits, predictions, strict=True):
        expected = reference.uvit(network.state_dict(), *given, depth=4, runs=runs, heads=2)
        assert_near(found, expected)
    distances = [float((one - predictions[-1]).abs().max()) for one in predictions[:-1]]
    assert min(distances) > 0.01


@pytest.mark.parametrize("exits", [(3, 5), (4, 5), (5,)])
def test_an_exit_predicts_the_same_whatever_the_others_are(exits: tuple[int, ...]) -> None:
    every, network, given = tiny(), tiny(exits=exits), inputs(0)
    with torch.no_grad():
        expected = dict(zip(every.exits, every(*given), strict=True))
        for depth, found in zip(exits, network(*given), strict=True):
            assert torch.equal(found, expected[depth])


@pytest.mark.parametrize("shape", [{"depth": 2, "patch": 4}, {"depth": 6, "patch": 1}])
def test_other_depths_and_patches_are_the_papers_network_too(shape: dict[str, int]) -> None:
    depth = shape["depth"]
    exits = tuple(range(depth // 2 + 1, depth + 2))
    network, given = tiny(exits=exits, classes=5, **shape), inputs(5)
    with torch.no_grad():
        predictions = network(*given)
    for runs, found in zip(exits, predictions, strict=True):
        expected = reference.uvit(network.state_dict(), *given, depth=depth, runs=runs, heads=2)
        assert_near(found, expected)


def test_an_odd_width_pads_the_timesteps_features() -> None:
    network, (x, t, _) = tiny(width=9, heads=3), inputs(0)
    seen: list[Tensor] = []
    network.time_embed.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    network(x, t)
    assert seen[0].shape == (3, 9)
    assert not seen[0][:, -1].any()
    assert torch.equal(seen[0][0], torch.tensor([1.0] * 4 + [0.0] * 5))


@pytest.mark.parametrize("options", VARIANTS)
def test_keys_and_shapes_are_those_of_the_public_code(options: dict[str, Any]) -> None:
    found = {name: tuple(value.shape) for name, value in tiny(**options).state_dict().items()}
    assert found == reference.uvit_shapes(**{**SHAPES, **options})


def test_a_public_checkpoint_loads_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(3)
    shapes = reference.uvit_shapes(**{**SHAPES, "classes": 5})
    state = {name: torch.randn(shape) / 4 for name, shape in shapes.items()}
    torch.save(state, tmp_path / "a.pth")
    recipe = NetworkRecipe(
        factory="eecompile.networks.uvit:UViT",
        checkpoint="a.pth",
        exits=(3, 5),
        options={**TINY, "classes": 5},
    )
    x, t, label = inputs(5)
    predictions = load_network(recipe, tmp_path)(x, t, label=label)
    for runs, found in zip(recipe.exits, predictions, strict=True):
        assert_near(found, reference.uvit(state, x, t, label, depth=4, runs=runs, heads=2))


def test_a_checkpoint_of_another_size_names_the_positions_first(tmp_path: Path) -> None:
    torch.save(tiny(size=16).state_dict(), tmp_path / "a.pth")
    recipe = NetworkRecipe(
        factory="eecompile.networks.uvit:UViT", checkpoint="a.pth", exits=(3, 5), options=TINY
    )
    with pytest.raises(CheckpointError) as caught:
        load_network(recipe, tmp_path)
    expected = "1 of another shape (pos_embed [1, 65, 16] instead of [1, 17, 16])"
    assert expected in caught.value.found


@pytest.mark.parametrize(
    ("name", "millions"),
    [("uvit-s4-celeba64", 44), ("uvit-l2-imagenet256", 287), ("uvit-h2-imagenet256", 501)],
)
def test_recipes_make_networks_of_the_published_size(name: str, millions: int) -> None:
    recipe = load_recipe(EXPORT / f"{name}.toml").network
    with torch.device("meta"):
        network = UViT(exits=recipe.exits, **recipe.options)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize("exits", [(), (2, 5), (3, 6), (3, 4), (4, 3, 5), (3, 3, 5), (-1, 5)])
def test_exits_out_of_range_are_refused(exits: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="ascending depths from 3 to 5, the last of them 5"):
        tiny(exits=exits)


@pytest.mark.parametrize("changes", [{"patch": 3}, {"heads": 3}, {"depth": 5}])
def test_figures_that_do_not_divide_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="an even depth") as caught:
        tiny(**changes)
    for name, value in changes.items():
        assert f"{name} {value}" in caught.value.found
