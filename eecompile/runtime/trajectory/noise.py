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

from eecompile.arrays import Array

Keys = Sequence[int] | NDArray[np.uint64]
_UNIT = np.float32(2**-32)
_TURN = np.float32(2 * np.pi * 2**-32)
_AT_ONCE = 8192  # pairs of variates of small draws that are made together


class NoiseSource:
    """Draws noise for samples of one shape, again and again into the same memory.

    Small draws that are known to follow one another are made several at a time: most of
    their time would be spent between NumPy's functions.

    Args:
        size: number of samples.
        shape: of one sample.
        order: the draws to come, ascending; empty for any.
    """

    def __init__(self, size: int, shape: tuple[int, ...], order: Sequence[int] = ()) -> None:
        self._generator = np.random.Philox(0)
        self._state = self._generator.state
        self._pairs = -(-math.prod(shape) // 2)
        self._size = size
        self._order = tuple(order)
        self._places = {draw: index for index, draw in enumerate(order)}
        block = max(1, min(len(self._order), _AT_ONCE // max(1, size * self._pairs)))
        self._block = block
        self._made = range(0)  # places in the order of the draws that are there
        rows = block * size
        self._bits = np.empty((rows, self._pairs), "<u8")
        self._radius, self._angle, self._wave = np.empty((3, rows, self._pairs), np.float32)
        self._normal = np.empty((rows, 2 * self._pairs), np.float32)
        whole = self._normal[:, : math.prod(shape)].reshape(rows, *shape)
        self._noise = [whole[low : low + size] for low in range(0, rows, size)]

    def place(self, draw: int) -> Array:
        """Where :meth:`draw` will put this draw of the order."""
        return self._noise[self._places.get(draw, 0) % self._block]

    def restart(self) -> None:
        """Forget what has been drawn: the next draws are for other samples."""
        self._made = range(0)

    def draw(
        self,
        seeds: Keys,
        samples: Keys,
        draw: int,
    ) -> Array:
        """Standard normal noise, float32 [size, *shape]; later draws overwrite it.

        Args:
            seeds: of each sample, 0 to 2**64 - 1.
            samples: index of each sample, 0 to 2**64 - 1; as for ``seeds``, the same for
                all draws of an order until :meth:`restart`.
            draw: 0 for the initial noise, then one more than the step.
        """
        at = self._places.get(draw)
        if at is None:
            self._made = range(0)
            self._make(seeds, samples, [draw])
        elif at not in self._made:
            low = at - at % self._block
            self._made = range(low, min(low + self._block, len(self._order)))
            self._make(seeds, samples, self._order[low : self._made.stop])
        return self.place(draw)

    def _make(self, seeds: Keys, samples: Keys, draws: Sequence[int]) -> None:
        state, inner = self._state, self._state["state"]
        rows = 0
        for draw in draws:
            for seed, sample in zip(seeds, samples, strict=True):
                inner["counter"][:] = 0, 0, 0, draw
                inner["key"][:] = seed, sample
                state["buffer_pos"] = 4  # empty: the next bits come from the counter
                self._generator.state = state
                self._bits[rows] = self._generator.random_raw(self._pairs)
                rows += 1
        # Each 64 bits make two uniforms: the low half a radius, the high half an angle. In
        # float32, which resolves small uniforms finely: the tail reaches 6.6 deviations.
        halves = self._bits[:rows].view("<u4").reshape(rows, self._pairs, 2)
        radius, angle, wave = (a[:rows] for a in (self._radius, self._angle, self._wave))
        np.copyto(radius, halves[..., 0], casting="unsafe")
        np.copyto(angle, halves[..., 1], casting="unsafe")
        radius += np.float32(0.5)
        radius *= _UNIT
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle *= _TURN
        normal = self._normal[:rows]
        np.multiply(radius, np.cos(angle, out=wave), out=normal[:, : self._pairs])
        np.multiply(radius, np.sin(angle, out=wave), out=normal[:, self._pairs :])


def normal_noise(seeds: int | Keys, samples: Keys, draw: int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise, float32 [len(samples), *shape].

    Arguments are those of :meth:`NoiseSource.draw`, but ``seeds`` may be one for all samples.
    """
    keys = [seeds] * len(samples) if isinstance(seeds, int) else seeds
    return NoiseSource(len(samples), shape).draw(keys, samples, draw)
