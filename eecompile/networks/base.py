"""What a multi-exit network is: the protocol that the compiler relies on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from eecompile.errors import RecipeError

ADAPTERS = {
    "Lumina2Transformer2DModel": "eecompile.networks.lumina:Lumina2",
    "LuminaNextDiT2DModel": "eecompile.networks.lumina:LuminaNext",
    "MochiTransformer3DModel": "eecompile.networks.mochi:Mochi",
}
"""By the class of a network that cannot be traced: the factory of one that can."""


@runtime_checkable
class MultiExitNetwork(Protocol):
    """A torch module that predicts from several depths in one pass.

    Attributes:
        exits: depths that predict, ascending; the last is the full network.

    A network may also have ``fit_checkpoint(state)``, which returns those entries of a
    checkpoint that it loads, under its own names; public formats are read that way. And it may
    have ``blocks``, its modules in the order in which they run, as many as its deepest exit:
    spans of them can then be skipped.
    """

    exits: tuple[int, ...]

    def __call__(self, x: Tensor, t: Tensor, **conditions: Any) -> tuple[Tensor, ...]:
        """One prediction per exit, shallowest first, from the noisy input and the timestep.

        Each is shaped as ``x``, or has twice its first axis after the batch where the
        process says that the variance is learned.

        Args:
            x: noisy input, float32 [B, ...].
            t: timestep, float32 [B].
            conditions: one tensor per condition, first axis B.
        """
        ...


def check_exits(exits: Sequence[int], depth: int, first: int = 1) -> tuple[int, ...]:
    """The exits as a tuple, when they ascend within ``first`` to ``depth`` and end at ``depth``.

    Raises:
        RecipeError: they do not.
    """
    checked = tuple(exits)
    ascending = all(first < second for first, second in pairwise(checked))
    if not checked or not ascending or checked[0] < first or checked[-1] != depth:
        raise RecipeError(
            found=f"exits {list(checked)}",
            expected=f"ascending depths from {first} to {depth}, the last of them {depth}",
            remedy="list the depths that the network was trained to predict from",
        )
    return checked
