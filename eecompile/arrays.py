"""Aliases of numpy's array types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
"""What networks read and write, and samples are."""
Floats = NDArray[np.float64]
"""What is computed before sampling: coefficients, errors, statistics."""
AnyArray = NDArray[np.generic]
Inputs = Mapping[str, AnyArray]
"""Arrays by the name of the network's input."""


class DeviceArray(Protocol):
    """An array where it was computed, which ``from_dlpack`` of numpy and torch takes."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, Any]: ...
