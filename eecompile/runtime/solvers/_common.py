"""What the solvers share: timesteps, and the predicted data as linear terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from eecompile.errors import UsageError
from eecompile.runtime.process import Process
from eecompile.runtime.program import Term, Update

__all__ = ["DepthAt", "Spacing", "data_update", "timesteps_for"]

Spacing = Literal["trailing", "leading", "linspace"]
DepthAt = Callable[[float], int]


def timesteps_for(process: Process, steps: int, spacing: Spacing) -> list[int]:
    """The timesteps to visit, descending, all within [0, T).

    ``trailing`` starts at T - 1, ``leading`` ends at 0, ``linspace`` does both
    (arXiv 2305.08891, table 2).

    Raises:
        UsageError: ``steps`` is below 1 or above T, or ``spacing`` is unknown.
    """
    total = process.timesteps
    if not 1 <= steps <= total:
        raise UsageError(
            found=f"{steps} steps",
            expected=f"1 to {total}, the network's number of timesteps",
            remedy="choose another number of steps",
        )
    if spacing == "trailing":
        return [round(total - index * total / steps) - 1 for index in range(steps)]
    if spacing == "leading":
        return [index * (total // steps) for index in reversed(range(steps))]
    if spacing == "linspace":
        return [round(t) for t in np.linspace(total - 1, 0, steps)]
    raise UsageError(
        found=f"spacing {spacing!r}",
        expected="'trailing', 'leading' or 'linspace'",
        remedy="choose one of these",
    )


def data_update(process: Process, alpha_bar: float, clip: tuple[float, float] | None) -> Update:
    """The update that puts the data predicted at ``alpha_bar`` into buffer ``data``."""
    signal, spread = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    terms = {
        "epsilon": (Term("state", 1 / signal), Term("output", -spread / signal)),
        "sample": (Term("output", 1.0),),
        "v_prediction": (Term("state", signal), Term("output", -spread)),
    }[process.prediction]
    return Update("data", terms, clip)
