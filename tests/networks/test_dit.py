from __future__ import annotations

from typing import Any

import pytest
import torch

from eecompile.errors import RecipeError
from eecompile.networks.base import MultiExitNetwork
from eecompile.networks.dit import DiT

TINY: dict[str, Any] = {
    "depth": 4,
    "size": 8,
    "channels": 2,
    "patch": 2,
    "width": 16,
    "heads": 2,
    "classes": 3,
}


def tiny(**changes: Any) -> DiT:
    torch.manual_seed(0)
    network = DiT(**({"exits": (1, 2, 4)} | TINY | changes)).eval()
    for parameter in network.parameters():  # adaLN-Zero starts at zero: nothing to compare
        torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("refine", [0, 4])
def test_each_exit_is_the_truncated_network(refine: int) -> None:
    network = tiny(refine_channels=refine)
    assert isinstance(network, MultiExitNetwork)
    x, t, label = torch.randn(3, 2, 8, 8), torch.tensor([0.0, 5.0, 999.0]), torch.arange(3)
    predictions = network(x, t, label)
    for depth, found in zip(network.exits, predictions, strict=True):
        assert found.shape == x.shape
        torch.testing.assert_close(found, network.predict_at(depth, x, t, label))
    # A network of the first blocks alone, with the same weights, predicts the same.
    short = tiny(exits=(2,), depth=2, refine_channels=refine)
    kept = {
        name: value for name, value in network.state_dict().items() if name in short.state_dict()
    }
    short.load_state_dict(kept)
    torch.testing.assert_close(short(x, t, label)[0], predictions[1])


def test_the_parameter_names_are_those_of_the_public_code() -> None:
    names = set(tiny().state_dict())
    for name in (
        "x_embedder.proj.weight",
        "t_embedder.mlp.0.weight",
        "y_embedder.embedding_table.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.3.mlp.fc2.bias",
        "blocks.1.adaLN_modulation.1.weight",
        "final_layer.linear.weight",
        "final_layer.adaLN_modulation.1.bias",
    ):
        assert name in names


def test_patches_are_laid_out_row_by_row() -> None:
    network = tiny()
    tokens = torch.arange(16.0).reshape(1, 16, 1).expand(1, 16, 16)
    network.final_layer.forward = lambda x, c: x[..., :8]  # type: ignore[assignment,method-assign]
    pixels = network._predict(tokens, torch.zeros(1, 16), torch.zeros(1, 2, 8, 8))
    expected = torch.arange(16.0).reshape(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(pixels[0, 0], expected)


@pytest.mark.parametrize("exits", [(), (2, 1, 4), (1, 1, 4), (0, 4), (1, 5), (1, 2)])
def test_exits_out_of_range_are_refused(exits: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="from 1 to 4"):
        tiny(exits=exits)
