"""The runtime: numpy, msgspec and one backend; never torch, onnx or polygraphy.

The names that callers need are exported by :mod:`eecompile` itself; :class:`Engine` is the
protocol that an engine of one's own satisfies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.runtime.protocol import Engine as Engine

if not TYPE_CHECKING:  # to which any name would be one of the package's
    __getattr__, __dir__ = lazy_names(__name__, {"protocol": "Engine"})
