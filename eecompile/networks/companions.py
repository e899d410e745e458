"""Encoders and decoders as torch modules that take and give tensors, by the recipe's names."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from eecompile.errors import CheckpointError, EecompileError, RecipeError, summary
from eecompile.interrupt import check
from eecompile.networks.call import Call, constants_from_recipe
from eecompile.networks.load import factory_named, filled
from eecompile.networks.truncated import prediction_in
from eecompile.programs.companions import MASK
from eecompile.store.companions import IDS, CompanionRecipe, DecoderRecipe, EncoderRecipe
from eecompile.store.files import is_folder

_WEIGHTS = ("*.safetensors", "*.bin")


@runtime_checkable
class Pretrained(Protocol):
    """A class that reads the folders that its ``save_pretrained`` writes."""

    def from_pretrained(self, folder: Any, **options: Any) -> Any:
        """The module in a folder."""
        ...


class EncoderModule(nn.Module):
    """An encoder that takes ``ids``, and ``mask`` where the recipe names it.

    Args:
        module: takes tokens, int64 [B, length], and perhaps which of them are no padding.
        recipe: of the encoder.
        call: the arguments of the module.

    Attributes:
        inputs: names of the inputs, in order.
        outputs: conditions to which the outputs belong, in order.
    """

    def __init__(self, module: nn.Module, recipe: EncoderRecipe, call: Call) -> None:
        super().__init__()
        self.module, self.call = module, call
        told = MASK in recipe.arguments
        self.inputs = (IDS, MASK) if told or recipe.zero_padding else (IDS,)
        self.outputs = recipe.encoder.outputs
        self._paths = [recipe.gives[name].output for name in self.outputs]
        self._told, self._zero = told, recipe.zero_padding

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """The outputs, float32, each with the batch first.

        Args:
            ids: tokens, int64 [B, length].
            mask: 1 for tokens, 0 for padding, int64 [B, length].
        """
        given = {IDS: ids, MASK: mask} if self._told and mask is not None else {IDS: ids}
        returned = self.module(**self.call(**given))
        found = [_entry(returned, path) for path in self._paths]
        if self._zero and mask is not None:
            found = [each * mask[..., None] if each.ndim == 3 else each for each in found]
        return tuple(found)


class DecoderModule(nn.Module):
    """A decoder of samples as they are sampled.

    Args:
        module: whose method ``recipe.method`` decodes.
        recipe: of the decoder.
        constants: further arguments.
    """

    def __init__(
        self, module: nn.Module, recipe: DecoderRecipe, constants: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.module, self.method, self.axes = module, recipe.method, recipe.axes
        self.constants = dict(constants)
        self.register_buffer("scaling", torch.tensor(recipe.scaling), persistent=False)
        self.register_buffer("shift", torch.tensor(recipe.shift), persistent=False)
        getattr(module, self.method)  # fails now, where it is not there

    def forward(self, latents: Tensor) -> Tensor:
        """What the samples stand for.

        Args:
            latents: samples, float32 [B, *shape].
        """
        if self.axes:
            latents = latents.permute(0, *(axis + 1 for axis in self.axes))
        ones = [1] * (latents.ndim - 2)  # after the batch and the channels
        scaling, shift = (
            each.reshape(-1, *ones) if each.ndim else each
            for each in (self.get_buffer("scaling"), self.get_buffer("shift"))
        )
        returned = getattr(self.module, self.method)(latents / scaling + shift, **self.constants)
        return prediction_in(returned)


def load_encoder(name: str, recipe: EncoderRecipe, folder: Path) -> EncoderModule:
    """The encoder in float32, in evaluation mode, with its trained weights.

    Paths are relative to ``folder``, in which the factory's module is found too.

    Raises:
        RecipeError: the factory cannot be found, or refuses its options.
        CheckpointError: the checkpoint is missing, unreadable, or of another module.
    """
    place = f"encoders.{name}"
    module, constants = _loaded(place, recipe, folder)
    hidden = any(given.output.startswith("hidden_states") for given in recipe.gives.values())
    if hidden:
        constants = {"output_hidden_states": True, **constants}
    return EncoderModule(
        module, recipe, Call({str(k): v for k, v in recipe.arguments.items()}, constants)
    ).eval()


def load_decoder(recipe: DecoderRecipe, folder: Path) -> DecoderModule:
    """The decoder; see :func:`load_encoder`."""
    module, constants = _loaded("decoder", recipe, folder)
    try:
        return DecoderModule(module, recipe, constants).eval()
    except AttributeError as error:
        raise RecipeError(
            found=f"decoder.method = {recipe.method!r} of a {type(module).__name__}",
            expected="a method that decodes samples",
            remedy="name it, or 'forward'",
        ) from error


def companion_files(recipe: CompanionRecipe, folder: Path) -> list[Path]:
    """The files that a companion's checkpoint consists of."""
    path = folder / recipe.checkpoint
    if not is_folder(path):
        return [path]
    weights = [file for pattern in _WEIGHTS for file in sorted(path.glob(pattern))]
    return [*sorted(path.glob("*.json")), *weights]


def _loaded(place: str, recipe: CompanionRecipe, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    find = partial(factory_named, folder=folder)
    try:
        factory = find(recipe.factory)
        constants = constants_from_recipe(recipe.constants, find)
    except RecipeError as error:
        raise _of(place, error) from error
    path = folder / recipe.checkpoint
    if is_folder(path):
        module = _pretrained(place, factory, recipe, path)
    else:
        module = filled(partial(_made, place, factory, recipe), path)
    module.float().eval().requires_grad_(False)
    return _traceable(module), constants


def _of(place: str, error: EecompileError) -> RecipeError:
    return RecipeError(
        found=error.found.replace("network.", f"{place}."),
        expected=error.expected,
        remedy=error.remedy.replace("network.", f"{place}."),
    )


def _made(place: str, factory: Callable[..., Any], recipe: CompanionRecipe) -> nn.Module:
    try:
        module = factory(**recipe.options)
    except (Exception, SystemExit) as error:  # the factory is the user's
        check()
        raise RecipeError(
            found=f"{recipe.factory} failing ({summary(error)})",
            expected=f"a module from the arguments {sorted(recipe.options)}",
            remedy=f"fix [{place}.options], or name the folder that save_pretrained wrote in "
            f"{place}.checkpoint",
        ) from error
    return _checked(place, module, recipe)


def _checked(place: str, module: Any, recipe: CompanionRecipe) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise RecipeError(
            found=f"a {type(module).__name__} from {recipe.factory}",
            expected=f"a torch module, for {place}",
            remedy=f"name a class of modules in {place}.factory",
        )
    return module


def _pretrained(
    place: str, factory: Callable[..., Any], recipe: CompanionRecipe, path: Path
) -> nn.Module:
    """The module that a library's own reader finds in a folder, if all of its weights are there."""
    if not isinstance(factory, Pretrained):
        raise RecipeError(
            found=f"{place}.checkpoint = {recipe.checkpoint!r}, a folder, for {recipe.factory}",
            expected="a class with from_pretrained",
            remedy="name the file of its weights, and its [options]",
        )
    try:
        with _silent():
            module, told = factory.from_pretrained(
                path, local_files_only=True, output_loading_info=True, **recipe.options
            )
    except (Exception, SystemExit) as error:  # libraries' errors share no base class
        check()
        raise CheckpointError(
            found=f"{path}, which {recipe.factory} does not read ({summary(error)})",
            expected="the folder that save_pretrained wrote, whole, for this class",
            remedy=f"copy or download it again, or fix {place}.factory",
        ) from error
    lost = sorted(map(str, {*told["missing_keys"], *told["mismatched_keys"]}))
    if lost:
        raise CheckpointError(
            found=f"{path}, weights of another module than {recipe.factory}: {len(lost)} are "
            f"missing or of another shape ({', '.join(lost[:3])})",
            expected="every weight of the module",
            remedy=f"fix {place}.factory or {place}.checkpoint",
        )
    return _checked(place, module, recipe)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the libraries' warnings, bars and log lines."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _traceable(module: nn.Module) -> nn.Module:
    """The module with attention that the exporter converts.

    Of transformers' own variants (5.x), that of torch's operator is traced to a view that does
    not fit its strides.
    """
    try:
        from transformers import PreTrainedModel
    except ImportError:
        return module
    if isinstance(module, PreTrainedModel):
        module.set_attn_implementation("eager")
    return module


def _entry(returned: Any, path: str) -> Tensor:
    """An entry of what a module returns: of its attributes, keys and indices in turn."""
    value = returned
    for part in path.split("."):
        try:
            if part.lstrip("-").isdecimal():
                value = value[int(part)]
            elif isinstance(value, Mapping):
                value = value[part]
            else:
                value = getattr(value, part)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            known = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise RecipeError(
                found=f"output = {path!r} of an encoder that returns {known}",
                expected="an entry of it, such as last_hidden_state",
                remedy="name it in the encoder's gives",
            ) from error
    if not isinstance(value, Tensor):
        raise RecipeError(
            found=f"output = {path!r} of an encoder, which is a {type(value).__name__}",
            expected="a tensor",
            remedy="name one, such as hidden_states.-2, in the encoder's gives",
        )
    return value
