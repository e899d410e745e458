"""Encoders and decoders in recipes for snapshots: how the pipelines of diffusers use theirs."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eecompile.compiler.snapshots.families import Config, Table, flux_tokens
from eecompile.compiler.snapshots.folder import Snapshot, class_defaults, read_config
from eecompile.programs.companions import PLACE

_CLIP = 77  # tokens of CLIP's encoders


class _Text(NamedTuple):
    """How a pipeline makes conditions of prompts by one of its encoders.

    Attributes:
        part: folder of the encoder; its tokenizer's has the same ending.
        length: of its prompts, in tokens.
        gives: by condition, the output; and where it lies, if not at the beginning.
        told: whether the encoder is told which tokens are padding.
        more: further keys of its table.
    """

    part: str
    length: int
    gives: Mapping[str, str | tuple[str, list[int]]]
    told: bool = False
    more: Table = {}  # noqa: RUF012 - of a tuple, never written to

    @property
    def tokenizer(self) -> str:
        """Folder of its tokenizer."""
        return self.part.replace("text_encoder", "tokenizer")


class Convention(NamedTuple):
    """What a pipeline does by default.

    Attributes:
        texts: its encoders.
        guidance: the scale of its guidance.
        nulls: numbers that stand for "no condition", by condition; the empty prompt for others.
        steps: of its sampling, where it does not say itself.
    """

    texts: Sequence[_Text]
    guidance: float
    nulls: Mapping[str, float] = {}
    steps: int | None = None


def _stable_diffusion(snapshot: Snapshot, config: Config) -> Convention:
    if config.get("addition_embed_type") != "text_time":
        return Convention([_Text("text_encoder", _CLIP, {"text": "last_hidden_state"})], 7.5)
    width = _width(snapshot, "text_encoder")
    second: dict[str, str | tuple[str, list[int]]] = {
        "text": ("hidden_states.-2", [0, width]),
        "pooled": "text_embeds",
    }
    zeros = bool(
        read_config(snapshot.folder / "model_index.json").get("force_zeros_for_empty_prompt")
    )
    return Convention(
        [
            _Text("text_encoder", _CLIP, {"text": "hidden_states.-2"}),
            _Text("text_encoder_2", _CLIP, second),
        ],
        5.0,
        {"text": 0, "pooled": 0} if zeros else {},
    )


def _sd3(snapshot: Snapshot, config: Config) -> Convention:
    width = _width(snapshot, "text_encoder")
    pooled = _width(snapshot, "text_encoder", "projection_dim")
    return Convention(
        [
            _Text("text_encoder", _CLIP, {"text": "hidden_states.-2", "pooled": "text_embeds"}),
            _Text(
                "text_encoder_2",
                _CLIP,
                {"text": ("hidden_states.-2", [0, width]), "pooled": ("text_embeds", [pooled])},
            ),
            _Text("text_encoder_3", 256, {"text": ("last_hidden_state", [_CLIP, 0])}),
        ],
        7.0,
    )


def _flux(snapshot: Snapshot, config: Config) -> Convention:
    return Convention(
        [
            _Text("text_encoder", _CLIP, {"pooled": "pooler_output"}),
            _Text("text_encoder_2", flux_tokens(config), {"text": "last_hidden_state"}),
        ],
        1.0,  # the network is told its guidance
        steps=None if config.get("guidance_embeds") else 4,  # distilled to few, as published
    )


def _hunyuan(snapshot: Snapshot, config: Config) -> Convention:
    few, many = config.get("text_len", _CLIP), config.get("text_len_t5", 256)
    bert = {"text": "last_hidden_state", "mask": "mask"}
    t5 = {"t5": "last_hidden_state", "t5_mask": "mask"}
    texts = [_Text("text_encoder", few, bert, True), _Text("text_encoder_2", many, t5, True)]
    return Convention(texts, 5.0)


def _sana(snapshot: Snapshot, config: Config) -> Convention:
    call = inspect.signature(_named("SanaPipeline").__call__).parameters
    before = "\n".join(call["complex_human_instruction"].default)
    more = {"lower": True, "template": before + PLACE, "drop_template": True}
    gives = {"text": "last_hidden_state", "mask": "mask"}
    return Convention([_Text("text_encoder", 300, gives, True, more)], 4.5)


def _lumina2(snapshot: Snapshot, config: Config) -> Convention:
    before = _without_parts("Lumina2Pipeline").system_prompt
    gives = {"text": "hidden_states.-2", "mask": "mask"}
    more = {"template": f"{before} <Prompt Start> {PLACE}"}
    return Convention([_Text("text_encoder", 256, gives, True, more)], 4.0)


def _qwen(snapshot: Snapshot, config: Config) -> Convention:
    template = _without_parts("QwenImagePipeline").prompt_template_encode
    gives = {"text": "hidden_states.-1", "mask": "mask"}
    more = {
        "template": template,
        "negative_template": template,
        "drop_template": True,
        "zero_padding": True,
    }
    return Convention([_Text("text_encoder", 512, gives, True, more)], 4.0)


def _named(pipeline: str) -> Any:
    return getattr(importlib.import_module("diffusers"), pipeline)


def _without_parts(pipeline: str) -> Any:
    """A pipeline that knows nothing but the texts that it puts prompts into."""
    names = [*inspect.signature(_named(pipeline).__init__).parameters][1:]
    return _named(pipeline)(**dict.fromkeys(names))


def _pixart(snapshot: Snapshot, config: Config) -> Convention:
    length = 300 if config.get("use_additional_conditions") is False else 120
    gives = {"text": "last_hidden_state", "mask": "mask"}
    return Convention([_Text("text_encoder", length, gives, True, {"lower": True})], 4.5)


def _t5(
    length: int,
    guidance: float,
    *,
    told: bool = False,
    masks: bool = False,
    nulls: Mapping[str, float] | None = None,
    **more: Any,
) -> Any:
    """The convention of pipelines with one encoder, whose last hidden states are the condition."""

    def convention(snapshot: Snapshot, config: Config) -> Convention:
        gives = {"text": "last_hidden_state"} | ({"mask": "mask"} if masks else {})
        return Convention([_Text("text_encoder", length, gives, told, more)], guidance, nulls or {})

    return convention


CONVENTIONS: Mapping[str, Callable[[Snapshot, Config], Convention]] = {
    "AuraFlowTransformer2DModel": _t5(256, 3.5, told=True, zero_padding=True),
    "CogVideoXTransformer3DModel": _t5(226, 6.0),
    "FluxTransformer2DModel": _flux,
    "HunyuanDiT2DModel": _hunyuan,
    "LTXVideoTransformer3DModel": _t5(128, 3.0, masks=True),
    "Lumina2Transformer2DModel": _lumina2,
    "PixArtTransformer2DModel": _pixart,
    "QwenImageTransformer2DModel": _qwen,
    "SD3Transformer2DModel": _sd3,
    "SanaTransformer2DModel": _sana,
    "StableAudioDiTModel": _t5(128, 7.0, told=True, zero_padding=True, nulls={"text": 0}),
    "UNet2DConditionModel": _stable_diffusion,
    "WanTransformer3DModel": _t5(512, 5.0, told=True, zero_padding=True),
}
"""By the class of the network."""
_ENCODERS = (
    "BertModel",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "Gemma2Model",
    "Qwen2_5_VLForConditionalGeneration",
    "T5EncoderModel",
    "UMT5EncoderModel",
)
_DECODERS: Mapping[str, Table] = {
    "AutoencoderDC": {},
    "AutoencoderKL": {},
    "AutoencoderKLLTXVideo": {
        "factory": "eecompile.networks.ltx:LTXDecoder",
        "kind": "video",
        "rate": 25,
    },
    "AutoencoderKLQwenImage": {"factory": "eecompile.networks.qwen:QwenImageDecoder"},
    "AutoencoderKLWan": {"kind": "video", "rate": 16},
    "AutoencoderOobleck": {"kind": "audio"},
    "AutoencoderTiny": {},
}
"""By the class of the decoder: what its recipe says beside its scaling."""
_DECODER = "vae"


class Tables(NamedTuple):
    """What companions add to a recipe.

    Attributes:
        tables: of the encoders and the decoder, by their headings.
        guidance: the pipeline's, where its prompts are encoded; None otherwise.
        nulls: numbers for "no condition", by condition.
        parts: folders of the snapshot that these tables name.
        steps: of the pipeline's sampling, where it is known of its network.
        notes: what to look at.
    """

    tables: dict[str, Table]
    guidance: float | None
    nulls: Mapping[str, float]
    parts: frozenset[str]
    steps: int | None = None
    notes: tuple[str, ...] = ()


def companion_tables(snapshot: Snapshot, kind: str, place: Callable[[Path], str]) -> Tables:
    """The tables of a snapshot's companions: of all encoders or of none, and of the decoder.

    Args:
        snapshot: of a pipeline.
        kind: the class of its network.
        place: writes a path for the recipe.
    """
    tables, guidance, nulls = dict[str, Table](), None, dict[str, float]()
    parts, notes, steps = set[str](), list[str](), None
    convention = CONVENTIONS.get(kind)
    if convention is not None and (snapshot.folder / "model_index.json").is_file():
        found = convention(snapshot, snapshot.config)
        there = [text for text in found.texts if text.part in snapshot.companions]
        known = all(snapshot.companions[text.part] in _ENCODERS for text in there)
        if there and known and all(text.tokenizer in snapshot.companions for text in there):
            for text in there:
                tables[f"encoders.{text.part}"] = _encoder(snapshot, text, place)
                parts |= {text.part, text.tokenizer}
            guidance, nulls, steps = found.guidance, dict(found.nulls), found.steps
    decoder = snapshot.companions.get(_DECODER)
    if (
        decoder is not None
        and decoder in _DECODERS
        and (snapshot.folder / _DECODER / "config.json").is_file()
    ):
        path = snapshot.folder / _DECODER / "config.json"
        config = class_defaults(decoder) | read_config(path)
        if config.get("timestep_conditioning"):
            notes.append(
                "No decoder: the pipeline's takes a time and noise (timestep_conditioning)"
            )
        else:
            tables["decoder"] = _decoder(snapshot, decoder, config, place)
            parts.add(_DECODER)
    return Tables(tables, guidance, nulls, frozenset(parts), steps, tuple(notes))


def _encoder(snapshot: Snapshot, text: _Text, place: Callable[[Path], str]) -> Table:
    gives = {
        name: {"output": output}
        if isinstance(output, str)
        else {"output": output[0], "at": output[1]}
        for name, output in text.gives.items()
    }
    arguments = {"ids": "input_ids"} | ({"mask": "attention_mask"} if text.told else {})
    return {
        "factory": f"transformers:{snapshot.companions[text.part]}",
        "checkpoint": place(snapshot.folder / text.part),
        "tokenizer": place(snapshot.folder / text.tokenizer),
        "length": text.length,
        "arguments": arguments,
        "gives": gives,
        **text.more,
        **_variant(snapshot, text.part),
    }


def _decoder(snapshot: Snapshot, kind: str, config: Config, place: Callable[[Path], str]) -> Table:
    table: Table = {
        "factory": f"diffusers:{kind}",
        "checkpoint": place(snapshot.folder / _DECODER),
        **_DECODERS[kind],
        **_variant(snapshot, _DECODER),
    }
    if "sampling_rate" in config:
        table["rate"] = config["sampling_rate"]
    if kind == "AutoencoderKLLTXVideo":
        return table  # its mean and deviation lie among its weights
    scaling, mean, deviation = (
        config.get(key) for key in ("scaling_factor", "latents_mean", "latents_std")
    )
    if mean and deviation:
        scale = scaling or 1.0
        return {**table, "scaling": [scale / each for each in deviation], "shift": list(mean)}
    if scaling is not None:
        table["scaling"] = scaling
    if config.get("shift_factor"):
        table["shift"] = config["shift_factor"]
    return table


def _variant(snapshot: Snapshot, part: str) -> Table:
    """The variant of the network's weights, where a companion has it, too."""
    variant = snapshot.variant
    has = variant and any((snapshot.folder / part).glob(f"*.{variant}.*"))
    return {"options": {"variant": variant}} if has else {}


def _width(snapshot: Snapshot, part: str, key: str = "hidden_size") -> int:
    """A width of an encoder of CLIP's kind, or the usual one where it is not there."""
    path = snapshot.folder / part / "config.json"
    return int(read_config(path).get(key, 768)) if path.is_file() else 768
