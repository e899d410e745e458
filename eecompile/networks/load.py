"""Make a recipe's network and load its checkpoint."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eecompile.errors import CheckpointError, EecompileError, RecipeError
from eecompile.networks.base import MultiExitNetwork
from eecompile.recipe import NetworkRecipe

__all__ = ["checkpoint_digest", "load_network"]


def load_network(recipe: NetworkRecipe, folder: Path) -> MultiExitNetwork:
    """The network in float32, in evaluation mode, with its trained weights.

    Args:
        recipe: its factory, options, exits and checkpoint.
        folder: the recipe's, to which the checkpoint is relative.

    Raises:
        RecipeError: the factory cannot be found, or refuses its options.
        CheckpointError: the checkpoint is missing, unreadable, or does not fit.
    """
    network = _make(recipe)
    path = folder / recipe.checkpoint
    _fill(network, _read(path), path)
    made = network.float().eval()
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made  # type: ignore[return-value]


def checkpoint_digest(recipe: NetworkRecipe, folder: Path) -> str:
    """SHA-256 of the checkpoint file, in hex."""
    with (folder / recipe.checkpoint).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(recipe: NetworkRecipe) -> nn.Module:
    module_name, _, name = recipe.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            found=f"network.factory = {recipe.factory!r} ({error})",
            expected="package.module:callable",
            remedy="install the package, or mend the name",
        ) from error
    try:
        network = factory(exits=recipe.exits, **recipe.options)
    except EecompileError:
        raise
    except Exception as error:  # the factory is the user's
        raise RecipeError(
            found=f"{recipe.factory} refusing its options ({type(error).__name__}: {error})",
            expected="options that the factory takes",
            remedy="mend [network.options]",
        ) from error
    if not isinstance(network, nn.Module) or getattr(network, "exits", None) != recipe.exits:
        raise RecipeError(
            found=f"a {type(network).__name__} from {recipe.factory}",
            expected=f"a torch module whose attribute exits is {recipe.exits}",
            remedy="see eecompile.networks.base.MultiExitNetwork",
        )
    return network


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            found=f"no checkpoint at {path}",
            expected="the file that network.checkpoint names, relative to the recipe",
            remedy="mend the path, or train the network first",
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # pickle.UnpicklingError and its kin
        raise _unreadable(path, error) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            found=f"{path}, which holds no plain dictionary of tensors",
            expected="a state_dict",
            remedy="save network.state_dict(), as safetensors or with torch.save",
        )
    return state


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    lines = str(error).splitlines() or [type(error).__name__]
    return CheckpointError(
        found=f"{path}, which cannot be read ({lines[0]})",
        expected="safetensors, or torch.save of tensors only",
        remedy="check that the file is whole; convert pickles with other objects to safetensors",
    )


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = network.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unknown": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
    }
    if any(problems.values()):
        parts = (
            f"{len(names)} {what} ({_few(names)})" for what, names in problems.items() if names
        )
        raise CheckpointError(
            found=f"a checkpoint whose keys do not fit at {path}: {'; '.join(parts)}",
            expected=f"the network's {len(wanted)} keys",
            remedy="check the recipe's factory, options and exits against the checkpoint",
        )
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            found=f"NaN or infinity in {len(broken)} tensors of {path} ({_few(broken)})",
            expected="finite weights",
            remedy="use a checkpoint from before the training diverged",
        )
    network.load_state_dict(dict(state))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
