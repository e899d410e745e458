"""Samples in the forms that a caller may accept."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np

from eecompile.arrays import Array

Bounds = tuple[float, float] | None
EVENTS = "text/event-stream"
TEXT = "text/plain"
"""A line for each sample, where the network's decoder gives text."""


def npz(samples: Array, bounds: Bounds) -> bytes:
    """NumPy's archive: ``samples``, float32 [n, *shape]."""
    file = io.BytesIO()
    np.savez(file, samples=samples)
    return file.getvalue()


def safetensors(samples: Array, bounds: Bounds) -> bytes:
    """The safetensors form: ``samples``, float32 [n, *shape]."""
    from safetensors.numpy import save

    return save({"samples": np.ascontiguousarray(samples)})


def png(samples: Array, bounds: Bounds) -> bytes:
    """A picture, or several side by side; see :func:`eecompile.show.pictures.save_sheet`.

    The ``bounds`` are values that become black and white; None takes the least and the largest.

    Raises:
        UsageError: the samples are no pictures.
    """
    from eecompile.show.pictures import check_pictures, save_sheet

    check_pictures(samples.shape[1:])
    file = io.BytesIO()
    save_sheet(samples, bounds or (float(samples.min()), float(samples.max()) + 1e-6), file)
    return file.getvalue()


Form = Callable[[Array, Bounds], bytes]
FORMS: Mapping[str, Form] = {
    "application/x-npz": npz,
    "application/x-safetensors": safetensors,
    "image/png": png,
}


def accepted(header: str) -> str | None:
    """The media type that an Accept header likes best of what there is; None for none of it.

    Of types that are liked as well, the first in the header, as most clients mean it.
    """
    offered = (*FORMS, EVENTS, TEXT)
    best: tuple[float, str | None] = (0.0, None)
    for part in header.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        given = [each[2:] for each in parameters if each.startswith("q=")]
        try:
            weight = float(given[0]) if given else 1.0
        except ValueError:
            weight = 0.0
        match = next((each for each in offered if _matches(name, each)), None)
        if match is not None and weight > best[0]:
            best = weight, match
    return best[1]


def _matches(pattern: str, name: str) -> bool:
    kind, _, rest = pattern.partition("/")
    return pattern in ("*/*", name) or (rest == "*" and name.startswith(f"{kind}/"))
