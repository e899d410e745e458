"""Networks whose best schedule is known: what an exit costs and loses is planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eecompile.programs.interface import Condition, Interface, State
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.engines.group import EngineGroup
from eecompile.runtime.sampler import Sampler
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
