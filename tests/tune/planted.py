"""Networks whose best schedule is known: what an exit costs and loses is planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from eecompile.programs.interface import Condition, Interface, State
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.engines.group import EngineGroup
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.trajectory.plan import NONE, WHOLE, BoundEvaluation, Stretch
from eecompile.store.manifest import SpanTensor
from eecompile.tune.report import TuningSettings
from tests.clock import spend

EXITS = (1, 2, 4)
SHAPE = (6,)
LABEL = Condition(dtype="int64", range=(0, 3), default="cycle", null=4)
BLOCK = 5e-4  # seconds: beside it, a step of the sampler itself takes little
PATTERN = np.linspace(-1.0, 1.0, 6, dtype=np.float32)
Error = Callable[[int, float], float]


def planted(error: Error, cost: float = 0.0, slope: float = 0.3) -> FakeEngine:
    """The whole network is linear in x; an exit is off by ``error(depth, t)`` in one direction.

    Args:
        error: of an exit at a time.
        cost: seconds a block, on the standing clock.
        slope: of the output over x.
    """

    def predict(depth: int, x: Any, t: Any, given: Mapping[str, Any]) -> Any:
        off = error(depth, float(t[0])) * PATTERN
        label = given["label"].reshape(-1, 1).astype(np.float32)
        return np.float32(slope) * x + np.float32(0.01) * label + off

    return FakeEngine(EXITS, spending(predict, cost))


def spending(predict: Callable[..., Any], cost: float) -> Callable[..., Any]:
    """The same, in ``cost`` seconds a block."""

    def slow(depth: int, *given: Any) -> Any:
        spend(depth * cost)
        return predict(depth, *given)

    return slow


def interface(exits: tuple[int, ...] = EXITS, **more: Any) -> Interface:
    return Interface(
        name="planted", exits=exits, state=State(shape=SHAPE), conditions={"label": LABEL}, **more
    )


def sampler_of(*engines: FakeEngine, **more: Any) -> Sampler:
    """One engine, or several as engine sets named ``first``, ``second``, ..."""
    if len(engines) == 1:
        return Sampler(engines[0], interface(engines[0].exits, **more))
    names = ("first", "second", "third")
    return Sampler(EngineGroup(dict(zip(names, engines, strict=False))), interface(**more))


def settings(**changed: Any) -> TuningSettings:
    """Small."""
    chosen: dict[str, Any] = {
        "solver": "ddim",
        "steps": 10,
        "batch": 2,
        "seeds": 4,
        "held_out": 6,
        "minutes": 0.05,
    }
    return TuningSettings(**(chosen | changed))


CUTS = (0, 1, 2, 4)


class BlockEngine(Engine):
    """A network linear in x, whose blocks each add something to the hidden state, in turn.

    Args:
        adds: what a block adds, by its number from 1, the time and the hidden state.
        cost: seconds a block and row, on the standing clock.
        cuts: between which it can skip blocks.
    """

    precision, max_batch = "fp32", 64

    def __init__(
        self,
        adds: Callable[[int, float, Any], Any],
        cost: float = 0.0,
        cuts: Sequence[int] = CUTS,
        exits: tuple[int, ...] = EXITS,
    ) -> None:
        self.exits = exits
        self.spans = {
            (start, stop): (SpanTensor(leaves=f"h{stop}", enters=f"h{start}", shape=SHAPE,
                                       dtype="float32"),)
            for start, stop in combinations(cuts, 2)
        }  # fmt: skip
        self.blocks: list[int] = []
        self._adds, self._cost = adds, cost

    def evaluate(self, depth: int, x: Any, t: Any, conditions: Any) -> list[Any]:
        output = np.empty_like(x)
        self.bind(x, t, conditions, [output])(depth)
        return [output]

    def bind(
        self, x: Any, t: Any, conditions: Any, outputs: Sequence[Any],
        tensors: Mapping[str, Any] = NONE,
    ) -> BoundEvaluation:  # fmt: skip
        def evaluate(depth: int, stretch: Stretch = WHOLE) -> None:
            first = max(stretch.above, 0)
            last = depth if stretch.upto is None else stretch.upto
            label = conditions["label"].reshape(-1, 1).astype(np.float32)
            hidden = tensors[f"h{first}"] if stretch.above >= 0 else 0.3 * x + 0.01 * label
            for block in range(first, last + 1):
                if block > first:
                    spend(self._cost * len(x))
                    self.blocks.append(block)
                    hidden = hidden + self._adds(block, float(t[0]), hidden).astype(np.float32)
                if f"h{block}" in tensors and (block > first or stretch.above < 0):
                    tensors[f"h{block}"][:] = hidden
            if stretch.upto is None:
                outputs[0][:] = hidden

        return evaluate


def skipping_sampler(engine: BlockEngine, cuts: tuple[int, ...] = CUTS) -> Sampler:
    return Sampler(engine, interface(engine.exits, cuts=cuts))
