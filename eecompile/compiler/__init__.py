"""Compile time: networks become bundles, and bundles become engine sets.

:func:`bundle_from_recipe` exports, :func:`engine_set_from_bundle` builds, and
:func:`program_from_scheduler` compiles a scheduler of diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.compiler.build import engine_set_from_bundle as engine_set_from_bundle
    from eecompile.compiler.export import bundle_from_recipe as bundle_from_recipe
    from eecompile.compiler.schedulers.program import (
        program_from_scheduler as program_from_scheduler,
    )

if not TYPE_CHECKING:  # to which any name would be one of the package's
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "build": "engine_set_from_bundle",
            "export": "bundle_from_recipe",
            "schedulers.program": "program_from_scheduler",
        },
    )
