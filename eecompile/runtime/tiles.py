"""Samples decoded in overlapping tiles, where whole ones would not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from eecompile.arrays import Array

_PART = 4  # neighbours overlap by at least one such part of a tile, as in diffusers


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles of one length begin, evenly from one end of an axis to the other."""
    apart = tile - tile // _PART
    gaps = max(0, math.ceil((length - tile) / apart))
    return [round(index * (length - tile) / gaps) for index in range(gaps + 1)] if gaps else [0]


def decoded_in_tiles(
    decode: Callable[[Array], Array], samples: Array, tile: int, axes: int, at_once: int
) -> Array:
    """What samples are decoded to, tile by tile.

    From a tile to the next, the overlap goes over linearly, as in diffusers'
    ``AutoencoderKL.tiled_decode``; the last tile ends where the sample does, and is as long as
    the others.

    Args:
        decode: takes tiles, float32 [<= at_once, ..., tile, tile], and makes each tiled axis
            longer by a whole factor.
        samples: float32 [n, *shape].
        tile: length of a tile along each tiled axis; an axis that is no longer is not divided.
        axes: the last so many are tiled.
        at_once: tiles that are decoded together.

    Returns:
        Float32 [n, ...].
    """
    lengths = samples.shape[-axes:]
    places = list(product(*(tile_starts(length, tile) for length in lengths)))
    sides = [min(length, tile) for length in lengths]
    crops = [(index, place) for index in range(len(samples)) for place in places]
    whole, weights = np.empty(0, np.float32), np.empty(0, np.float32)
    factor = 0
    for first in range(0, len(crops), at_once):
        group = crops[first : first + at_once]
        made = decode(np.stack([samples[i][_part(place, sides, 1)] for i, place in group]))
        if not factor:
            factor = made.shape[-1] // sides[-1]
            ends = [length * factor for length in lengths]
            whole = np.zeros((len(samples), *made.shape[1:-axes], *ends), np.float32)
            weights = np.zeros((len(samples), *ends), np.float32)
        for (index, place), decoded in zip(group, made, strict=True):
            weight = np.ones((), np.float32)
            for start, side, length in zip(place, sides, lengths, strict=True):
                ramp = _ramp(
                    side * factor, tile // _PART * factor, start > 0, start + side < length
                )
                weight = weight[..., None] * ramp
            part = _part(place, sides, factor)
            whole[index][part] += decoded * weight
            weights[index][part] += weight
    return whole / weights.reshape(len(samples), *[1] * (whole.ndim - 1 - axes), *weights.shape[1:])


def _part(place: Sequence[int], sides: Sequence[int], factor: int) -> tuple[object, ...]:
    """Of an array, the part of its last axes that a tile covers."""
    pairs = zip(place, sides, strict=True)
    return (..., *(slice(start * factor, (start + side) * factor) for start, side in pairs))


def _ramp(length: int, overlap: int, begins: bool, ends: bool) -> NDArray[np.float32]:
    """The weights along an axis of a tile, which may begin and end at neighbours."""
    up = np.minimum(np.arange(length) / overlap, 1) if begins else np.ones(length)
    down = np.minimum(np.arange(length, 0, -1) / overlap, 1) if ends else np.ones(length)
    return (up * down).astype(np.float32)
