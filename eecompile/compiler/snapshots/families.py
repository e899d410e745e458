"""What configurations of diffusers' networks leave to their pipelines, a function a class.

Each gives the recipe's tables for a network's ``config.json``: its blocks, its state, its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from eecompile.errors import UsageError

Config = Mapping[str, Any]
Table = dict[str, Any]


class Family(msgspec.Struct, frozen=True):
    """The tables of a recipe that depend on the class of a network.

    Attributes:
        blocks: the list that is cut, or the lists.
        depth: number of its blocks.
        shape: of the state.
        arguments: the network's names of our inputs.
        conditions: further inputs.
        process: what the network asks of it beside the scheduler.
        notes: what to look at.
        factory: of the network, where an adapter stands for the class.
        tokens: of a sample, by which the scheduler shifts its times, where it does.
    """

    blocks: str | list[str]
    depth: int
    shape: list[int]
    arguments: dict[str, str]
    conditions: dict[str, Table]
    process: Table = {}
    notes: tuple[str, ...] = ()
    factory: str = ""
    tokens: int = 0


_HIDDEN = {"x": "hidden_states", "t": "timestep"}
_TEXT = {**_HIDDEN, "text": "encoder_hidden_states"}
_LENGTH = "conditions.text.shape: the number of tokens is that of the published pipeline"


def _floats(*shape: int) -> Table:
    return {"dtype": "float32", "shape": [*shape]}


def _square(config: Config) -> list[int]:
    return [config["in_channels"], config["sample_size"], config["sample_size"]]


def _dit(config: Config) -> Family:
    classes = config["num_embeds_ada_norm"]
    label = {"dtype": "int64", "range": [0, classes - 1], "default": "cycle", "null": classes}
    return Family(
        "transformer_blocks",
        config["num_layers"],
        _square(config),
        {**_HIDDEN, "label": "class_labels"},
        {"label": label},
    )


def _pixart(config: Config) -> Family:
    arguments = {**_TEXT, "mask": "encoder_attention_mask"}
    mask = {"dtype": "int64", "range": [0, 1], "default": 1}
    conditions: dict[str, Table] = {}
    sized = config["use_additional_conditions"]
    if sized or (sized is None and config["sample_size"] == 128):
        arguments |= {
            "resolution": "added_cond_kwargs.resolution",
            "aspect": "added_cond_kwargs.aspect_ratio",
        }
        conditions = {"resolution": _floats(2), "aspect": _floats(1)}
    tokens = 300 if sized is False else 120  # PixArt-Sigma says that it has none
    return Family(
        "transformer_blocks",
        config["num_layers"],
        _square(config),
        arguments,
        {
            "text": _floats(tokens, config["caption_channels"]),
            "mask": {**mask, "shape": [tokens]},
            **conditions,
        },
        notes=("conditions.text and mask: PixArt-alpha has 120 tokens, PixArt-Sigma 300",),
    )


def _sd3(config: Config) -> Family:
    return Family(
        "transformer_blocks",
        config["num_layers"],
        _square(config),
        {**_TEXT, "pooled": "pooled_projections"},
        {
            "text": _floats(77 + 256, config["joint_attention_dim"]),
            "pooled": _floats(config["pooled_projection_dim"]),
        },
        notes=(_LENGTH,),
    )


def _flux(config: Config) -> Family:
    side, channels, patch = 128, config["in_channels"] // 4, 2
    arguments = {**_TEXT, "pooled": "pooled_projections"}
    conditions: dict[str, Table] = {
        "text": _floats(512, config["joint_attention_dim"]),
        "pooled": _floats(config["pooled_projection_dim"]),
    }
    if config["guidance_embeds"]:
        arguments["scale"] = "guidance"
        conditions["scale"] = {"dtype": "float32", "range": [0, 100], "default": 3.5}
    return Family(
        ["transformer_blocks", "single_transformer_blocks"],
        config["num_layers"] + config["num_single_layers"],
        [channels, side, side],
        arguments,
        conditions,
        {"time_scale": 0.001},
        ("state.shape: 1024x1024 behind the decoder; process.shift depends on it", _LENGTH),
        "eecompile.networks.flux:Flux",
        (side // patch) ** 2,
    )


def _auraflow(config: Config) -> Family:
    return Family(
        "single_transformer_blocks",
        config["num_single_dit_layers"],
        _square(config),
        _TEXT,
        {"text": _floats(256, config["joint_attention_dim"])},
        {"time_scale": 0.001},
        (_LENGTH,),
    )


def _wan(config: Config) -> Family:
    return Family(
        "blocks",
        config["num_layers"],
        [config["in_channels"], 21, 60, 104],
        _TEXT,
        {"text": _floats(512, config["text_dim"])},
        notes=("state.shape: channels, then 81 frames of 832x480 behind the encoder", _LENGTH),
    )


def _cogvideox(config: Config) -> Family:
    frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
    height, width = config["sample_height"], config["sample_width"]
    if config["use_rotary_positional_embeddings"]:
        raise UsageError(
            found="a CogVideoX with use_rotary_positional_embeddings",
            expected="one whose positions its forward makes: these are an argument, "
            "image_rotary_emb, without which it has none",
            remedy="write a factory that wraps the network and gives them, beside a recipe",
        )
    return Family(
        "transformer_blocks",
        config["num_layers"],
        [frames, config["in_channels"], height, width],
        _TEXT,
        {"text": _floats(config["max_text_seq_length"], config["text_embed_dim"])},
    )


def _unet(config: Config) -> Family:
    conditions: dict[str, Table] = {}
    arguments = {"x": "sample", "t": "timestep"}
    if config.get("num_class_embeds"):
        arguments["label"] = "class_labels"
        conditions["label"] = {"dtype": "int64", "range": [0, config["num_class_embeds"] - 1]}
    return Family(
        "down_blocks",
        len(config["down_block_types"]),
        _square(config),
        arguments,
        conditions,
        notes=("exits: a U-Net predicts from its full depth alone",),
    )


def _unet_with_text(config: Config) -> Family:
    found = _unet(config)
    arguments = {**found.arguments, "text": "encoder_hidden_states"}
    conditions = {**found.conditions, "text": _floats(77, config["cross_attention_dim"])}
    if config.get("addition_embed_type") == "text_time":  # Stable Diffusion XL
        times = 6
        pooled = config["projection_class_embeddings_input_dim"]
        pooled -= times * config["addition_time_embed_dim"]
        arguments |= {
            "pooled": "added_cond_kwargs.text_embeds",
            "sizes": "added_cond_kwargs.time_ids",
        }
        conditions |= {"pooled": _floats(pooled), "sizes": _floats(times)}
    return msgspec.structs.replace(found, arguments=arguments, conditions=conditions)


FAMILIES: Mapping[str, Callable[[Config], Family]] = {
    "AuraFlowTransformer2DModel": _auraflow,
    "CogVideoXTransformer3DModel": _cogvideox,
    "DiTTransformer2DModel": _dit,
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "UNet2DConditionModel": _unet_with_text,
    "UNet2DModel": _unet,
    "WanTransformer3DModel": _wan,
}
"""By the class of the network, which ``config.json`` names."""
