"""Companions: networks that run once a sampling, before it on prompts, or after it on samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from eecompile.decoding import PlainName

MASK = "mask"
"""An output that is the tokenizer's own: 1 for tokens, 0 for padding."""
LONGEST = 1 << 16  # tokens
DecodedKind = Literal["image", "video", "audio", "text"]
LEAST_TILE = 4  # of which a quarter overlaps
PLACE = "{}"
"""Where a prompt goes in a template."""


class Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an encoder gives of a condition.

    Attributes:
        output: within what its module returns: ``last_hidden_state``, ``hidden_states.-2``,
            ``text_embeds``; ``mask`` is 1 for the tokens of the prompt, and 0 for padding.
        at: place of its first number within the condition; () for the beginning. A condition is
            0 where no encoder gives anything.
    """

    output: Annotated[str, Meta(pattern=r"^[A-Za-z_]\w*(\.-?\w+)*\Z", max_length=100)]
    at: tuple[Annotated[int, Meta(ge=0)], ...] = ()


class PromptEncoder(msgspec.Struct, frozen=True, kw_only=True):
    """How prompts become conditions.

    Attributes:
        length: tokens of every prompt; what is longer is cut, what is shorter padded.
        gives: by condition, what the encoder gives of it.
        lower: whether prompts are first written in small letters, without spaces at their ends.
        template: the text that the encoder reads of a prompt, which takes the place of ``{}``.
        negative_template: likewise of a negative prompt.
        drop_template: whether outputs leave out the tokens of a template before the prompt; the
            encoder then takes so many more.
    """

    length: Annotated[int, Meta(ge=1, le=LONGEST)]
    gives: dict[str, Given]
    lower: bool = False
    template: str = PLACE
    negative_template: str = PLACE
    drop_template: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Conditions to which its engine's outputs belong, in their order."""
        return tuple(name for name, given in self.gives.items() if given.output != MASK)

    def template_of(self, *, negative: bool) -> str:
        """The template of a prompt, or of a negative one."""
        return self.negative_template if negative else self.template


class SampleDecoder(msgspec.Struct, frozen=True, kw_only=True):
    """What samples become.

    Attributes:
        kind: ``image`` [channels, H, W], ``video`` [channels, frames, H, W], ``audio``
            [channels, values], or ``text`` [length, tokens]: a score for each token.
        range: of the values; those beyond are clipped where they are shown or written.
        rate: frames of a video, or values of a waveform, a second.
        tile: length of the last axes that its engine takes, two of them, or one of audio; longer
            samples are decoded in overlapping tiles. 0 for whole samples.
    """

    kind: DecodedKind = "image"
    range: tuple[float, float] = (-1.0, 1.0)
    rate: float = 0.0
    tile: Annotated[int, Meta(ge=0)] = 0

    @property
    def axes(self) -> int:
        """The number of a decoded sample's axes."""
        return {"image": 3, "video": 4, "audio": 2, "text": 2}[self.kind]

    @property
    def tiled(self) -> int:
        """The number of its last axes that may be divided into tiles."""
        return 1 if self.kind == "audio" else 2


PromptEncoders = Mapping[PlainName, PromptEncoder]


class _Condition(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def companion_problems(
    encoders: PromptEncoders,
    decoder: SampleDecoder | None,
    conditions: Mapping[str, _Condition],
    shortest: Sequence[int],
) -> Iterator[str]:
    """What cannot be of companions, in a few words each; samples are at least so long."""
    for name, encoder in encoders.items():
        if not encoder.gives:
            yield f"encoder {name!r}, which gives no condition"
        for template in (encoder.template, encoder.negative_template):
            if template.count(PLACE) != 1:
                yield f"encoder {name!r} of the template {template!r}, without one {PLACE}"
        for condition, given in encoder.gives.items():
            if condition not in conditions:
                yield f"encoder {name!r} of the unknown condition {condition!r}"
                continue
            shape = conditions[condition].shape
            place = given.at or (0,) * len(shape)
            inside = len(place) == len(shape) and all(
                a < n for a, n in zip(place, shape, strict=True)
            )
            if not inside:
                yield f"encoder {name!r} at {list(given.at)} of {condition!r}, {list(shape)}"
    if decoder is not None:
        low, high = decoder.range
        if not low < high or not 0 <= decoder.rate < 1e9:
            yield f"a decoder of the range {[low, high]} and the rate {decoder.rate:g}"
        if decoder.kind in ("video", "audio") and not decoder.rate:
            yield f"a decoder of {decoder.kind} without a rate"
        if decoder.tile:
            fits = len(shortest) == decoder.axes and decoder.kind != "text"
            sides = shortest[-decoder.tiled :] if fits else (0,)
            if not LEAST_TILE <= decoder.tile <= min(sides):
                yield f"a decoder of tiles of {decoder.tile} for samples of {list(shortest)}"
