"""Snapshot folders, as the libraries' own save_pretrained writes them, become recipes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from eecompile.cli.app import app
from eecompile.compiler.export import interface_from_recipe
from eecompile.compiler.snapshots.folder import folder_of, read_snapshot
from eecompile.compiler.snapshots.recipe import write_recipe
from eecompile.compiler.verify import random_inputs
from eecompile.errors import CheckpointError, EecompileError, UsageError
from eecompile.networks.load import load_network
from eecompile.programs.process import Process
from eecompile.recipe import load_recipe
from eecompile.store.bundle import open_bundle

DIT: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 2,
    "out_channels": 4,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 5,
}
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}
UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
COG = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False}

PIPELINES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], Process]] = {
    "dit": ("DiTTransformer2DModel", DIT, "DDIMScheduler", {}, Process(variance="learned_range")),
    "pixart": (
        "PixArtTransformer2DModel",
        {**SMALL, "in_channels": 4, "cross_attention_dim": 16, "caption_channels": 12},
        "DPMSolverMultistepScheduler",
        {},
        Process(variance="learned_range"),
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            **SMALL,
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 6,
            "pos_embed_max_size": 8,
        },
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0},
        Process(family="flow", prediction="flow", shift=3.0),
    ),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 16,
        },
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 1.73},
        Process(family="flow", prediction="flow", shift=1.73, time_scale=0.001),
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 4,
        },
        "CogVideoXDDIMScheduler",
        COG,
        Process(
            betas="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            snr_shift=3.0,
            zero_terminal_snr=True,
            prediction="v_prediction",
        ),
    ),
    "unet": (
        "UNet2DModel",
        {
            **UNET,
            "in_channels": 2,
            "out_channels": 2,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        "DDPMScheduler",
        {"beta_schedule": "squaredcos_cap_v2"},
        Process(betas="cosine"),
    ),
    "sd": (
        "UNet2DConditionModel",
        {
            **UNET,
            "cross_attention_dim": 12,
            "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        "PNDMScheduler",
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        Process(betas="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ),
}


def made(name: str) -> Any:
    kind, options, *_ = PIPELINES[name]
    torch.manual_seed(0)
    network = getattr(diffusers, kind)(**options).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def saved(folder: Path, name: str, **options: Any) -> Any:
    """A pipeline's folder; its network."""
    network = made(name)
    part = "unet" if name in ("unet", "sd") else "transformer"
    network.save_pretrained(folder / part, **options)
    _, _, scheduler, config, _ = PIPELINES[name]
    getattr(diffusers, scheduler)(**config).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "TinyPipeline",
        part: ["diffusers", type(network).__name__],
        "scheduler": ["diffusers", scheduler],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
    }
    (folder / "vae").mkdir()
    (folder / "model_index.json").write_text(json.dumps(index))
    return network


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_a_pipelines_folder_becomes_a_recipe_of_its_network(tmp_path: Path, name: str) -> None:
    network = saved(tmp_path / "Tiny_Net", name)
    path = write_recipe(str(tmp_path / "Tiny_Net"), tmp_path / "made.toml")
    recipe = load_recipe(path)
    assert recipe.name == "tiny-net"
    assert recipe.process == PIPELINES[name][-1]
    assert "# Beside it, and not exported: vae (AutoencoderKL)" in path.read_text()
    loaded = load_network(recipe.network, tmp_path)
    arrays = random_inputs(interface_from_recipe(recipe), 2, 500.0, seed=0)
    inputs = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    call: dict[str, Any] = {}
    for key, value in inputs.items():
        call[recipe.network.arguments.get(key, key)] = value
    with torch.no_grad():
        (found,) = loaded(**inputs)
        expected = network(**call).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_stable_diffusion_xl_has_its_sizes(tmp_path: Path) -> None:
    kind, options, *rest = PIPELINES["sd"]
    more = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 30,
    }
    PIPELINES["xl"] = kind, {**options, **more}, *rest  # type: ignore[assignment]
    try:
        network = made("xl")
        network.save_pretrained(tmp_path / "xl" / "unet")
    finally:
        del PIPELINES["xl"]
    diffusers.EulerDiscreteScheduler().save_pretrained(tmp_path / "xl" / "scheduler")
    recipe = load_recipe(write_recipe(str(tmp_path / "xl"), tmp_path / "xl.toml"))
    assert recipe.conditions["pooled"].shape == (6,)
    arrays = random_inputs(interface_from_recipe(recipe), 2, 500.0, seed=0)
    inputs = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    added = {"text_embeds": inputs["pooled"], "time_ids": inputs["sizes"]}
    with torch.no_grad():
        (found,) = load_network(recipe.network, tmp_path)(**inputs)
        expected = network(inputs["x"], inputs["t"], inputs["text"], added_cond_kwargs=added).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_command_exports_a_folder_of_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "tiny", "dit", max_shard_size="20KB")
    result = CliRunner().invoke(app, ["export", "tiny", "-o", "bundle"])
    assert result.exit_code == 0, result.output
    assert "recipe: tiny.toml" in result.output
    manifest = open_bundle(tmp_path / "bundle")
    assert manifest.interface.process == PIPELINES["dit"][-1]
    assert len(manifest.sources) > 3  # the index and the shards
    again = CliRunner().invoke(app, ["export", "tiny.toml", "--variant", "fp16"])
    assert isinstance(again.exception, UsageError)
    assert "--variant for a recipe" in again.exception.found


def test_a_recipe_that_was_changed_is_not_replaced(tmp_path: Path) -> None:
    saved(tmp_path / "tiny", "dit")
    path = tmp_path / "a.toml"
    write_recipe(str(tmp_path / "tiny"), path)
    text = path.read_text()
    write_recipe(str(tmp_path / "tiny"), path)  # as it was
    path.write_text(text + "# mine\n")
    with pytest.raises(UsageError, match=r"another file at .*--force"):
        write_recipe(str(tmp_path / "tiny"), path)
    write_recipe(str(tmp_path / "tiny"), path, force=True)
    assert path.read_text() == text


def test_variants_are_chosen_and_named(tmp_path: Path) -> None:
    saved(tmp_path / "tiny", "dit", variant="fp16")
    folder = tmp_path / "tiny"
    only = read_snapshot(folder).checkpoint
    assert only.name == "diffusion_pytorch_model.fp16.safetensors"
    with pytest.raises(UsageError, match=r"no variant 'bf16' .* but fp16"):
        read_snapshot(folder, "bf16")
    made("dit").save_pretrained(folder / "transformer", variant="bf16", max_shard_size="20KB")
    with pytest.raises(UsageError, match=r"no plain weights .* but bf16, fp16.*--variant"):
        read_snapshot(folder)
    sharded = read_snapshot(folder, "bf16").checkpoint
    assert sharded.name == "diffusion_pytorch_model.safetensors.index.bf16.json"
    network = load_recipe(write_recipe(str(folder), tmp_path / "a.toml", "bf16")).network
    assert network.checkpoint == os.path.relpath(sharded, tmp_path)
    load_network(network, tmp_path)
    made("dit").save_pretrained(folder / "transformer")
    plain = read_snapshot(folder).checkpoint
    assert plain.name == "diffusion_pytorch_model.safetensors"


def test_missing_shards_are_named_before_anything_is_written(tmp_path: Path) -> None:
    saved(tmp_path / "tiny", "dit", max_shard_size="20KB")
    shard = sorted((tmp_path / "tiny" / "transformer").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"shards missing .*{shard.name}"):
        write_recipe(str(tmp_path / "tiny"), tmp_path / "a.toml")
    assert not (tmp_path / "a.toml").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "tiny", "dit")
    (tmp_path / "other").mkdir()
    saved(tmp_path / "other", "sd3")
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(tmp_path / "other/transformer" / name, tmp_path / "tiny/transformer" / name)
    recipe = load_recipe(write_recipe(str(tmp_path / "tiny"), tmp_path / "a.toml"))
    with pytest.raises(CheckpointError, match="keys do not fit"):
        load_network(recipe.network, tmp_path)


def broken(folder: Path, what: str) -> None:
    if what == "nothing":
        shutil.rmtree(folder / "transformer")
    elif what == "scheduler":
        shutil.rmtree(folder / "scheduler")
    elif what == "weights":
        (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    elif what == "json":
        (folder / "transformer" / "config.json").write_text("[")
    elif what == "class":
        (folder / "transformer" / "config.json").write_text('{"_class_name": "FooModel"}')
    elif what == "process":
        diffusers.IPNDMScheduler().save_pretrained(folder / "scheduler")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nothing", r"no transformer/config\.json"),
        ("scheduler", r"no scheduler/scheduler_config\.json"),
        ("weights", "no weights at all"),
        ("json", "no readable JSON"),
        ("class", "class FooModel .*expected one of AuraFlow"),
        ("process", "IPNDMScheduler .*process is not known"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, what: str, words: str) -> None:
    saved(tmp_path / "tiny", "dit")
    broken(tmp_path / "tiny", what)
    with pytest.raises(EecompileError, match=words):
        write_recipe(str(tmp_path / "tiny"), tmp_path / "a.toml")


def test_a_name_is_looked_up_in_the_cache_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "models--org--Tiny-Net"
    saved(cache / "snapshots" / "abc", "dit")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert folder_of("hub:org/Tiny-Net") == cache / "snapshots" / "abc"
    assert load_recipe(write_recipe("hub:org/Tiny-Net", tmp_path / "a.toml")).name == "tiny-net"
    with pytest.raises(UsageError, match=r"no snapshot of org/none .*hf download org/none"):
        folder_of("hub:org/none")
