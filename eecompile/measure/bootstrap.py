"""Confidence intervals by bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eecompile.arrays import Floats

_RESAMPLES = 2000
_LEVELS = (0.025, 0.975)


def intervals(
    squares: Sequence[Floats], *, over: Sequence[Floats] | None = None, seed: int = 0
) -> list[tuple[float, float]]:
    """95 % intervals of the root mean square, by bootstrap over samples.

    Args:
        squares: mean squared differences of each sample, in which all have one order.
        over: divisors: intervals of ratios then, in which both have the same samples.
        seed: of the resamples.
    """
    count = len(squares[0])
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
    bounds = []
    for index, values in enumerate(squares):
        roots = np.sqrt(weights @ values)
        if over is not None:
            divisor = np.sqrt(weights @ over[index])
            roots = np.divide(roots, divisor, out=np.full_like(roots, np.inf), where=divisor > 0)
        low, high = np.quantile(roots, _LEVELS)
        bounds.append((float(low), float(high)))
    return bounds
