"""Noise that depends on the seed, the sample and the draw, and on nothing else.

Counter-based bits (Philox 4x64-10; Salmon et al., "Parallel Random Numbers: As Easy as
1, 2, 3", SC 2011), keyed by seed and sample index, made normal by Box and Muller's
transform. NumPy may change how its own normal variates are made; the raw bits of a
Philox generator are fixed, so a sample stays the same across versions and batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["normal_noise"]


def normal_noise(
    seed: int, samples: Sequence[int], draw: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Standard normal noise, float32 [len(samples), *shape].

    Args:
        seed: 0 to 2**64 - 1.
        samples: index of each sample, 0 to 2**64 - 1.
        draw: 0 for the initial noise, then one more than the step.
        shape: shape of one sample.
    """
    size = int(np.prod(shape))
    pairs = -(-size // 2)
    bits = np.empty((len(samples), 2, pairs), np.uint64)
    counter = np.array([0, 0, 0, draw], np.uint64)
    for row, sample in enumerate(samples):
        key = np.array([seed, sample], np.uint64)
        bits[row] = np.random.Philox(counter=counter, key=key).random_raw((2, pairs))
    # 53 random bits each; the radius' uniform lies in (0, 1], so that its log is finite.
    uniform = (bits >> np.uint64(11)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((uniform[:, 0] + 1) * 2.0**-53))
    angle = uniform[:, 1] * (2 * np.pi * 2.0**-53)
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal[:, :size].astype(np.float32).reshape(len(samples), *shape)
