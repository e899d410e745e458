"""What configurations of diffusers' networks leave to their pipelines, a function a class.

Each gives the recipe's tables for a network's ``config.json``: its blocks, its state, its inputs.
Beside the network's own keys, a configuration has those of its companions, by their folders.
"""

from __future__ import annotations

import math
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
        constants: further arguments of the network.
        options: of an adapter, beside the network's own.
        parts: folders of the snapshot whose weights are the network's, too.
        cuts: block boundaries between which spans may be skipped; None for the default ones.
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
    constants: Table = {}
    options: Table = {}
    parts: tuple[str, ...] = ()
    cuts: list[int] | None = None


_HIDDEN = {"x": "hidden_states", "t": "timestep"}
_TEXT = {**_HIDDEN, "text": "encoder_hidden_states"}
_MASKED = {**_TEXT, "mask": "encoder_attention_mask"}
_LENGTH = "conditions.text.shape: the number of tokens is that of the published pipeline"
_NORM = (
    "sampling.guidance: the pipeline also scales what it guides to the length of the prompt's own "
    "prediction; here it does not"
)


def _floats(*shape: int) -> Table:
    return {"dtype": "float32", "shape": [*shape]}


def _mask(tokens: int) -> Table:
    """1 for a token, 0 for padding."""
    return {"dtype": "int64", "shape": [tokens], "range": [0, 1], "default": 1}


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
    arguments = dict(_MASKED)
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
            "mask": _mask(tokens),
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


def flux_tokens(config: Config) -> int:
    """Tokens of a prompt: Flux schnell, which is not told its guidance, takes half as many."""
    return 512 if config.get("guidance_embeds") else 256


def _flux(config: Config) -> Family:
    side, channels, patch = 128, config["in_channels"] // 4, 2
    arguments = {**_TEXT, "pooled": "pooled_projections"}
    conditions: dict[str, Table] = {
        "text": _floats(flux_tokens(config), config["joint_attention_dim"]),
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
    depths = {"joint": config["num_mmdit_layers"], "single": config["num_single_dit_layers"]}
    return Family(
        [f"{kind}_transformer_blocks" for kind, depth in depths.items() if depth],
        sum(depths.values()),
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


def _sana(config: Config) -> Family:
    tokens, scale = 300, config["timestep_scale"]
    return Family(
        "transformer_blocks",
        config["num_layers"],
        _square(config),
        _MASKED,
        {"text": _floats(tokens, config["caption_channels"]), "mask": _mask(tokens)},
        {"time_scale": scale} if scale != 1 else {},
        (_LENGTH,),
    )


def _lumina2(config: Config) -> Family:
    tokens = 256
    return Family(
        "layers",
        config["num_layers"],
        _square(config),
        _MASKED,
        {"text": _floats(tokens, config["cap_feat_dim"]), "mask": _mask(tokens)},
        {"prediction": "flow_to_data", "time_scale": -0.001, "time_offset": 1.0},
        (_LENGTH, _NORM),
        "eecompile.networks.lumina:Lumina2",
    )


def _hunyuan(config: Config) -> Family:
    side, base = config["sample_size"] // config["patch_size"], 64 // config["patch_size"]
    table = {
        "call": "diffusers.models.embeddings:get_2d_rotary_pos_embed",
        "arguments": [config["attention_head_dim"], [[0, 0], [base, base]], [side, side]],
        "options": {"output_type": "pt"},
    }
    arguments = {
        **_TEXT,
        "mask": "text_embedding_mask",
        "t5": "encoder_hidden_states_t5",
        "t5_mask": "text_embedding_mask_t5",
    }
    few, many = config["text_len"], config["text_len_t5"]
    conditions = {
        "text": _floats(few, config["cross_attention_dim"]),
        "mask": _mask(few),
        "t5": _floats(many, config["cross_attention_dim_t5"]),
        "t5_mask": _mask(many),
    }
    if config["use_style_cond_and_image_meta_size"]:
        arguments |= {"sizes": "image_meta_size", "style": "style"}
        style = {"dtype": "int64", "range": [0, 0], "default": 0}
        conditions |= {"sizes": _floats(6), "style": style}
    return Family(
        "blocks",
        config["num_layers"],
        _square(config),
        arguments,
        conditions,
        constants={"image_rotary_emb": table},
    )


def _qwen(config: Config) -> Family:
    side, patch, tokens = 128, config["patch_size"], 512
    if config["guidance_embeds"] or config["zero_cond_t"] or config["use_additional_t_cond"]:
        raise UsageError(
            found="a QwenImageTransformer2DModel with guidance_embeds, zero_cond_t or "
            "use_additional_t_cond",
            expected="that of Qwen-Image, which makes pictures of prompts alone",
            remedy="write a factory that wraps the network, beside a recipe",
        )
    return Family(
        "transformer_blocks",
        config["num_layers"],
        [config["in_channels"] // patch**2, side, side],
        {**_TEXT, "mask": "encoder_hidden_states_mask"},
        {"text": _floats(tokens, config["joint_attention_dim"]), "mask": _mask(tokens)},
        {"time_scale": 0.001},
        ("state.shape: 1024x1024 behind the decoder; process.shift depends on it", _LENGTH, _NORM),
        "eecompile.networks.qwen:QwenImage",
        (side // patch) ** 2,
    )


def _ltx(config: Config) -> Family:
    frames, height, width, rate, tokens = 161, 512, 704, 25, 128
    vae: Table = {"patch_size": 4, "patch_size_t": 1, "spatio_temporal_scaling": [1, 1, 1, 0]}
    vae |= config.get("vae", {})
    doubled = 2 ** sum(vae["spatio_temporal_scaling"])
    across = vae.get("spatial_compression_ratio") or vae["patch_size"] * doubled
    along = vae.get("temporal_compression_ratio") or vae["patch_size_t"] * doubled
    if config["patch_size"] != 1 or config["patch_size_t"] != 1:
        raise UsageError(
            found="an LTXVideoTransformer3DModel with patches of several latents",
            expected="patch_size = patch_size_t = 1, as published",
            remedy="write a factory that wraps the network, beside a recipe",
        )
    shape = [(frames - 1) // along + 1, height // across, width // across]
    return Family(
        "transformer_blocks",
        config["num_layers"],
        [config["in_channels"], *shape],
        _MASKED,
        {"text": _floats(tokens, config["caption_channels"]), "mask": _mask(tokens)},
        notes=(
            f"state.shape: channels, then {frames} frames of {width}x{height} behind the decoder; "
            "process.shift depends on it",
            _LENGTH,
        ),
        factory="eecompile.networks.ltx:LTX",
        tokens=math.prod(shape),
        options={"rope_interpolation_scale": [along / rate, across, across]},
    )


def _stable_audio(config: Config) -> Family:
    projection, vae = config.get("projection_model"), config.get("vae", {})
    if projection is None:
        raise UsageError(
            found="a StableAudioDiTModel without the projection_model of its pipeline",
            expected="the pipeline's folder, since the network takes what that makes of seconds",
            remedy="save the whole pipeline, and give its folder",
        )
    names = ("text_encoder_dim", "conditioning_dim", "min_value", "max_value")
    kept = {name: projection[name] for name in names}
    hop = math.prod(vae.get("downsampling_ratios", [2048]))
    last = config["sample_size"] * hop / vae.get("sampling_rate", 44100)
    seconds = {"dtype": "float32", "range": [kept["min_value"], kept["max_value"]]}
    return Family(
        "transformer_blocks",
        config["num_layers"],
        [config["in_channels"], config["sample_size"]],
        {**_TEXT, "start": "start_seconds", "end": "end_seconds"},
        {
            "text": _floats(128, kept["text_encoder_dim"]),
            "start": {**seconds, "default": 0.0},
            "end": {**seconds, "default": last},
        },
        notes=("conditions.start and end: in seconds; what is beyond the end is not cut", _LENGTH),
        factory="eecompile.networks.stable_audio:StableAudio",
        options={"projection": kept},
        parts=("projection_model",),
    )


def _unet(config: Config) -> Family:
    conditions: dict[str, Table] = {}
    arguments = {"x": "sample", "t": "timestep"}
    if config.get("num_class_embeds"):
        arguments["label"] = "class_labels"
        conditions["label"] = {"dtype": "int64", "range": [0, config["num_class_embeds"] - 1]}
    levels = len(config["down_block_types"])
    middle = ["mid_block"] if config.get("mid_block_type", "") is not None else []
    depth = 2 * levels + len(middle)
    return Family(
        ["down_blocks", *middle, "up_blocks"],
        depth,
        _square(config),
        arguments,
        conditions,
        notes=(
            "exits: a U-Net predicts from its full depth alone; cuts: a span may skip the inner "
            "levels (DeepCache, arXiv 2312.00858)",
        ),
        cuts=[1, depth - 1],
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
    "HunyuanDiT2DModel": _hunyuan,
    "LTXVideoTransformer3DModel": _ltx,
    "Lumina2Transformer2DModel": _lumina2,
    "PixArtTransformer2DModel": _pixart,
    "QwenImageTransformer2DModel": _qwen,
    "SD3Transformer2DModel": _sd3,
    "SanaTransformer2DModel": _sana,
    "StableAudioDiTModel": _stable_audio,
    "UNet2DConditionModel": _unet_with_text,
    "UNet2DModel": _unet,
    "WanTransformer3DModel": _wan,
}
"""By the class of the network, which ``config.json`` names."""
