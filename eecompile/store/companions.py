"""Companions in recipes, in targets, and in manifests: encoders of prompts, and a decoder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from eecompile.backends import BackendName
from eecompile.decoding import PlainName
from eecompile.programs.companions import PLACE, DecodedKind, Given, PromptEncoder, SampleDecoder
from eecompile.programs.interface import Interface

DECODER = "decoder"
"""The name of the decoder, and the stem of its files' names."""
DECODER_TOKENIZER = f"{DECODER}.tokenizer.json"
"""File name of the tokenizer that makes text of tokens."""
IDS, LATENTS = "ids", "latents"
"""Inputs of a companion's graph: an encoder's, beside ``mask``, and the decoder's."""


def encoder_name(name: str) -> str:
    """The name of an encoder among companions, and the stem of its files' names."""
    return f"encoder-{name}"


def tokenizer_name(name: str) -> str:
    """File name of the tokenizer of an encoder."""
    return f"{encoder_name(name)}.tokenizer.json"


def tokenizer_files(interface: Interface) -> list[str]:
    """File names of the tokenizers of a network's companions."""
    decodes = interface.decoder is not None and interface.decoder.kind == "text"
    return [*map(tokenizer_name, interface.encoders), *([DECODER_TOKENIZER] if decodes else [])]


class CompanionRecipe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a companion comes from.

    Attributes:
        factory: ``package.module:callable``, as of a network. Where the checkpoint is a folder,
            a class whose ``from_pretrained`` reads it.
        checkpoint: a file, as of a network, or a folder that ``save_pretrained`` wrote; relative
            to the recipe.
        options: keyword arguments of the factory, or of ``from_pretrained``.
        constants: further arguments of the module, the same at every call, as of a network.
    """

    factory: str
    checkpoint: str
    options: dict[str, Any] = {}
    constants: dict[str, Any] = {}


def _usual_arguments() -> dict[Literal["ids", "mask"], str]:
    return {"ids": "input_ids", "mask": "attention_mask"}


class EncoderRecipe(CompanionRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What makes conditions of prompts.

    Attributes:
        tokenizer: a ``tokenizer.json``, or the folder of a tokenizer that transformers reads;
            relative to the recipe.
        length: tokens of every prompt; what is longer is cut, what is shorter padded.
        gives: by condition, what the encoder gives of it.
        arguments: the module's names of ``ids`` and ``mask``, each int64 [B, length]; without
            ``mask``, the module is not told which tokens are padding.
        padding: the token that fills prompts; None takes what the tokenizer says.
        zero_padding: whether outputs are 0 where a token is padding.
        lower: whether prompts are first written in small letters.
        template: the text that the encoder reads of a prompt, which takes the place of ``{}``.
        negative_template: likewise of a negative prompt.
        drop_template: whether outputs leave out the tokens of a template before the prompt, which
            then do not count in ``length``.
    """

    tokenizer: str
    length: Annotated[int, Meta(ge=1)]
    gives: dict[str, Given]
    arguments: dict[Literal["ids", "mask"], str] = field(default_factory=_usual_arguments)
    padding: str | None = None
    zero_padding: bool = False
    lower: bool = False
    template: str = PLACE
    negative_template: str = PLACE
    drop_template: bool = False

    @property
    def encoder(self) -> PromptEncoder:
        """What a sampler must know of it."""
        return PromptEncoder(
            length=self.length,
            gives=self.gives,
            lower=self.lower,
            template=self.template,
            negative_template=self.negative_template,
            drop_template=self.drop_template,
        )


class DecoderRecipe(CompanionRecipe, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What samples are decoded by.

    Attributes:
        method: of the module, which takes samples divided by ``scaling``, plus ``shift``.
        scaling: of samples against what the decoder takes; one number, or one a channel.
        shift: likewise.
        axes: order of a sample's axes that the decoder takes, such as [1, 0, 2, 3]; () as they are.
        kind: ``image``, ``video``, ``audio`` or ``text``.
        range: of the decoded values.
        rate: frames of a video, or values of a waveform, a second.
        tile: length along each of the last axes (two, or one of audio) that it is exported for;
            longer samples are decoded in overlapping tiles. 0 for whole samples.
        tokenizer: of text, and of nothing else: as an encoder's.
    """

    method: str = "decode"
    scaling: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0
    axes: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    kind: DecodedKind = "image"
    range: tuple[float, float] = (-1.0, 1.0)
    rate: float = 0.0
    tile: Annotated[int, Meta(ge=0)] = 0
    tokenizer: str = ""

    @property
    def decoder(self) -> SampleDecoder:
        """What a sampler must know of it."""
        return SampleDecoder(kind=self.kind, range=self.range, rate=self.rate, tile=self.tile)


class CompanionTarget(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How companions are built; a part of a target.

    Attributes:
        backend: None takes the target's.
        precision: of weights and activations; decoders overflow in FP16.
        batch: how many prompts or samples an engine takes at a time.
    """

    backend: BackendName | None = None
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    batch: Annotated[int, Meta(ge=1)] = 4


class Companion(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A companion in a manifest: a graph of a bundle, or an engine of an engine set.

    Attributes:
        name: ``encoder-NAME``, or ``decoder``.
        file: file name.
        weights: name of the file in which its weights are.
        inputs: names of its inputs, in order: ``ids`` and perhaps ``mask``, or ``latents``.
        outputs: names of its outputs, in order: conditions, or ``decoded``.
        parameters: number of its weights.
        bytes: size of its weights.
        worst_error: largest |difference|, of a bundle's to the module in torch, of an engine
            set's to the bundle's.
        relative_error: largest |difference| over largest |output|.
    """

    name: PlainName
    file: PlainName
    weights: PlainName
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    bytes: int
    worst_error: float
    relative_error: float
