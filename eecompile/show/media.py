"""Decoded videos and waveforms as files."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eecompile.arrays import Array
from eecompile.show.pictures import sheet

_LOUDEST = 2**15 - 1  # of 16 bits


def save_gif(videos: Array, bounds: tuple[float, float], rate: float, output: Path) -> None:
    """Write videos, float32 [n, 1 or 3, frames, H, W], side by side as a GIF that repeats.

    Args:
        videos: the videos.
        bounds: values that become black and white.
        rate: frames a second; a GIF has hundredths of a second.
        output: the file.
    """
    first, *rest = (Image.fromarray(frame) for frame in _frames(videos, bounds))
    first.save(
        output,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=round(1000 / rate),
        loop=0,
    )


def save_video(videos: Array, bounds: tuple[float, float], rate: float, output: Path) -> None:
    """Write videos as :func:`save_gif` does, as an MP4 of H.264; lengths are made even."""
    import av

    frames = [_even(frame) for frame in _frames(videos, bounds)]
    with av.open(str(output), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def save_waveform(samples: Array, rate: float, output: Path) -> None:
    """Write a waveform, float32 [channels, values] from -1 to 1, as a WAV of 16 bits."""
    scaled = np.round(np.clip(samples, -1, 1) * _LOUDEST).astype("<i2")
    with wave.open(str(output), "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(scaled.itemsize)
        file.setframerate(round(rate))
        file.writeframes(scaled.T.tobytes())


def _frames(videos: Array, bounds: tuple[float, float]) -> list[NDArray[np.uint8]]:
    """Each frame of all videos, uint8 [H, W, 3]."""
    sheets = (sheet(videos[:, :, index], bounds) for index in range(videos.shape[2]))
    return [each if each.ndim == 3 else np.stack([each] * 3, axis=-1) for each in sheets]


def _even(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    odd = [(0, length % 2) for length in frame.shape[:2]]
    return np.pad(frame, [*odd, (0, 0)], mode="edge")
