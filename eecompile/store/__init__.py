"""Files and folders: targets, bundles, engine sets; written whole, and checked when read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.store.bundle import BundleManifest, EngineManifest, open_bundle, open_engine_set
    from eecompile.store.target import Target, load_target

__all__ = [
    "BundleManifest",
    "EngineManifest",
    "Target",
    "load_target",
    "open_bundle",
    "open_engine_set",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bundle": "BundleManifest EngineManifest open_bundle open_engine_set",
        "target": "Target load_target",
    },
)
