"""How a network is called: inputs under its own names, and constants; and what it gives back."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from eecompile.errors import RecipeError, summary
from eecompile.interrupt import check
from eecompile.recipe import CALL, NULL, TENSOR

LOG = logging.getLogger("eecompile.networks")
Find = Callable[[str], Callable[..., Any]]


class Call(nn.Module):
    """The keyword arguments of a network's forward.

    Args:
        arguments: the network's name for an input, by ours; ``added.size`` is entry ``size`` of
            the dictionary ``added``, and ``table.0`` the first of the tuple ``table``.
        constants: further arguments, the same in every call; tensors in them are kept as buffers.
        dtypes: by our name, the dtype that the network takes an input in, such as ``bool``;
            integers of numbers that are not whole are the nearest.
    """

    def __init__(
        self,
        arguments: Mapping[str, str],
        constants: Mapping[str, Any] | None = None,
        dtypes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.arguments = dict(arguments)
        self.dtypes: dict[str, torch.dtype] = {
            k: getattr(torch, v) for k, v in (dtypes or {}).items()
        }
        self._leaves, self._spec = tree_flatten(dict(constants or {}))
        for index, leaf in enumerate(self._leaves):
            if isinstance(leaf, Tensor):
                self.register_buffer(f"constant_{index}", leaf, persistent=False)
                self._leaves[index] = None

    @property
    def plain(self) -> bool:
        """Whether the network is called with the inputs as they are."""
        return not (self.arguments or self._leaves or self._spec.num_children or self.dtypes)

    def forward(self, **inputs: Tensor) -> dict[str, Any]:
        """The arguments; dictionaries and lists in them are new in every call."""
        call: dict[str, Any] = {}
        for name, value in inputs.items():
            *outer, last = self.arguments.get(name, name).split(".")
            place = call
            for part in outer:
                place = place.setdefault(part, {})
            place[last] = _cast(value, self.dtypes.get(name, value.dtype))
        return {**(constants := self._constants()), **_joined(constants, call)}

    def _constants(self) -> dict[str, Any]:
        leaves = list(self._leaves)
        for name, buffer in self.named_buffers():
            leaves[int(name.removeprefix("constant_"))] = buffer
        made: dict[str, Any] = tree_unflatten(leaves, self._spec)
        return made


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    whole = not (dtype.is_floating_point or dtype == torch.bool)
    return (value.round() if whole and value.is_floating_point() else value).to(dtype)


def _joined(constants: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs among the entries of constant dictionaries; dictionaries of indices as tuples."""
    made: dict[str, Any] = {}
    for name, value in call.items():
        if not isinstance(value, dict):
            made[name] = value
        elif all(key.isdecimal() for key in value):
            known = constants.get(name)
            entries = dict(enumerate(known)) if isinstance(known, list) else {}
            entries |= {int(key): entry for key, entry in _joined({}, value).items()}
            made[name] = tuple(entries[index] for index in sorted(entries))
        else:
            known = constants.get(name)
            known = known if isinstance(known, dict) else {}
            made[name] = {**known, **_joined(known, value)}
    return made


def left_out(network: nn.Module, call: Mapping[str, Any]) -> list[str]:
    """Optional arguments of a network's forward that may be tensors, and are not in ``call``.

    Those that another network would give, such as the residuals of a ControlNet, do not count.
    """
    found = []
    for name, parameter in inspect.signature(network.forward).parameters.items():
        kind = str(parameter.annotation)
        tensor = "Tensor" in kind and not kind.lower().removeprefix("typing.").startswith("dict")
        foreign = name.startswith("controlnet") or name.endswith("residuals")
        optional = parameter.default is None and name not in call and not foreign
        if optional and (tensor or parameter.annotation is parameter.empty):
            found.append(name)
    return found


def constants_from_recipe(stated: Mapping[str, Any], find: Find) -> dict[str, Any]:
    """The values that a recipe's ``[network.constants]`` state.

    Args:
        stated: checked by :func:`eecompile.recipe.load_recipe`.
        find: the function behind ``package.module:function``.

    Raises:
        RecipeError: a tensor's lists are ragged, or a function is not found or fails.
    """
    return {name: _value(value, name, find) for name, value in stated.items()}


def _value(stated: Any, place: str, find: Find) -> Any:
    if isinstance(stated, list):
        return [_value(entry, f"{place}[{index}]", find) for index, entry in enumerate(stated)]
    if not isinstance(stated, dict):
        return stated
    if NULL in stated:
        return None
    if TENSOR in stated:
        return _made(place, torch.tensor, stated[TENSOR], dtype=getattr(torch, stated["dtype"]))
    if CALL in stated:
        try:
            function = find(stated[CALL])
        except RecipeError as error:
            raise RecipeError(
                found=error.found.replace("network.factory", f"the call of constant {place!r}"),
                expected=error.expected,
                remedy=error.remedy,
            ) from error
        given = _value(stated.get("arguments", []), place, find)
        options = _value(stated.get("options", {}), place, find)
        with torch.no_grad():
            return tree_map(_own, _made(place, function, *given, **options))
    return {key: _value(entry, f"{place}.{key}", find) for key, entry in stated.items()}


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _made(place: str, function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    try:
        return function(*given, **options)
    except (Exception, SystemExit) as error:  # the function is the user's
        check()
        raise RecipeError(
            found=f"constant {place!r} of the recipe, which cannot be made ({summary(error)})",
            expected="numbers in lists of equal lengths, or arguments that the function takes",
            remedy="fix it in [network.constants]",
        ) from error


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
