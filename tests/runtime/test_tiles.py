"""Samples decoded in tiles: against diffusers' own tiles, and where no seam may show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eecompile.arrays import Array
from eecompile.runtime.tiles import decoded_in_tiles, tile_starts
from tests.pipelines import autoencoder

TILE, FACTOR = 8, 2
OVERLAP = TILE // 4 * FACTOR  # of what is decoded


@pytest.mark.parametrize("length", [3, 8, 9, 13, 14, 15, 20, 31, 64])
def test_tiles_cover_an_axis_and_overlap(length: int) -> None:
    starts = tile_starts(length, TILE)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - TILE)
    apart = np.diff(starts)
    assert all(apart > 0)
    assert all(apart <= TILE - TILE // 4)


@pytest.mark.parametrize("shape", [(4, 20, 14), (4, 8, 26), (4, 14, 8)])
def test_they_go_over_into_one_another_as_in_diffusers(shape: tuple[int, ...]) -> None:
    """Where its tiles are ours: not at its last, shorter ones, nor where four tiles meet."""
    vae = autoencoder()
    vae.tile_latent_min_size, vae.tile_sample_min_size = TILE, TILE * FACTOR
    samples = np.random.default_rng(0).standard_normal((3, *shape), np.float32)

    def decode(tiles: Array) -> Array:
        assert len(tiles) <= 4
        with torch.no_grad():
            return vae.decode(torch.from_numpy(tiles)).sample.numpy()

    found = decoded_in_tiles(decode, samples, TILE, 2, 4)
    with torch.no_grad():
        right = vae.tiled_decode(torch.from_numpy(samples)).sample.numpy()
    assert found.shape == right.shape
    inner = [_goes_over(length) for length in shape[1:]]
    meets = inner[0][:, None] & inner[1]
    meets[-OVERLAP:], meets[:, -OVERLAP:] = True, True
    assert not meets.all()
    size = float(np.abs(right).max())
    np.testing.assert_allclose(found[..., ~meets], right[..., ~meets], atol=1e-5 * size)


def _goes_over(length: int) -> np.ndarray:
    """Where, along an axis that is decoded, two tiles overlap."""
    at = np.arange(length * FACTOR)
    starts = [start * FACTOR for start in tile_starts(length, TILE)[1:]]
    return np.any([(at >= start) & (at < start + OVERLAP) for start in starts], axis=0) | (at < 0)


@pytest.mark.parametrize("lengths", [(8, 9), (13, 30), (21, 5), (40, 41)])
def test_no_seam_shows_where_a_decoder_looks_at_one_place(lengths: tuple[int, int]) -> None:
    samples = np.random.default_rng(1).standard_normal((2, 3, *lengths), np.float32)

    def decode(tiles: Array) -> Array:
        return (2 * tiles + 1).repeat(3, axis=-1).repeat(3, axis=-2)

    np.testing.assert_allclose(
        decoded_in_tiles(decode, samples, TILE, 2, 3), decode(samples), atol=1e-5
    )
    sound = samples[:, :, 0]
    found = decoded_in_tiles(lambda tiles: tiles.repeat(5, axis=-1), sound, TILE, 1, 3)
    np.testing.assert_allclose(found, sound.repeat(5, axis=-1), atol=1e-5)
