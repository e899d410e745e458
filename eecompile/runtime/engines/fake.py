"""An engine without a backend: a plain function, for trying and testing sampling code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eecompile.arrays import Array, Inputs
from eecompile.runtime.protocol import Engine

Predict = Callable[[int, Array, Array, Inputs], Array | Sequence[Array]]


class FakeEngine(Engine):
    """Evaluates ``predict(depth, x, t, conditions)``.

    Args:
        exits: depths that it evaluates, ascending.
        predict: returns the prediction, shaped as ``x``, or a sequence of it and a
            learned variance.
        max_batch: largest batch that it takes.

    Attributes:
        calls: depth and batch size of every evaluation so far.
    """

    def __init__(self, exits: Sequence[int], predict: Predict, max_batch: int = 64) -> None:
        self.exits = tuple(exits)
        self.precision = "fp32"
        self.max_batch = max_batch
        self.calls: list[tuple[int, int]] = []
        self._predict = predict

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """The outputs at ``depth``; see :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        self.calls.append((depth, len(x)))
        made = self._predict(depth, x, t, conditions)
        outputs = (made,) if isinstance(made, np.ndarray) else made
        return [np.asarray(output, np.float32) for output in outputs]
