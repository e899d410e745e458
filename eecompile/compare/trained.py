"""The trained torch network, and as an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from eecompile.arrays import Array, Inputs
from eecompile.compare.checks import Folder, check_recipe, checked_bundle, require
from eecompile.compare.peers import Evaluate, Peer
from eecompile.recipe import load_recipe
from eecompile.store.shipped import named_file

if TYPE_CHECKING:
    from torch import Tensor

    from eecompile.networks.base import MultiExitNetwork


class TrainedNetwork:
    """The torch network that a bundle was exported from, with its checkpoint.

    Args:
        bundle: what ``eecompile export`` wrote.
        recipe: the export recipe that it was exported with.

    Raises:
        BundleError: there is no intact bundle.
        BackendError: torch is missing.
        RecipeError: the recipe is malformed, or its factory cannot make the network.
        UsageError: the recipe's network or checkpoint is not the bundle's.
    """

    def __init__(self, bundle: Folder, recipe: Folder) -> None:
        manifest, path = checked_bundle(bundle), named_file("export", recipe)
        self.interface = manifest.interface
        self.checkpoint = check_recipe(manifest, path)
        require("torch", "export")
        from eecompile.networks.load import load_network

        # The bundle may have been exported with other exits than the recipe's.
        read = load_recipe(path, exits=self.interface.exits)
        self.network = load_network(read.network, path.parent)
        self._compiled = cache(self._compile)

    def evaluate(self, depth: int, feed: Inputs, *, compiled: bool = False) -> Sequence[Array]:
        """The outputs of one exit; deeper blocks do not run where the network allows that."""
        import torch

        predict = self._compiled(depth) if compiled else predict_at(self.network, depth)
        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in feed.items()}
        with torch.inference_mode():
            whole = predict(**tensors)
            parts = whole.chunk(len(self.interface.outputs), dim=1)
        return [part.numpy() for part in parts]

    def _compile(self, depth: int) -> Callable[..., Tensor]:
        import torch

        made: Callable[..., Tensor] = torch.compile(
            _own_code(predict_at(self.network, depth), f"exit_{depth}")
        )
        return made


class TorchPeer(Peer):
    """The trained network, which several may share, as an engine; through ``torch.compile`` too."""

    def __init__(self, network: TrainedNetwork, *, compiled: bool = False) -> None:
        super().__init__(network.interface)
        self._network, self._compiled = network, compiled

    def load(self, depth: int, stack: ExitStack) -> Evaluate:
        """See :class:`Peer`."""
        network, compiled = self._network, self._compiled
        return lambda feed: network.evaluate(depth, feed, compiled=compiled)


def predict_at(network: MultiExitNetwork, depth: int) -> Callable[..., Tensor]:
    """A function that predicts from one exit, as cheaply as the network allows."""
    from eecompile.networks.truncated import Renamed, Truncated

    if hasattr(network, "predict_at"):
        direct = network.predict_at
        return lambda **inputs: direct(depth, **inputs)
    if isinstance(network, Truncated):
        return lambda **inputs: _cut(network, depth, inputs)
    if isinstance(network, Renamed):
        inner = predict_at(network.network, depth)
        return lambda **inputs: inner(**network.call(**inputs))
    index = network.exits.index(depth)
    return lambda **inputs: network(**inputs)[index]


def _cut(network: Any, depth: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """One exit of a network that is cut at a list of blocks: blocks beyond it do nothing."""
    exits = network.exits
    network.exits = (depth,)
    try:
        (prediction,) = network(**inputs)
    finally:
        network.exits = exits
    made: Tensor = prediction
    return made


def _own_code(function: Any, name: str) -> Any:
    """The same function with code of its own: torch.compile counts compilations by code."""
    code = function.__code__.replace(co_name=name)
    return FunctionType(code, function.__globals__, name, None, function.__closure__)
