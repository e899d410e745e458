"""Which file a library is about to open: the last that is known where that ends the process."""

from __future__ import annotations

import logging
from pathlib import Path

FILES = logging.getLogger("eecompile.runtime.files")
"""Told of each file, at level DEBUG."""


def opening(path: Path) -> Path:
    """The same path, once it has been told of."""
    FILES.debug("opening %s", path)
    return path
