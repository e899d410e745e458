"""Kernels that TensorRT-RTX compiled when it opened plans, kept for the next time."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from eecompile.store.files import is_private, read_private
from eecompile.store.folders import MARK
from eecompile.store.manifest import EngineManifest

LOG = logging.getLogger("eecompile.runtime")


def cache_path(folder: Path, fingerprint: str) -> Path | None:
    """Where the kernels of an engine set are kept.

    Beside its folder, where that can be written to; else among the user's caches. Never in
    it: an engine set holds what its manifest names, and nothing else. None for a folder that
    is still being written.
    """
    folder = folder.resolve()
    if (folder.parent / MARK).exists():
        return None
    if os.access(folder.parent, os.W_OK):
        return folder.with_name(f"{folder.name}.rtx-cache")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "eecompile" / f"{fingerprint[:32]}.rtx-cache"


class KernelCache:
    """One ``IRuntimeCache`` for all plans of an engine set, and the file that it is kept in.

    The library checks that a cache is of its own version and for this GPU, and ignores any
    other. What cannot be read or written, or is not this user's alone, costs time, and is no
    error. An ``IRuntimeConfig`` of any of the plans makes the cache.
    """

    def __init__(self, config: Any, folder: Path, manifest: EngineManifest) -> None:
        self._path = cache_path(folder, manifest.fingerprint)
        self._cache = config.create_runtime_cache()
        self._known = b""
        if self._path is None:
            return
        self._known = read_private(self._path) or b""  # kernels are code
        if self._known and not self._cache.deserialize(self._known):
            LOG.info("%s is of another version or GPU, and will be replaced", self._path)
            self._known = b""

    def attach(self, config: Any) -> None:
        """Have a context that is made with ``config`` use the cache."""
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the cache if it has grown: a new file, then one rename."""
        if self._path is None:
            return
        data = bytes(memoryview(self._cache.serialize() or b""))
        if not data or data == self._known:
            return
        if os.path.lexists(self._path) and not is_private(self._path):
            LOG.info("compiled kernels are not kept: %s may be somebody else's", self._path)
            return
        partial = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self._path.parent, prefix=f".{self._path.name}.", delete=False
            ) as file:
                partial = Path(file.name)
                file.write(data)
            partial.replace(self._path)  # of two processes, the last one's whole file stays
            self._known = data
        except OSError as error:
            LOG.info("compiled kernels are not kept (%s)", error)
            if partial is not None:
                partial.unlink(missing_ok=True)
