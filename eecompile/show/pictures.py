"""Samples as a labelled grid of pictures; those that are no pictures as something to look at."""

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
_CURVE = (96, 160)  # pixels of the height and width in which curves are drawn


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


def check_drawable(shape: tuple[int, ...]) -> None:
    """Whether something can be drawn of states of ``shape``; see :func:`drawable`.

    Raises:
        UsageError: they have no axis, or more than four.
    """
    if not 1 <= len(shape) <= 4:
        raise UsageError(
            found=f"states of shape {list(shape)}",
            expected="pictures, or what can be drawn: [L], [C, L], [C, H, W] or [C, F, H, W]",
            remedy="write an .npy file instead",
        )


def what_is_drawn(shape: tuple[int, ...]) -> str:
    """What :func:`drawable` draws of a state that is no picture."""
    if len(shape) < 3:
        return "a curve for each channel"
    return "channels side by side" if len(shape) == 3 else "frames side by side"


def drawable(
    states: Array, bounds: tuple[float, float] | None
) -> tuple[Array, tuple[float, float]]:
    """States [n, ...] as pictures [n, 1 or 3, H, W], and the values of black and white.

    Pictures stay as they are. Sequences [L] and [C, L] become curves, one below the other for
    each channel. Channels of other states [C, H, W], such as latents, stand side by side, and so
    do the frames of [C, F, H, W]: the channel itself or the colours, else the mean of the channels.
    """
    shape = states.shape[1:]
    check_drawable(shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        return states, bounds or (float(states.min()), float(states.max()) + 1e-6)
    if len(shape) < 3:
        return _curves(states.reshape(len(states), -1, shape[-1])), (0.0, 1.0)
    if len(shape) == 4:
        frames = states if shape[0] in (1, 3) else states.mean(axis=1, keepdims=True)
        drawn = np.concatenate(list(frames.transpose(2, 0, 1, 3, 4)), axis=-1)
    else:
        drawn = np.concatenate(list(states.transpose(1, 0, 2, 3)), axis=-1)[:, None]
    return drawn, bounds or (float(drawn.min()), float(drawn.max()) + 1e-6)


def _curves(states: Array) -> Array:
    """States [n, C, L] as curves in black on white, [n, 1, H, W]; one scale for all."""
    height, width = _CURVE
    count, channels, length = states.shape
    low, high = float(states.min()), float(states.max()) + 1e-6
    drawn = np.empty((count, 1, height * channels, width), np.float32)
    across = np.linspace(1, width - 2, length) if length > 1 else [width / 2]
    for index, state in enumerate(states):
        canvas = Image.new("L", (width, height * channels), 255)
        draw = ImageDraw.Draw(canvas)
        for channel, values in enumerate(state):
            down = height * (channel + 1) - 4 - (values - low) / (high - low) * (height - 8)
            draw.line(list(zip(across, down.tolist(), strict=True)), fill=0, width=2)
        drawn[index, 0] = np.asarray(canvas, np.float32) / 255
    return drawn


def save_grid(
    states: Array,
    bounds: tuple[float, float],
    output: Path | BinaryIO,
    *,
    title: str,
    labels: Sequence[str] = (),
    columns: int = 0,
    tile: int = _TILE,
) -> None:
    """Write states, float32 [n, 1 or 3, H, W], as a PNG with a title, and a label under each.

    The ``bounds`` are values that become black and white; 0 columns make it about square. Small
    pictures are enlarged to about ``tile`` pixels.
    """
    bytes_ = _bytes(states, bounds)
    count, _, height, width = bytes_.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    zoom = max(1, round(tile / max(height, width)))
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
    Image.fromarray(sheet(states, bounds)).save(output, format="PNG")


def sheet(states: Array, bounds: tuple[float, float]) -> NDArray[np.uint8]:
    """The pixels of states side by side, uint8 [H, W, 3 or 4] or [H, W]; see :func:`save_sheet`."""
    count, channels, height, width = states.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = np.zeros((rows * columns, channels, height, width), np.uint8)
    tiles[:count] = _bytes(states, bounds)
    grid = tiles.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    pixels = grid.reshape(rows * height, columns * width, channels)
    return pixels.squeeze(2) if channels == 1 else pixels


def _bytes(states: Array, bounds: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = bounds
    scaled: Array = (states - low) / (high - low) * 255 + 0.5
    return np.clip(scaled, 0, 255).astype(np.uint8)
