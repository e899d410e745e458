"""DiT against tests/networks/reference.py, and against what is published of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eecompile.errors import CheckpointError, RecipeError
from eecompile.networks.base import MultiExitNetwork
from eecompile.networks.dit import DiT, dit_from_name
from eecompile.networks.load import load_network
from eecompile.recipe import NetworkRecipe
from tests.networks import reference
from tests.networks.reference import assert_near

TINY: dict[str, Any] = {
    "depth": 4,
    "size": 8,
    "channels": 2,
    "patch": 2,
    "width": 16,
    "heads": 2,
    "classes": 3,
}
HEADS = 2
# Table 1 of the paper: blocks, width, and millions of parameters.
PUBLISHED = {"S": (12, 384, 33), "B": (12, 768, 130), "L": (24, 1024, 458), "XL": (28, 1152, 675)}


def tiny(**changes: Any) -> DiT:
    torch.manual_seed(0)
    network = DiT(**({"exits": (1, 2, 4)} | TINY | changes)).eval()
    for parameter in network.parameters():  # adaLN-Zero starts at zero: nothing to compare
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def inputs(rows: int = 8, columns: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Noise at an early, a middle and the last timestep; the last label is "no class"."""
    x = torch.randn(3, 2, rows, columns, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0.0, 5.25, 999.0]), torch.tensor([0, 2, 3])


def load(folder: Path, state: dict[str, Tensor], exits: tuple[int, ...] = (1, 2, 4)) -> DiT:
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "a.safetensors")
    network = load_network(
        NetworkRecipe(
            factory="eecompile.networks.dit:DiT",
            checkpoint="a.safetensors",
            exits=exits,
            options=TINY,
        ),
        folder,
    )
    assert isinstance(network, DiT)
    return network


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_each_exit_is_the_papers_network_of_that_many_blocks(learn_sigma: bool, patch: int) -> None:
    network = tiny(learn_sigma=learn_sigma, patch=patch)
    assert isinstance(network, MultiExitNetwork)
    state, given = network.state_dict(), inputs()
    with torch.no_grad():
        predictions = network(*given)
        alone = [network.predict_at(depth, *given) for depth in network.exits]
    assert len(predictions) == len(network.exits)
    for depth, found, again in zip(network.exits, predictions, alone, strict=True):
        assert_near(found, reference.dit(state, *given, depth=depth, heads=HEADS))
        torch.testing.assert_close(again, found)
    distances = [float((one - predictions[-1]).abs().max()) for one in predictions[:-1]]
    assert min(distances) > 0.01


def test_each_sample_is_predicted_apart_from_its_batch() -> None:
    network, (x, t, label) = tiny(), inputs()
    with torch.no_grad():
        together = network(x, t, label)
        for index in range(len(x)):
            one = slice(index, index + 1)
            for whole, found in zip(together, network(x[one], t[one], label[one]), strict=True):
                torch.testing.assert_close(found, whole[one])


def test_a_network_of_the_first_blocks_predicts_what_the_exit_does() -> None:
    network, short = tiny(refine_channels=4), tiny(exits=(2,), depth=2, refine_channels=4)
    kept = {name: network.state_dict()[name] for name in short.state_dict()}
    short.load_state_dict(kept)
    given = inputs()
    with torch.no_grad():
        (found,) = short(*given)
        torch.testing.assert_close(found, network(*given)[1])
        torch.testing.assert_close(found, network.predict_at(2, *given))


@pytest.mark.parametrize("refine", [0, 4])
def test_learning_the_variance_doubles_the_channels(refine: int) -> None:
    given = inputs()
    for learn_sigma, channels in ((False, 2), (True, 4)):
        predictions = tiny(learn_sigma=learn_sigma, refine_channels=refine)(*given)
        assert {tuple(found.shape) for found in predictions} == {(3, channels, 8, 8)}


def test_a_new_network_predicts_zero_and_its_blocks_change_nothing() -> None:
    network, given = DiT(exits=(1, 4), learn_sigma=True, **TINY), inputs()
    with torch.no_grad():
        assert all(not found.any() for found in network(*given))
        torch.nn.init.normal_(network.final_layer.linear.weight)
        first, last = network(*given)
    assert first.any()
    torch.testing.assert_close(first, last)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (4, 4), (6, 14), (14, 6), (2, 16)])
def test_a_resizable_network_goes_on_with_the_same_positions(
    size: tuple[int, int], learn_sigma: bool
) -> None:
    fixed, network = tiny(learn_sigma=learn_sigma), tiny(learn_sigma=learn_sigma, largest=16)
    assert fixed.state_dict().keys() == network.state_dict().keys()
    state, given = network.state_dict(), inputs(*size)
    with torch.no_grad():
        predictions = network(*given)
        for depth, found in zip(network.exits, predictions, strict=True):
            assert_near(found, reference.dit(state, *given, depth=depth, heads=HEADS))
            torch.testing.assert_close(network.predict_at(depth, *given), found)
        if size == (8, 8):
            for found, expected in zip(predictions, fixed(*given), strict=True):
                assert torch.equal(found, expected)


@pytest.mark.parametrize("largest", [None, 4, 8, 16])
def test_what_is_largest_does_not_change_what_is_stored(largest: int | None) -> None:
    network = tiny(largest=largest)
    assert network.state_dict().keys() == tiny().state_dict().keys()
    assert network(*inputs())[0].shape == (3, 2, 8, 8)


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", list(PUBLISHED))
def test_networks_by_name_have_the_published_keys_shapes_and_size(size: str, patch: int) -> None:
    depth, width, millions = PUBLISHED[size]
    with torch.device("meta"):
        network = dit_from_name(exits=(depth // 2, depth), name=f"DiT-{size}/{patch}")
    expected = reference.dit_shapes(
        depth=depth, size=32, channels=4, patch=patch, width=width, classes=1000, outputs=8
    )
    found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert found == {name: shape for name, shape in expected.items() if name != "pos_embed"}
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)
    assert count + math.prod(expected["pos_embed"]) == sum(map(math.prod, expected.values()))


def test_options_of_a_network_by_name_are_followed() -> None:
    with torch.device("meta"):
        network = dit_from_name(
            exits=(3, 12),
            name="S/8",
            size=64,
            channels=3,
            classes=10,
            learn_sigma=False,
            largest=128,
        )
    shapes = reference.dit_shapes(
        depth=12, size=64, channels=3, patch=8, width=384, classes=10, outputs=3
    )
    del shapes["pos_embed"]
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes
    assert network.exits == (3, 12)
    assert network.line.shape == (16, 192)


@pytest.mark.parametrize(
    "name", ["DiT-M/2", "DiT-S/3", "DiT-S", "DiT-S/", "S2", "", "dit-s/2", "DiT-S/2/2", "UViT-S/2"]
)
def test_names_of_no_published_network_are_refused(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        dit_from_name(exits=(12,), name=name)
    assert caught.value.found == f"a network named {name!r}"
    assert "'S', 'B', 'L', 'XL'" in caught.value.expected
    assert "2, 4, 8" in caught.value.expected


def test_exits_must_fit_the_network_that_is_named() -> None:
    with pytest.raises(RecipeError, match="from 1 to 28"):
        dit_from_name(exits=(12,), name="DiT-XL/8")


def published() -> dict[str, Tensor]:
    """Random weights under every name of a public checkpoint, with its positions."""
    shapes = reference.dit_shapes(
        depth=4, size=8, channels=2, patch=2, width=16, classes=3, outputs=2
    )
    torch.manual_seed(2)
    state = {name: torch.randn(shape) / 5 for name, shape in shapes.items()}
    return {**state, "pos_embed": reference.dit_positions(4, 4, 16)}


def test_a_public_checkpoint_loads_unchanged(tmp_path: Path) -> None:
    state, given = published(), inputs()
    network = load(tmp_path, state)
    for depth, found in zip(network.exits, network(*given), strict=True):
        assert_near(found, reference.dit(state, *given, depth=depth, heads=HEADS))


@pytest.mark.parametrize(
    "positions",
    [
        reference.dit_positions(4, 4, 16).transpose(1, 2).contiguous(),
        reference.dit_positions(2, 8, 16),
        reference.dit_positions(8, 8, 16),
        reference.dit_positions(4, 4, 16)[0],
        reference.dit_positions(4, 4, 16).roll(8, dims=2),  # rows before columns
        torch.zeros(1, 16, 16),
        torch.full((1, 16, 16), torch.nan),
    ],
    ids=["shape", "oblong", "larger", "flat", "swapped", "zeros", "nan"],
)
def test_other_positions_than_the_networks_are_refused(tmp_path: Path, positions: Tensor) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, {**published(), "pos_embed": positions})
    assert "pos_embed" in caught.value.found
    assert "[1, 16, 16]" in caught.value.expected
    assert "size and patch" in caught.value.remedy


def with_heads(*depths: int) -> dict[str, Tensor]:
    """A checkpoint with a head a depth, all different."""
    state = published()
    heads = [name for name in state if name.startswith("final_layer.")]
    for depth in depths:
        for name in heads:
            other = name.replace("final_layer.", f"final_layers.{depth}.")
            state[other] = torch.randn_like(state[name]) / 5
    for name in heads:
        del state[name]
    return state


@pytest.mark.parametrize("exits", [(1, 2, 4), (1, 4), (4,)])
def test_each_exit_has_the_head_that_the_checkpoint_gives_it(
    tmp_path: Path, exits: tuple[int, ...]
) -> None:
    state, given = with_heads(1, 2, 4), inputs()
    network = load(tmp_path, state, exits)
    names = network.state_dict().keys()
    assert {name.split(".")[1] for name in names if name.startswith("final_layers.")} == set(
        map(str, exits)
    )
    assert not any(name.startswith("final_layer.") for name in names)
    for depth, found in zip(exits, network(*given), strict=True):
        head = f"final_layers.{depth}"
        assert_near(found, reference.dit(state, *given, depth=depth, heads=HEADS, head=head))
        torch.testing.assert_close(network.predict_at(depth, *given), found)


def test_heads_are_told_apart_by_their_whole_number() -> None:
    network = tiny(depth=12, exits=(10, 12))
    state = {**network.state_dict(), **with_heads(1, 2, 10, 12, 120)}
    found = network.fit_checkpoint({name: state[name] for name in state if "_layer." not in name})
    assert {name.split(".")[1] for name in found if "_layers." in name} == {"10", "12"}
    network.load_state_dict(found)


def test_an_exit_without_a_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"4 missing \(final_layers\.2\."):
        load(tmp_path, with_heads(1, 4))


@pytest.mark.parametrize("exits", [(), (2, 1, 4), (1, 1, 4), (0, 4), (1, 5), (1, 2)])
def test_exits_out_of_range_are_refused(exits: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="from 1 to 4"):
        tiny(exits=exits)


@pytest.mark.parametrize("changes", [{"patch": 3}, {"heads": 3}, {"width": 18, "heads": 2}])
def test_figures_that_do_not_divide_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="divisible") as caught:
        tiny(**changes)
    for name, value in changes.items():
        assert f"{name} {value}" in caught.value.found
