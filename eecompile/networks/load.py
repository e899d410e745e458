"""Make a recipe's network and load its checkpoint."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from eecompile.errors import CheckpointError, EecompileError, RecipeError, summary
from eecompile.interrupt import check
from eecompile.networks.base import MultiExitNetwork
from eecompile.networks.call import Call, constants_from_recipe, give_a_tuple
from eecompile.networks.checkpoint import check_file, state_from_file
from eecompile.networks.naming import named_as
from eecompile.networks.quantised import dequantised
from eecompile.networks.truncated import Renamed, Truncated
from eecompile.recipe import NULL, NetworkRecipe

_FOLDERS: set[str] = set()  # in which factories were looked for


def load_network(recipe: NetworkRecipe, folder: Path) -> MultiExitNetwork:
    """The network in float32, in evaluation mode, with its trained weights.

    The checkpoint is relative to ``folder``, in which the factory's module is found too.

    Raises:
        RecipeError: the factory cannot be found, refuses its options, or makes
            something else than a network.
        CheckpointError: the checkpoint is missing, unreadable, or does not fit.
    """
    assert recipe.factory, "a recipe with files has no torch network"
    assert recipe.checkpoint
    paths = [folder / place for place in (recipe.checkpoint, *recipe.more_checkpoints)]
    for path in paths:
        check_file(path)  # before a large network is made for nothing
    make = partial(_make, factory_named(recipe.factory, folder), recipe)
    network = filled(make, *paths, key=recipe.checkpoint_key)
    network.float().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    constants = constants_from_recipe(recipe.constants, partial(factory_named, folder=folder))
    call = Call(recipe.arguments, constants, recipe.dtypes)
    if recipe.blocks is not None:
        return Truncated(network, exits=recipe.exits, blocks=recipe.blocks, call=call).eval()
    give_a_tuple(network, recipe.exits)
    multi_exit = cast("MultiExitNetwork", network)
    return multi_exit if call.plain else Renamed(multi_exit, call).eval()


def filled(
    make: Callable[[], nn.Module], path: Path, *more: Path, key: str | None = None
) -> nn.Module:
    """The module that ``make`` makes, with the entry or the prefix ``key`` of a checkpoint.

    The weights in ``more`` are added to those in ``path``.

    Raises:
        CheckpointError: the checkpoint is missing, unreadable, or does not fit.
    """
    check_file(path)
    planned, whole = _planned(make)
    prefix = key if key and key.endswith(".") else None
    state = dequantised(state_from_file(path, None if prefix else key))
    for other in more:
        state = {**state, **dequantised(state_from_file(other))}
    _check_size(planned, state, path)
    network = planned if whole else make()
    _fill(network, named_as(_wanted(network), state, prefix), path)
    return network


def made(recipe: NetworkRecipe, folder: Path) -> nn.Module:
    """The network as its factory, found in ``folder`` too, makes it: without trained weights.

    Raises:
        RecipeError: the factory cannot be found, or refuses its options.
    """
    return _make(factory_named(str(recipe.factory), folder), recipe)


def factory_named(name: str, folder: Path) -> Callable[..., Any]:
    """What ``package.module:callable`` names; modules in ``folder`` are found.

    Raises:
        RecipeError: there is no such thing.
    """
    module_name, _, attribute = name.partition(":")
    try:
        with importable(folder):
            module = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError) as error:
        check()
        raise _unknown(name, error) from error
    except (Exception, SystemExit) as error:  # the module is the user's
        check()
        raise RecipeError(
            found=f"the module of network.factory = {name!r} failing ({summary(error)})",
            expected="a module that can be imported",
            remedy="import it in Python, and fix what fails",
        ) from error
    try:
        factory = getattr(module, attribute)
    except AttributeError as error:
        raise _unknown(name, error) from error
    if not callable(factory):
        raise RecipeError(
            found=f"network.factory = {name!r}, a {type(factory).__name__}",
            expected="a callable that makes the network",
            remedy="name a class or a function",
        )
    made: Callable[..., Any] = factory
    return made


def _unknown(name: str, error: Exception) -> RecipeError:
    return RecipeError(
        found=f"network.factory = {name!r} ({error})",
        expected="package.module:callable",
        remedy="install the package, put the module beside the recipe, or fix the name",
    )


def _make(factory: Callable[..., Any], recipe: NetworkRecipe) -> nn.Module:
    exits = {} if recipe.blocks else {"exits": recipe.exits}
    options = {
        name: None if value == {NULL: True} else value for name, value in recipe.options.items()
    }
    try:
        network = factory(**exits, **options)
    except EecompileError:
        raise
    except (Exception, SystemExit) as error:  # the factory is the user's
        check()
        raise RecipeError(
            found=f"{recipe.factory} failing ({summary(error)})",
            expected=f"a network from the arguments {sorted({*exits, *recipe.options})}",
            remedy="fix [network.options], or the factory",
        ) from error
    found = getattr(network, "exits", None)
    multi_exit = isinstance(found, tuple | list) and tuple(found) == recipe.exits
    if not isinstance(network, nn.Module) or not (recipe.blocks or multi_exit):
        listed = list(found) if isinstance(found, tuple) else found
        named = "" if found is None else f" whose exits are {listed!r}"
        raise RecipeError(
            found=f"a {type(network).__name__}{named} from {recipe.factory}",
            expected="a torch module"
            + ("" if recipe.blocks else f" whose attribute exits is {recipe.exits}"),
            remedy="return such a module, or name the list of blocks to cut in network.blocks",
        )
    return network


def _planned(make: Callable[[], nn.Module]) -> tuple[nn.Module, bool]:
    """The network without memory for its weights; or whole, and True, where that cannot be."""
    try:
        with torch.device("meta"):
            return make(), False
    except EecompileError:  # a mistake, or a factory that reads the weights that it makes
        return make(), True


def _check_size(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Pass unless such a network cannot be meant: before it takes memory."""
    wanted = sum(parameter.numel() for parameter in network.parameters())
    stored = sum(value.numel() for value in state.values())
    if wanted > 4 * stored:
        raise CheckpointError(
            found=f"{stored:,} numbers in the checkpoint {path} for a network of {wanted:,}",
            expected="a checkpoint with every weight of the network",
            remedy="check the recipe's factory, options and exits against the checkpoint",
        )


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules in ``folder`` can be imported, also where another recipe's folder had the name."""
    place = str(folder.absolute())
    for path in folder.glob("*.py"):
        known = getattr(sys.modules.get(path.stem), "__file__", None)
        beside = known and str(Path(known).parent)
        if beside in _FOLDERS and beside != place:
            del sys.modules[path.stem]
    _FOLDERS.add(place)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load ``state``; its tensors become the network's without being copied."""
    fit: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None
    if fit := getattr(network, "fit_checkpoint", None):
        state = fit(state)
    wanted = _wanted(network)
    state = {**state, **_tied(wanted, state)}
    problems = {
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
        "of another kind": [
            f"{name} {_kind(state[name])} instead of {_kind(wanted[name])}"
            for name in wanted
            if name in state and not _fits(state[name], wanted[name])
        ],
        "missing": [name for name in wanted if name not in state],
        "unknown": [name for name in state if name not in wanted],
    }
    if any(problems.values()):
        parts = (
            f"{len(names)} {what} ({_few(names)})" for what, names in problems.items() if names
        )
        raise CheckpointError(
            found=f"a checkpoint whose keys do not fit at {path}: {'; '.join(parts)}",
            expected=f"the network's {len(wanted)} keys",
            remedy="check the recipe's factory, options and exits against the checkpoint"
            + "; dequantise weights with the library that wrote them"
            * bool(problems["of another kind"]),
        )
    broken = [name for name, value in state.items() if not torch.isfinite(value.float()).all()]
    if broken:
        raise CheckpointError(
            found=f"NaN or infinity in {len(broken)} tensors of {path} ({_few(broken)})",
            expected="finite weights",
            remedy="use a checkpoint from before the training diverged",
        )
    network.load_state_dict(dict(state), strict=False, assign=True)


def _wanted(network: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}


def _fits(found: Tensor, wanted: Tensor) -> bool:
    """Whether one kind of number may be loaded where the other is expected."""
    if wanted.is_floating_point():
        return found.is_floating_point() and found.element_size() > 1
    return found.dtype == wanted.dtype


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _tied(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries that a checkpoint leaves out because another name holds the same tensor."""
    names: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    for name, value in wanted.items():
        if name in state and value.numel():
            names[value.data_ptr(), value.shape, value.stride()] = name
    found = {
        name: names.get((value.data_ptr(), value.shape, value.stride()))
        for name, value in wanted.items()
        if name not in state and value.numel()
    }
    return {name: state[twin] for name, twin in found.items() if twin is not None}


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
