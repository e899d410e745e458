"""Files and folders: targets, bundles, engine sets; written whole, and checked when read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.store.bundle import open_bundle as open_bundle
    from eecompile.store.bundle import open_engine_set as open_engine_set
    from eecompile.store.manifest import BundleManifest as BundleManifest
    from eecompile.store.manifest import EngineManifest as EngineManifest
    from eecompile.store.target import Target as Target
    from eecompile.store.target import load_target as load_target

if not TYPE_CHECKING:  # to which any name would be one of the package's
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "bundle": "open_bundle open_engine_set",
            "manifest": "BundleManifest EngineManifest",
            "target": "Target load_target",
        },
    )
