from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from eecompile.runtime.trajectory.noise import NoiseSource, normal_noise


@given(seed=st.integers(0, 2**64 - 1), sample=st.integers(0, 2**63), draw=st.integers(0, 999))
def test_noise_does_not_depend_on_the_batch(seed: int, sample: int, draw: int) -> None:
    alone = normal_noise(seed, [sample], draw, (3, 5))
    among = normal_noise(seed, [7, sample, sample + 1], draw, (3, 5))
    np.testing.assert_array_equal(alone[0], among[1])


def test_noise_is_standard_normal() -> None:
    noise = normal_noise(1, range(400), 0, (1000,)).astype(np.float64)
    count = noise.size
    moments = [np.mean(noise**k) for k in (1, 2, 3, 4)]
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - expected) < 4 * np.sqrt(variance / count)


def test_seeds_samples_and_draws_are_independent() -> None:
    rows = np.concatenate(
        [
            normal_noise(seed, [sample], draw, (4000,))
            for seed in (0, 1)
            for sample in (0, 1)
            for draw in (0, 1)
        ]
    )
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_the_stream_is_fixed() -> None:
    # Philox 4x64-10 and Box-Muller: a reader in another language gets the same.
    bits = np.random.Philox(counter=[0, 0, 0, 2], key=[5, 9]).random_raw(2)
    low, high = (bits & 0xFFFFFFFF).astype(float), (bits >> np.uint64(32)).astype(float)
    radius = np.sqrt(-2 * np.log((low + 0.5) / 2**32))
    angle = 2 * np.pi * high / 2**32
    expected = [*(radius * np.cos(angle)), *(radius * np.sin(angle))]
    found = normal_noise(5, [9], 2, (4,))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5], [2, 3, 7, 100, 2000], [1], list(range(1, 90))])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3,), (40, 40, 40)])
def test_draws_made_together_are_those_made_one_by_one(
    order: list[int], shape: tuple[int, ...]
) -> None:
    source = NoiseSource(2, shape, order)
    for seeds in ([3, 2**64 - 1], [5, 6]):
        source.restart()
        for draw in order:
            expected = normal_noise(seeds, [7, 8], draw, shape)
            found = source.draw(seeds, [7, 8], draw)
            np.testing.assert_array_equal(found, expected)
            assert np.shares_memory(found, source.place(draw))
        outside = source.draw(seeds, [7, 8], 0)  # not of the order
        np.testing.assert_array_equal(outside, normal_noise(seeds, [7, 8], 0, shape))
        np.testing.assert_array_equal(
            source.draw(seeds, [7, 8], order[-1]), normal_noise(seeds, [7, 8], order[-1], shape)
        )
