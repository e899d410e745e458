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

__all__ = ["NoiseSource", "normal_noise"]

Array = NDArray[np.float32]
_UNIT = np.float32(2**-32)
_TURN = np.float32(2 * np.pi * 2**-32)


class NoiseSource:
    """Draws noise for samples of one shape, again and again into the same memory.

    Args:
        size: number of samples.
        shape: of one sample.
    """

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        self._generator = np.random.Philox(0)
        self._state = self._generator.state
        self._pairs = -(-math.prod(shape) // 2)
        self._bits = np.empty((size, self._pairs), "<u8")
        self._radius, self._angle, self._wave = np.empty((3, size, self._pairs), np.float32)
        self._normal = np.empty((size, 2 * self._pairs), np.float32)
        self._noise = self._normal[:, : math.prod(shape)].reshape(size, *shape)

    def draw(
        self,
        seeds: Sequence[int] | NDArray[np.uint64],
        samples: Sequence[int] | NDArray[np.uint64],
        draw: int,
    ) -> Array:
        """Standard normal noise, float32 [size, *shape]; the next draw overwrites it.

        Args:
            seeds: of each sample, 0 to 2**64 - 1.
            samples: index of each sample, 0 to 2**64 - 1.
            draw: 0 for the initial noise, then one more than the step.
        """
        state, inner = self._state, self._state["state"]
        for row, (seed, sample) in enumerate(zip(seeds, samples, strict=True)):
            inner["counter"][:] = 0, 0, 0, draw
            inner["key"][:] = seed, sample
            state["buffer_pos"] = 4  # empty: the next bits come from the counter
            self._generator.state = state
            self._bits[row] = self._generator.random_raw(self._pairs)
        # Each 64 bits make two uniforms: the low half a radius, the high half an angle. In
        # float32, which resolves small uniforms finely: the tail reaches 6.6 deviations.
        halves = self._bits.view("<u4").reshape(*self._bits.shape, 2)
        radius, angle, wave = self._radius, self._angle, self._wave
        np.copyto(radius, halves[..., 0], casting="unsafe")
        np.copyto(angle, halves[..., 1], casting="unsafe")
        radius += np.float32(0.5)
        radius *= _UNIT
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle *= _TURN
        normal = self._normal
        np.multiply(radius, np.cos(angle, out=wave), out=normal[:, : self._pairs])
        np.multiply(radius, np.sin(angle, out=wave), out=normal[:, self._pairs :])
        return self._noise


def normal_noise(
    seeds: int | Sequence[int] | NDArray[np.uint64],
    samples: Sequence[int] | NDArray[np.uint64],
    draw: int,
    shape: tuple[int, ...],
) -> Array:
    """Standard normal noise, float32 [len(samples), *shape].

    Args:
        seeds: 0 to 2**64 - 1: one for all samples, or one for each.
        samples: index of each sample, 0 to 2**64 - 1.
        draw: 0 for the initial noise, then one more than the step.
        shape: shape of one sample.
    """
    keys = [seeds] * len(samples) if isinstance(seeds, int) else seeds
    return NoiseSource(len(samples), shape).draw(keys, samples, draw)
