"""Something to look at for states of every shape."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from eecompile.errors import UsageError
from eecompile.show.pictures import check_drawable, drawable, save_grid, what_is_drawn


def test_pictures_stay_as_they_are() -> None:
    states = np.zeros((2, 3, 5, 4), np.float32)
    assert drawable(states, (-1, 1)) == (states, (-1, 1))


def test_channels_of_latents_stand_side_by_side() -> None:
    states = np.arange(2 * 4 * 3 * 5, dtype=np.float32).reshape(2, 4, 3, 5)
    drawn, (low, high) = drawable(states, None)
    assert drawn.shape == (2, 1, 3, 20)
    np.testing.assert_array_equal(drawn[1, 0, :, 5:10], states[1, 1])
    assert (low, round(high)) == (0, 119)
    assert what_is_drawn((4, 3, 5)) == "channels side by side"


@pytest.mark.parametrize(("channels", "drawn_as"), [(3, 3), (16, 1)])
def test_frames_stand_side_by_side(channels: int, drawn_as: int) -> None:
    states = np.random.default_rng(0).normal(size=(2, channels, 4, 3, 5)).astype(np.float32)
    drawn, _ = drawable(states, None)
    assert drawn.shape == (2, drawn_as, 3, 20)
    second = states[:, :, 1] if drawn_as == 3 else states[:, :, 1].mean(1, keepdims=True)
    np.testing.assert_array_equal(drawn[..., 5:10], second)


@pytest.mark.parametrize("shape", [(32,), (2, 32)])
def test_sequences_become_curves(shape: tuple[int, ...]) -> None:
    rising = np.broadcast_to(np.linspace(-1, 1, 32, dtype=np.float32), (1, *shape))
    drawn, bounds = drawable(rising, None)
    assert bounds == (0, 1)
    for curve in np.split(drawn[0, 0], shape[0] if len(shape) == 2 else 1):
        rows, columns = np.nonzero(curve < 0.5)
        left, right = rows[columns < 20].mean(), rows[columns > 140].mean()
        assert left > right + 50  # rows count downwards
    file = io.BytesIO()
    save_grid(drawn, bounds, file, title="a")
    assert Image.open(file).width >= 160


def test_what_nothing_can_be_drawn_of_is_refused() -> None:
    for shape in ((), (1, 2, 3, 4, 5)):
        with pytest.raises(UsageError, match=r"write an \.npy file"):
            check_drawable(shape)
