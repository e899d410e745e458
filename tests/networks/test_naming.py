"""Checkpoints as training wrappers and quantisers write them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eecompile.compiler.export import bundle_from_recipe
from eecompile.errors import CheckpointError
from eecompile.networks.checkpoint import checkpoint_files, state_from_file
from eecompile.networks.load import load_network
from eecompile.networks.quantised import dequantised
from tests.networks.test_dit import tiny
from tests.networks.test_load import recipe, state_of

# Of what torch.compile imports.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
State = dict[str, Any]


def plain() -> State:
    return dict(tiny().state_dict())


def others() -> State:
    return {name: torch.zeros_like(value) for name, value in plain().items()}


def below(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def compiled() -> State:
    return dict(torch.compile(tiny()).state_dict())  # type: ignore[attr-defined]


def compiled_blocks() -> State:
    return {name.replace("blocks.", "blocks._orig_mod."): value for name, value in plain().items()}


def lightning() -> State:
    whole = {**below("model.", plain()), **below("vae.", {"encoder.weight": torch.ones(2)})}
    return {"state_dict": whole, "epoch": 3, "global_step": 7, "hyper_parameters": {"lr": 1e-4}}


def lightning_with_average() -> State:
    return {"state_dict": {**below("model.", others()), **below("ema_model.", plain())}}


def lightning_compiled() -> State:
    return {"state_dict": below("net._orig_mod.", plain())}


def ema_pytorch() -> State:
    counts = {"initted": torch.tensor(True), "step": torch.tensor(9)}
    return {**below("online_model.", others()), **below("ema_model.", plain()), **counts}


WRITTEN: list[tuple[Callable[[], State], str]] = [
    (compiled, "_orig_mod."),
    (compiled_blocks, "_orig_mod."),
    (lambda: dict(AveragedModel(tiny()).state_dict()), "module."),
    (lambda: dict(nn.DataParallel(tiny()).state_dict()), "module."),
    (lightning, "model.; 1 entries"),
    (lightning_with_average, "ema_model."),
    (lightning_compiled, "net."),
    (ema_pytorch, "ema_model."),
    (lambda: {"state_dict": others(), "state_dict_ema": below("module.", plain())}, "module."),
]


@pytest.mark.parametrize(("write", "words"), WRITTEN)
def test_the_weights_are_found_below_any_wrapper(
    tmp_path: Path, write: Callable[[], State], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(write(), tmp_path / "a.pt")
    with caplog.at_level(logging.WARNING):
        found = state_of(load_network(recipe(), tmp_path))
    for name, value in plain().items():
        assert torch.equal(found[name], value), name
    assert words in caplog.text  # said in the output


def test_plain_names_are_taken_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(plain(), tmp_path / "a.pt")
    load_network(recipe(), tmp_path)
    assert not caplog.text


def test_prefixes_that_lead_to_as_much_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    torch.save({**below("one.", others()), **below("two.", plain())}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"each of \['one\.', 'two\.'\].*checkpoint_key"):
        load_network(recipe(), tmp_path)
    found = state_of(load_network(recipe(checkpoint_key="two."), tmp_path))
    assert all(torch.equal(found[name], value) for name, value in plain().items())
    with pytest.raises(CheckpointError, match=r"no entry whose name begins with 'three\.'"):
        load_network(recipe(checkpoint_key="three."), tmp_path)


def test_what_a_wrapper_hides_is_still_missed(tmp_path: Path) -> None:
    state = below("model.", plain())
    del state["model.final_layer.linear.bias"]
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r": 1 missing \(final_layer\.linear\.bias\); exp"):
        load_network(recipe(), tmp_path)


def test_an_average_without_names_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"shadow_params": [torch.ones(2)], "decay": 0.99}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"list without names.*ema\.copy_to"):
        load_network(recipe(), tmp_path)


def per_tensor(whole: Tensor) -> Tensor:
    return whole.abs().max() / 448


def per_row(whole: Tensor) -> Tensor:
    return whole.abs().amax(dim=tuple(range(1, whole.ndim)), keepdim=True) / 448


@pytest.mark.parametrize(
    ("beside", "scale_of"),
    [
        ("{outer}.weight_scale", per_tensor),
        ("{outer}.weight_scale", per_row),
        ("{outer}.scale_weight", per_tensor),
        ("{outer}.weight_scale_inv", per_tensor),
    ],
)
def test_fp8_with_scales_is_dequantised(
    tmp_path: Path,
    beside: str,
    scale_of: Callable[[Tensor], Tensor],
    caplog: pytest.LogCaptureFixture,
) -> None:
    state, expected = plain(), {}
    for name, value in plain().items():
        if name.endswith("mlp.fc1.weight"):
            outer, scale = name.rpartition(".")[0], scale_of(value)
            state[name] = (value / scale).to(torch.float8_e4m3fn)
            state[beside.format(outer=outer)] = scale
            state[f"{outer}.input_scale"] = torch.tensor(3.0)
            expected[name] = state[name].float() * scale
    state["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(state, tmp_path / "a.safetensors")
    found = state_of(load_network(recipe("a.safetensors"), tmp_path))
    assert len(expected) == 4
    for name, value in expected.items():
        assert torch.equal(found[name], value)
        assert (found[name] - plain()[name]).abs().max() < 0.07 * plain()[name].abs().max()
    assert "4 of them with scales" in caplog.text


def test_scales_of_blocks_are_spread_over_rows_and_columns() -> None:
    weight = torch.randn(200, 300).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 3)  # blocks of 128
    found = dequantised({"a.weight": weight, "a.weight_scale_inv": scale})["a.weight"]
    for row, column in ((0, 0), (127, 128), (128, 255), (199, 299)):
        expected = weight[row, column].float() * scale[row // 128, column // 128]
        assert found[row, column] == expected
    halves = dequantised({"w": weight, "w_scale": torch.rand(200, 3)})["w"]  # along a row
    assert halves.shape == weight.shape
    with pytest.raises(CheckpointError, match=r"w \[200, 300\] with scales w_scale \[7\]"):
        dequantised({"w": weight, "w_scale": torch.rand(7)})


def test_fp8_without_scales_is_taken_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {name: value.to(torch.float8_e4m3fn) for name, value in plain().items()}
    save_file(state, tmp_path / "a.safetensors")
    found = state_of(load_network(recipe("a.safetensors"), tmp_path))
    assert all(torch.equal(found[name], value.float()) for name, value in state.items())
    assert "without scales" in caplog.text


# -------------------------------------------------------------------------------- shards


def sharded(folder: Path) -> Path:
    make: Any = DiTTransformer2DModel
    torch.manual_seed(0)
    options = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 2}
    network = make(**options, num_layers=2, sample_size=8, num_embeds_ada_norm=5)
    network.save_pretrained(folder, max_shard_size="20KB")
    return folder / "diffusion_pytorch_model.safetensors.index.json"


def test_shards_are_read_as_one_checkpoint(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    found = state_from_file(index)
    expected = {name: value for shard in shards for name, value in load_file(shard).items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert checkpoint_files(index) == [index, *shards]


def test_missing_and_foreign_shards_are_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    content = load_file(shard)
    save_file({"other": torch.ones(2)}, shard)
    with pytest.raises(CheckpointError, match="shards of another checkpoint"):
        state_from_file(index)
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"1 of \d+ shards missing .*{shard.name}"):
        state_from_file(index)
    save_file(content, shard)
    for text in ("{", "[]", json.dumps({"weight_map": {"a": "../a.safetensors"}})):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="no index of shards"):
            state_from_file(index)


RECIPE = """
name = "sharded"
[network]
factory = "diffusers:DiTTransformer2DModel"
blocks = "transformer_blocks"
checkpoint = "diffusion_pytorch_model.safetensors.index.json"
exits = [2]
[network.options]
num_attention_heads = 2
attention_head_dim = 8
in_channels = 2
num_layers = 2
sample_size = 8
num_embeds_ada_norm = 5
[network.arguments]
x = "hidden_states"
t = "timestep"
label = "class_labels"
[state]
shape = [2, 8, 8]
[conditions.label]
dtype = "int64"
range = [0, 4]
"""


def test_every_shard_is_a_source_of_the_bundle(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / "sharded.toml").write_text(RECIPE)
    manifest = bundle_from_recipe(tmp_path / "sharded.toml", tmp_path / "bundle")
    assert manifest.sources.keys() == {path.name for path in checkpoint_files(index)}
