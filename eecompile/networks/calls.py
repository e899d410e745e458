"""How a network is called, and what it gives back, where that is not what the compiler asks."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eecompile.errors import RecipeError

LOG = logging.getLogger("eecompile.networks")


def take_whole_timesteps(network: nn.Module, name: str) -> None:
    """Let ``network`` be called with its timestep rounded, as int64.

    Args:
        network: called with keywords, or with the timestep as its second argument.
        name: the timestep's among its arguments; with a dot, an entry of a dictionary.
    """
    outer, _, inner = name.partition(".")

    def cast(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if outer not in kwargs:
            return (*args[:1], *map(_whole, args[1:2]), *args[2:]), kwargs
        held = kwargs[outer]
        held = {**held, inner: _whole(held[inner])} if inner else _whole(held)
        return args, {**kwargs, outer: held}

    network.register_forward_pre_hook(cast, with_kwargs=True)


def _whole(t: Tensor) -> Tensor:
    return t.round().to(torch.int64)


def give_a_tuple(network: nn.Module, exits: Sequence[int]) -> None:
    """Let ``network`` return a tuple where it returns a list, or a dictionary by depth."""

    def ordered(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Mapping):
            return _by_depth(output, exits)
        return tuple(output) if isinstance(output, list) else output

    network.register_forward_hook(ordered)


def _by_depth(output: Mapping[Any, Any], exits: Sequence[int]) -> tuple[Any, ...]:
    """The predictions in the order of the exits; keys are depths, or end in them."""
    found = {}
    for key, value in output.items():
        if number := re.search(r"\d+\Z", str(key)):
            found[int(number[0])] = value
    if not set(exits) <= set(found):
        raise RecipeError(
            found=f"predictions under the keys {[*output][:6]}",
            expected=f"keys that name the exits {list(exits)}, such as {exits[0]} or "
            f"'exit_{exits[0]}'",
            remedy="return a dictionary by depth, or a tuple, shallowest first",
        )
    return tuple(found[depth] for depth in exits)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Within it torch.autocast does nothing, in all threads; logged where it would have.

    A bundle is FP32: precision belongs to the target.
    """
    kept = torch.autocast.__enter__, torch.autocast.__exit__
    seen: set[str] = set()

    def enter(self: torch.autocast) -> torch.autocast:
        if getattr(self, "_enabled", True):
            seen.add(str(self.fast_dtype).removeprefix("torch."))
        return self

    torch.autocast.__enter__ = enter  # type: ignore[method-assign]
    torch.autocast.__exit__ = lambda self, *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = kept  # type: ignore[method-assign]
        if seen:
            LOG.warning(
                "autocast to %s in the network's forward is left out: bundles are float32, and "
                "targets choose the precision",
                ", ".join(sorted(seen)),
            )
