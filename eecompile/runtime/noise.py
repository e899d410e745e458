"""Noise that depends on the seed, the sample and the draw, and on nothing else.

Counter-based bits (Philox 4x64-10; Salmon et al., "Parallel Random Numbers: As Easy as
1, 2, 3", SC 2011), keyed by seed and sample index, made normal by Box and Muller's
transform in float32. NumPy may change how its own normal variates are made; the raw bits of a
Philox generator are fixed, so a sample stays the same across versions and batches.
"""

from __future__ import annotations

import math
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
    size = math.prod(shape)
    pairs = -(-size // 2)
    bits = np.empty((len(samples), pairs), "<u8")
    generator = np.random.Philox()
    state = generator.state
    for row, sample in enumerate(samples):
        state["state"]["counter"][:] = 0, 0, 0, draw
        state["state"]["key"][:] = seed, sample
        state["buffer_pos"] = 4  # empty: the next bits come from the counter
        generator.state = state
        bits[row] = generator.random_raw(pairs)
    # Each 64 bits make two uniforms: the low half a radius, the high half an angle. In
    # float32, which resolves small uniforms finely: the tail reaches 6.6 deviations.
    halves = bits.view("<u4").reshape(len(samples), pairs, 2).astype(np.float32)
    radius = np.sqrt(-2 * np.log((halves[..., 0] + np.float32(0.5)) * np.float32(2**-32)))
    angle = halves[..., 1] * np.float32(2 * np.pi * 2**-32)
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal[:, :size].reshape(len(samples), *shape)
