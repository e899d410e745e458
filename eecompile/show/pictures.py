"""Samples as a labelled grid of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from eecompile.arrays import Array
from eecompile.errors import UsageError

_TILE = 84  # pixels of the side that small pictures are enlarged to
_GAP = 6


def check_pictures(shape: tuple[int, ...]) -> None:
    """Whether states of ``shape`` are pictures.

    Raises:
        UsageError: they are not [1, H, W] or [3, H, W].
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(
            found=f"states of shape {list(shape)}",
            expected="pictures: [1, H, W] or [3, H, W]",
            remedy="write an .npy file instead",
        )


def save_grid(
    states: Array,
    bounds: tuple[float, float],
    output: Path | BinaryIO,
    *,
    title: str,
    labels: Sequence[str] = (),
    columns: int = 0,
) -> None:
    """Write states, float32 [n, 1 or 3, H, W], as a PNG with a title, and a label under each.

    The ``bounds`` are values that become black and white; 0 columns make it about square.
    """
    bytes_ = _bytes(states, bounds)
    count, _, height, width = bytes_.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    zoom = max(1, round(_TILE / max(height, width)))
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    line = 18 if labels else 0
    cell_width, cell_height = width * zoom + _GAP, height * zoom + line + _GAP
    header = 26 if title else _GAP
    text_width = math.ceil(font.getlength(title)) + 2 * _GAP
    size = max(columns * cell_width + _GAP, text_width), header + rows * cell_height
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, 5), title, fill="black", font=font)
    for index, pixels in enumerate(bytes_):
        picture = Image.fromarray(pixels.transpose(1, 2, 0).squeeze())
        left = _GAP + index % columns * cell_width
        top = header + index // columns * cell_height
        shape = (width * zoom, height * zoom)
        canvas.paste(picture.resize(shape, Image.Resampling.NEAREST).convert("RGB"), (left, top))
        if labels:
            place = (left + width * zoom / 2, top + height * zoom + 2)
            draw.text(place, labels[index], fill="black", font=small, anchor="ma")
    canvas.save(output, format="PNG")


def save_sheet(states: Array, bounds: tuple[float, float], output: Path | BinaryIO) -> None:
    """Write states, float32 [n, 1 or 3, H, W], as a PNG: side by side, pixel by pixel.

    The ``bounds`` are values that become black and white. One state is the picture itself; more
    stand in rows of about as many as there are rows, and black fills the last one.
    """
    count, channels, height, width = states.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = np.zeros((rows * columns, channels, height, width), np.uint8)
    tiles[:count] = _bytes(states, bounds)
    grid = tiles.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    pixels = grid.reshape(rows * height, columns * width, channels)
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(output, format="PNG")


def _bytes(states: Array, bounds: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = bounds
    scaled: Array = (states - low) / (high - low) * 255 + 0.5
    return np.clip(scaled, 0, 255).astype(np.uint8)
