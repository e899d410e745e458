"""The companions of an engine set at work: prompts become conditions, and samples are decoded."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import msgspec
import numpy as np

from eecompile.arrays import AnyArray, Array, Inputs
from eecompile.backends import BACKENDS
from eecompile.errors import BackendError, ConditionError, NonFiniteError, UsageError
from eecompile.handle import Handle
from eecompile.programs.companions import LEAST_TILE, MASK, PromptEncoder
from eecompile.programs.interface import Interface
from eecompile.runtime.prompts import PromptTokenizer, Tokens, opened_tokenizer, prompts_of
from eecompile.runtime.protocol import CompanionEngine
from eecompile.runtime.request import SampleRequest, guidance_scales
from eecompile.runtime.tiles import decoded_in_tiles
from eecompile.store.companions import (
    DECODER,
    DECODER_TOKENIZER,
    IDS,
    LATENTS,
    Companion,
    encoder_name,
)
from eecompile.store.manifest import EngineManifest
from eecompile.store.target import Target

_KEPT = 64  # prompts whose embeddings are kept


class Companions(Handle):
    """The encoders and the decoder of an engine set, each opened when it is first needed.

    May be used from several threads: one encodes at a time, and beside it another decodes.

    Args:
        folder: of the engine set, whose files have been checked.
        manifest: of the engine set.
        threads: see :meth:`eecompile.runtime.sampler.Sampler.open`.
    """

    def __init__(self, folder: Path, manifest: EngineManifest, threads: int | None = None) -> None:
        self.interface = manifest.interface
        self._folder, self._target = folder, manifest.target
        self._threads = manifest.target.threads if threads is None else threads
        self._known = {companion.name: companion for companion in manifest.companions}
        self._engines: dict[str, CompanionEngine] = {}
        self._tokenizers: dict[str, PromptTokenizer] = {}
        self._words: Any = None
        self._kept: OrderedDict[tuple[bool, str], dict[str, AnyArray]] = OrderedDict()
        self._lock, self._decoding = Lock(), Lock()
        self._at_once = manifest.target.companions.batch  # samples that are decoded together

    def encoded(self, prompts: Sequence[str], *, negative: bool = False) -> dict[str, AnyArray]:
        """The conditions that stand for prompts, by name, each [len(prompts), *shape].

        Those of the last prompts are kept. Encoders may read negative prompts otherwise.

        Raises:
            BackendError: an encoder's package is missing, or its engine fails.
            NonFiniteError: an encoder gives NaN or infinity.
        """
        encoders = self.interface.encoders.values()
        negative = negative and any(e.template != e.negative_template for e in encoders)
        with self._lock:
            new = [text for text in dict.fromkeys(prompts) if (negative, text) not in self._kept]
            size = self._target.companions.batch
            for start in range(0, len(new), size):
                self._encode(new[start : start + size], negative=negative)
            found = [self._kept[negative, text] for text in prompts]
            for text in prompts:
                self._kept.move_to_end((negative, text))
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return {name: np.stack([each[name] for each in found]) for name in found[0]}

    def decoded(self, samples: Array, tile: int | None = None) -> Array:
        """What samples, float32 [n, *shape], are decoded to, a few at a time.

        Args:
            samples: the samples.
            tile: see :meth:`eecompile.runtime.sampler.Sampler.decode`.

        Raises:
            UsageError: the decoder takes no such tiles.
            BackendError: the decoder's package is missing, or its engine fails.
            NonFiniteError: the decoder gives NaN or infinity.
        """
        side, decoder = checked_tile(self.interface, tile), self.interface.decoder
        with self._decoding:
            if decoder is None or not side or max(samples.shape[-decoder.tiled :]) <= side:
                found = self._decode(samples)
            else:
                size = self._target.companions.batch
                found = decoded_in_tiles(self._decode, samples, side, decoder.tiled, size)
        _check_finite(found, DECODER, self._target)
        return found

    def _decode(self, latents: Array) -> Array:
        """A few at a time; fewer from then on, where there is no memory for as many."""
        engine, parts, start, size = self._engine(DECODER), [], 0, self._at_once
        while start < len(latents):
            part = np.ascontiguousarray(latents[start : start + size])
            try:
                parts.append(engine.run({LATENTS: part})[0])
            except BackendError:
                if len(part) == 1:
                    raise
                size = len(part) // 2
                continue
            self._at_once = size  # that it failed before was for want of memory
            start += len(part)
        return np.concatenate(parts)

    def texts(self, decoded: Array) -> list[str]:
        """See :meth:`eecompile.runtime.sampler.Sampler.texts`."""
        with self._decoding:
            if self._words is None:
                self._words = opened_tokenizer(self._folder / DECODER_TOKENIZER)
        ids = np.argmax(decoded, axis=-1)
        texts: list[str] = self._words.decode_batch(ids.tolist())
        return texts

    def close(self) -> None:
        """Release the engines."""
        with self._lock, self._decoding:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()

    def open_all(self) -> None:
        """Open what is otherwise opened when it is first needed."""
        with self._lock, self._decoding:
            for name in self._known:
                self._engine(name)

    def _encode(self, prompts: Sequence[str], *, negative: bool) -> None:
        conditions = {
            name: np.zeros((len(prompts), *self.interface.conditions[name].shape), np.float32)
            for name in self.interface.prompted
        }
        for name, encoder in self.interface.encoders.items():
            if name not in self._tokenizers:
                self._tokenizers[name] = PromptTokenizer(self._folder, name, encoder)
            tokenizer = self._tokenizers[name]
            tokens = [tokenizer.tokens(text, negative=negative) for text in prompts]
            whole = Tokens(*(np.stack(each) for each in zip(*tokens, strict=True)))
            outputs = self._outputs(name, encoder, {IDS: whole.ids, MASK: whole.mask})
            kept = tokenizer.kept(negative=negative)
            for condition, given in encoder.gives.items():
                value = whole.mask if given.output == MASK else outputs[condition]
                if encoder.drop_template and value.shape[1:2] == whole.mask.shape[1:]:
                    value = value[:, kept]
                place = given.at or (0,) * (value.ndim - 1)
                put(conditions[condition], value, place, f"{condition!r} of encoder {name!r}")
        for row, text in enumerate(prompts):
            self._kept[negative, text] = {
                name: value[row].astype(self.interface.conditions[name].dtype)
                for name, value in conditions.items()
            }

    def _outputs(self, name: str, encoder: PromptEncoder, inputs: Inputs) -> dict[str, Array]:
        if not encoder.outputs:
            return {}
        found = self._engine(encoder_name(name)).run(inputs)
        for output in found:
            _check_finite(output, f"encoder {name!r}", self._target)
        return dict(zip(encoder.outputs, found, strict=True))

    def _engine(self, name: str) -> CompanionEngine:
        if name not in self._engines:
            engine = open_companion(self._folder, self._known[name], self._target, self._threads)
            self._engines[name] = engine
        return self._engines[name]


def open_companion(
    folder: Path, companion: Companion, target: Target, threads: int
) -> CompanionEngine:
    """The engine of a companion of an engine set for ``target``, whose files have been checked.

    Raises:
        BackendError: the backend has no companions, is missing, or refuses the engine.
    """
    own = target.for_companions
    backend = BACKENDS[own.backend]
    if not backend.companions:
        raise BackendError(
            found=f"companions for {own.backend}",
            expected=f"one of {', '.join(n for n, each in BACKENDS.items() if each.companions)}",
            remedy="build the bundle again",
        )
    module = importlib.import_module(backend.run)
    engine: CompanionEngine = module.open_companion(folder, companion, own, threads)
    return engine


class Encoding(Protocol):
    """What makes conditions of prompts."""

    def encoded(self, prompts: Sequence[str], *, negative: bool = False) -> dict[str, AnyArray]:
        """See :meth:`Companions.encoded`."""
        ...


class NotEncoded:
    """Gives zeros, or the least of a range, for prompts: a request is checked before they are."""

    def __init__(self, interface: Interface) -> None:
        self._interface = interface

    def encoded(self, prompts: Sequence[str], *, negative: bool = False) -> dict[str, AnyArray]:
        """See :meth:`Companions.encoded`."""
        known = {name: self._interface.conditions[name] for name in self._interface.prompted}
        return {
            name: np.broadcast_to(
                np.array(each.range[0] if each.range else 0, each.dtype),
                (len(prompts), *each.shape),
            )
            for name, each in known.items()
        }


def put(into: AnyArray, value: AnyArray, place: Sequence[int], what: str) -> None:
    """Write an output [B, ...] into a batch of conditions, at that place of each.

    Raises:
        BackendError: it reaches beyond the condition, or has other axes.
    """
    lengths = value.shape[1:]
    ends = [start + length for start, length in zip(place, lengths, strict=False)]
    fits = len(place) == len(lengths) == into.ndim - 1
    if not fits or any(end > length for end, length in zip(ends, into.shape[1:], strict=False)):
        raise BackendError(
            found=f"{what} of shape {list(lengths)} at {list(place)}",
            expected=f"a part of the condition, {list(into.shape[1:])}",
            remedy="fix its shape, or at, in the recipe, and export again",
        )
    parts = (slice(start, end) for start, end in zip(place, ends, strict=True))
    into[(slice(None), *parts)] = value


def prompted(
    request: SampleRequest,
    interface: Interface,
    companions: Encoding | None,
    prompt: str | Sequence[str] | None = None,
    negative: str | Sequence[str] | None = None,
) -> SampleRequest:
    """A request with the conditions that stand for prompts, and nulls for negative ones.

    Where samples are guided, and neither the request nor the recipe says what stands for "no
    condition", the empty prompt does; what is given beside prompts, such as a size, stays.

    Raises:
        UsageError: the network has no encoder, or what prompts give is given otherwise, too.
        ConditionError: a prompt is missing.
    """
    if companions is None or not interface.encoders:
        if prompt is None and negative is None:
            return request
        raise UsageError(
            found=f"a prompt for {interface.name}, which has no encoder",
            expected="a network with an encoder, whose recipe has [encoders]"
            + (f"; or the conditions {sorted(interface.conditions)}" * bool(interface.conditions)),
            remedy="pass the conditions themselves, or add [encoders] to the recipe, export and "
            "build again",
        )
    made = interface.prompted
    known, conditions, nulls = interface.conditions, dict(request.conditions), dict(request.nulls)
    if prompt is not None:
        _check_apart(set(conditions) & made, "prompt")
        conditions |= _one_or_each(companions.encoded(prompts_of(prompt)))
    lost = [n for n in sorted(made - set(conditions)) if known[n].default is None]
    if lost:
        raise ConditionError(
            found=f"no prompt, and no condition {lost[0]!r}",
            expected="a prompt, or the conditions that it stands for",
            remedy="pass prompt=...",
        )
    if negative is not None:
        _check_apart(set(nulls) & made, "negative")
    needed = {n for n in made - set(nulls) if negative is not None or known[n].null is None}
    if (guidance_scales(interface, request.guidance, request.n) != 1).any():
        if needed:
            texts = prompts_of("" if negative is None else negative, "negative")
            found = companions.encoded(texts, negative=True)
            nulls |= _one_or_each({name: found[name] for name in needed})
        for name in set(known) - made - set(nulls):
            spec = known[name]
            if spec.null is None and name in conditions:
                nulls[name] = conditions[name]
            elif spec.null is None and isinstance(spec.default, int | float):
                nulls[name] = np.array(spec.default, spec.dtype)
    return msgspec.structs.replace(request, conditions=conditions, nulls=nulls)


def _one_or_each(found: dict[str, AnyArray]) -> dict[str, AnyArray]:
    return {name: value[0] if len(value) == 1 else value for name, value in found.items()}


def _check_apart(twice: set[str], what: str) -> None:
    if twice:
        raise UsageError(
            found=f"{what}=... beside {sorted(twice)}, which it stands for",
            expected="one of them",
            remedy="leave either out",
        )


def decoding(interface: Interface, companions: Companions | None) -> Companions:
    """The companions of a network that has a decoder.

    Raises:
        UsageError: it has none.
    """
    check_decoder(interface)
    if companions is None:  # of a sampler without engine sets
        raise _no_decoder(interface)
    return companions


def check_decoder(interface: Interface) -> None:
    """Whether samples can be decoded.

    Raises:
        UsageError: the network has no decoder.
    """
    if interface.decoder is None:
        raise _no_decoder(interface)


def _no_decoder(interface: Interface) -> UsageError:
    return UsageError(
        found=f"samples of {interface.name} to decode",
        expected="a network with a decoder",
        remedy="take the samples as they are, or add [decoder] to the recipe, export and build "
        "again",
    )


def checked_tile(interface: Interface, tile: int | None) -> int:
    """The length of tiles in which samples are decoded; 0 where they are not divided.

    Raises:
        UsageError: the decoder takes no such tiles.
    """
    decoder, free = interface.decoder, interface.state.resizable
    if decoder is None or tile is None or tile == decoder.tile:
        return 0 if decoder is None else decoder.tile
    shape = interface.state.shape
    whole = f"tiles of {decoder.tile}" if decoder.tile else "whole samples"
    expected, fits = f"{whole}, for which it was exported", False
    remedy = "leave it out, or set decoder.tile in the recipe, export and build again"
    axes = set(range(len(shape))[-decoder.tiled :])
    if free and not decoder.tile and len(shape) == decoder.axes and axes <= set(free.axes):
        least = max(LEAST_TILE, free.min)
        expected = f"{least} to {free.max}, in multiples of {free.multiple}"
        fits = least <= tile <= free.max and tile % free.multiple == 0
        remedy = "choose such a length"
    if not fits:
        raise UsageError(
            found=f"tiles of {tile} for the decoder of {interface.name}",
            expected=expected,
            remedy=remedy,
        )
    return tile


def _check_finite(found: Array, what: str, target: Target) -> None:
    if not np.isfinite(found).all():
        raise NonFiniteError(
            found=f"NaN or infinity from {what} in {target.companions.precision}",
            expected="finite values",
            remedy="set precision = 'fp32' in the target's [companions]",
        )
