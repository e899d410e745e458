"""Companions of a network exported: traced to a graph each, and verified against torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from eecompile.arrays import AnyArray, Array, Inputs
from eecompile.compiler.companions import compared, decoder_points, encoder_points
from eecompile.compiler.convert import FourAxes, batch_first, converted, free_axes
from eecompile.compiler.graph.clean import clean
from eecompile.compiler.graph.masks import ExpandMasks
from eecompile.compiler.graph.numbering import NumberValues
from eecompile.compiler.progress import Report
from eecompile.compiler.prompts import check_belongs, write_decoder_tokenizer, write_tokenizer
from eecompile.compiler.sessions import run_session, session_from_graph
from eecompile.compiler.weights import WeightStore
from eecompile.errors import BackendError, EecompileError, RecipeError, TraceError, summary
from eecompile.interrupt import check
from eecompile.networks.companions import load_decoder, load_encoder
from eecompile.programs.companions import SampleDecoder
from eecompile.programs.interface import Interface, State
from eecompile.recipe import ExportRecipe
from eecompile.runtime.companions import put
from eecompile.store.companions import DECODER, IDS, LATENTS, Companion, encoder_name
from eecompile.store.target import Tolerance

_DECODED = "decoded"
_COLOURS = (1, 3, 4)
_DECODERS = 1e-3  # relative tolerance: their many layers add up, and pictures have eight bits


class _Positional(nn.Module):
    """A module in the form that the exporter takes: tensors in, a tuple of tensors out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for value in inputs:  # else each input's batch would be a size of its own
            torch._check(value.shape[0] == inputs[0].shape[0])  # type: ignore[no-untyped-call]
        with FourAxes():
            returned = self.module(*inputs)
        return returned if isinstance(returned, tuple) else (returned,)


class _Traced(NamedTuple):
    """A companion in torch, and what it is traced and verified with.

    Attributes:
        name: in the manifest.
        module: takes arrays of the points by position.
        points: inputs by name; the first, of a batch above one, is traced.
        outputs: names of its outputs.
        shapes: symbolic axes of each input.
        state: whose free axes these are, beside the batch.
    """

    name: str
    module: nn.Module
    points: Sequence[Inputs]
    outputs: tuple[str, ...]
    shapes: Mapping[str, dict[int, Any]]
    state: State

    def run(self, point: Inputs) -> list[Array]:
        """The module's outputs."""
        tensors = (torch.from_numpy(np.asarray(value)) for value in point.values())
        return [part.numpy() for part in self.module(*tensors)]


def export_companions(
    recipe: ExportRecipe, base: Path, folder: Path, interface: Interface, report: Report
) -> tuple[Companion, ...]:
    """Write the graph of each companion, verified against torch, and its tokenizer.

    Args:
        recipe: whose paths are relative to ``base``.
        base: folder of the recipe.
        folder: of the bundle.
        interface: of the network.
        report: told of each phase.

    Raises:
        EecompileError: a companion, its checkpoint or its tokenizer is at fault.
    """
    made = []
    taken = {name: np.zeros(each.shape, bool) for name, each in interface.conditions.items()}
    with torch.no_grad():
        for name in recipe.encoders:
            report(f"exporting encoder {name}")
            encoder = _encoder(name, recipe, base, folder)
            _check_places(name, encoder, interface, taken)
            made.append(_exported(encoder, folder, recipe.tolerance))
        if recipe.decoder is not None and interface.decoder is not None:
            report("exporting the decoder")
            state = interface.decoded_state
            points, shapes = decoder_points(state), batch_first([LATENTS])
            shapes[LATENTS] |= free_axes(state.resizable)
            module = _Positional(load_decoder(recipe.decoder, base))
            decoder = _Traced(DECODER, module, points, (_DECODED,), shapes, state)
            decoded = _check_decoder(decoder, interface.decoder)
            if interface.decoder.kind == "text":
                write_decoder_tokenizer(recipe.decoder, base, folder, decoded[-1])
            relative = max(recipe.tolerance.relative, _DECODERS)
            made.append(_exported(decoder, folder, replace(recipe.tolerance, relative=relative)))
    return tuple(made)


def _encoder(name: str, recipe: ExportRecipe, base: Path, folder: Path) -> _Traced:
    own = recipe.encoders[name]
    tokenizer = write_tokenizer(name, own, base, folder)
    module = load_encoder(name, own, base)
    check_belongs(name, tokenizer, module.module)
    points = encoder_points(tokenizer, module.inputs)
    return _Traced(
        encoder_name(name),
        _Positional(module),
        points,
        module.outputs,
        batch_first(module.inputs),
        State(shape=(own.length,)),
    )


def _check_places(
    name: str, encoder: _Traced, interface: Interface, taken: dict[str, AnyArray]
) -> None:
    """Pass when an encoder's outputs lie within their conditions, where no other's do."""
    one = encoder.points[1]
    found = dict(zip(encoder.outputs, _first_run(encoder, one), strict=True))
    for condition, given in interface.encoders[name].gives.items():
        value = found[condition] if condition in found else np.ones((1, one[IDS].shape[1]))
        if value.shape[1:2] == one[IDS].shape[1:]:  # without a template's own
            value = value[:, : interface.encoders[name].length]
        room = np.zeros((1, *interface.conditions[condition].shape), bool)
        place = given.at or (0,) * (value.ndim - 1)
        try:
            put(room, np.ones(value.shape, bool), place, f"{condition!r} of encoder {name!r}")
        except BackendError as error:
            raise RecipeError(
                found=error.found,
                expected=error.expected,
                remedy=f"fix conditions.{condition}.shape, or encoders.{name}.gives",
            ) from error
        if (room[0] & taken[condition]).any():
            raise RecipeError(
                found=f"encoder {name!r} of a part of {condition!r} that another gives, too",
                expected="a place of its own for each",
                remedy=f"set encoders.{name}.gives.{condition}.at",
            )
        taken[condition] = room[0] | taken[condition]


def _check_decoder(decoder: _Traced, kind: SampleDecoder) -> tuple[int, ...]:
    """The shape of what a decoder gives of the samples of the network, if it is its kind's."""
    point = decoder.points[1]
    (found,) = _first_run(decoder, point)
    axes = kind.axes
    coloured = kind.kind in ("image", "video")
    colours = not coloured or (found.ndim > 1 and found.shape[1] in _COLOURS)
    if found.ndim != axes + 1 or not colours:
        raise TraceError(
            found=f"a decoder that gives {list(found.shape[1:])} of {list(point[LATENTS].shape)}",
            expected=f"{kind.kind}s: {axes} axes, "
            + ("the scores of all tokens last" if kind.kind == "text" else "channels first")
            + (f", {' or '.join(map(str, _COLOURS))} of them" if coloured else ""),
            remedy="fix decoder.kind, decoder.axes, or state.shape",
        )
    sides, lengths = found.shape[-kind.tiled :], point[LATENTS].shape[-kind.tiled :]
    factors = {divmod(side, length) for side, length in zip(sides, lengths, strict=True)}
    if kind.tile and (len(factors) > 1 or factors.pop()[1]):
        raise TraceError(
            found=f"a decoder that gives tiles of {list(sides)} of tiles of {list(lengths)}",
            expected="each side a multiple of the tile's, the same one",
            remedy="leave decoder.tile out",
        )
    return found.shape


def _first_run(traced: _Traced, point: Inputs) -> list[Array]:
    """What a module gives, which runs for the first time."""
    try:
        return traced.run(point)
    except EecompileError:
        raise
    except (Exception, SystemExit) as error:  # the module's own
        check()
        given = ", ".join(f"{name} {list(value.shape)}" for name, value in point.items())
        remedies = {
            True: "give the decoder of this network's samples: its channels are those of "
            "state.shape, in the order that decoder.axes says",
            False: "check the encoder's arguments, constants and length against its forward",
        }
        raise TraceError(
            found=f"{traced.name} that fails on {given} ({summary(error)})",
            expected="a module that takes these",
            remedy=remedies[traced.name == DECODER],
        ) from error


def _exported(traced: _Traced, folder: Path, tolerance: Tolerance) -> Companion:
    """Write the graph and the weights of a companion, and compare it with torch."""
    first, name = traced.points[0], traced.name
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in first.items()}
    if not traced.outputs:  # a tokenizer's mask alone
        raise RecipeError(
            found=f"{name}, whose only output is the mask",
            expected="an encoder that gives something of its own",
            remedy="leave it out, and give the mask by another encoder",
        )
    try:
        free = traced.state.resizable
        found = converted(traced.module, tensors, traced.shapes, traced.outputs, free, name)
    except TraceError as error:
        raise TraceError(
            found=f"{name}: {error.found}", expected=error.expected, remedy=error.remedy
        ) from error
    model = found.model
    clean(model)
    ExpandMasks()(model)
    NumberValues()(model)
    inputs = tuple(str(value.name) for value in model.graph.inputs)
    fixed = [v.name for v in model.graph.inputs if v.shape is None or isinstance(v.shape[0], int)]
    if inputs != tuple(first) or fixed:
        raise TraceError(
            found=f"{name} with inputs {list(inputs)}, of a fixed batch {fixed}",
            expected=f"inputs {list(first)} of any batch size",
            remedy="derive sizes in the module's forward from its inputs",
        )
    store = WeightStore(f"{name}.safetensors")
    store.add(model)
    graph = f"{name}.onnx"
    store.save(folder, {graph: model})
    session = session_from_graph(folder / graph)
    apart = compared(
        traced.points,
        traced.run,
        lambda point: run_session(session, point, traced.outputs),
        tolerance,
        f"{name} in ONNX Runtime against torch",
    )
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value]
    return Companion(
        name=name,
        file=graph,
        weights=store.file,
        inputs=inputs,
        outputs=traced.outputs,
        parameters=sum(weight.size for weight in weights),
        bytes=sum(weight.nbytes for weight in weights),
        worst_error=apart.worst,
        relative_error=apart.relative,
    )
