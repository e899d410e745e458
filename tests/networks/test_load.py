from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eecompile.errors import CheckpointError, RecipeError
from eecompile.networks.load import load_network
from eecompile.recipe import NetworkRecipe
from tests.networks.test_dit import TINY, tiny


def recipe(checkpoint: str, **changes: Any) -> NetworkRecipe:
    given: dict[str, Any] = {
        "factory": "eecompile.networks.dit:DiT",
        "checkpoint": checkpoint,
        "exits": (1, 2, 4),
        "options": TINY,
    }
    return NetworkRecipe(**(given | changes))


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return dict(tiny().state_dict())


def test_both_checkpoint_formats_load(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        network = load_network(recipe(name), tmp_path)
        for key, value in network.state_dict().items():  # type: ignore[attr-defined]
            torch.testing.assert_close(value, weights[key])


def test_half_precision_weights_become_float32(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    save_file({name: value.half() for name, value in weights.items()}, tmp_path / "a.safetensors")
    network = load_network(recipe("a.safetensors"), tmp_path)
    assert {v.dtype for v in network.state_dict().values()} == {torch.float32}  # type: ignore[attr-defined]


def test_wrong_keys_are_named_and_counted(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    del weights["final_layer.linear.bias"]
    weights["surplus"] = torch.zeros(1)
    weights["blocks.0.mlp.fc1.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_network(recipe("a.safetensors"), tmp_path)
    message = str(caught.value)
    assert "1 missing (final_layer.linear.bias)" in message
    assert "1 unknown (surplus)" in message
    assert "1 of another shape (blocks.0.mlp.fc1.bias [3] instead of [64])" in message


def test_a_missing_truncated_or_poisoned_checkpoint_is_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_network(recipe("none.safetensors"), tmp_path)
    path = tmp_path / "a.safetensors"
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_network(recipe(path.name), tmp_path)
    (tmp_path / "a.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_network(recipe("a.pt"), tmp_path)
    torch.save({"network": tiny()}, tmp_path / "b.pt")  # a pickle that would run code
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_network(recipe("b.pt"), tmp_path)
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="no plain dictionary"):
        load_network(recipe("c.pt"), tmp_path)
    weights["blocks.0.mlp.fc1.bias"][0] = float("nan")
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"NaN .* 1 tensors .*blocks.0.mlp.fc1.bias"):
        load_network(recipe(path.name), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factory": "eecompile.networks.dit:DIT"}, "DIT"),
        ({"factory": "no.such.module:DiT"}, "no.such"),
        ({"factory": "DiT"}, "package.module:callable"),
        ({"factory": "torch.nn:Linear", "exits": (1,), "options": {}}, "refusing its options"),
        ({"options": TINY | {"heads": 3}}, "divisible"),
        ({"options": {**TINY, "hight": 1}}, "hight"),
        ({"exits": (1, 2)}, "from 1 to 4"),
        ({"exits": (1, 9)}, "from 1 to 4"),
    ],
)
def test_a_wrong_network_section_is_refused(
    tmp_path: Path, weights: dict[str, torch.Tensor], changes: dict[str, Any], words: str
) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(RecipeError, match=words):
        load_network(recipe("a.safetensors", **changes), tmp_path)
