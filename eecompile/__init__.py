"""The deployment compiler for multi-exit diffusion networks.

``eecompile export`` writes a bundle, ``eecompile build`` an engine set, and
:class:`Sampler` samples from that without PyTorch. Importing this package loads numpy
and nothing heavier; names are resolved when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eecompile.errors import BackendError, EecompileError, NonFiniteError, UsageError
    from eecompile.runtime.fake import FakeEngine
    from eecompile.runtime.interface import Condition, Interface, Sampling, State
    from eecompile.runtime.process import Process
    from eecompile.runtime.program import Program
    from eecompile.runtime.request import SampleRequest
    from eecompile.runtime.sampler import Sampler, StepMetrics, StepResult
    from eecompile.runtime.schedule import ExitSchedule
    from eecompile.runtime.solvers.ddim import ddim
    from eecompile.runtime.solvers.ddpm import ddpm

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Condition",
    "EecompileError",
    "ExitSchedule",
    "FakeEngine",
    "Interface",
    "NonFiniteError",
    "Process",
    "Program",
    "SampleRequest",
    "Sampler",
    "Sampling",
    "State",
    "StepMetrics",
    "StepResult",
    "UsageError",
    "__version__",
    "ddim",
    "ddpm",
]

_HOMES = {
    "Condition": "eecompile.runtime.interface",
    "BackendError": "eecompile.errors",
    "EecompileError": "eecompile.errors",
    "ExitSchedule": "eecompile.runtime.schedule",
    "FakeEngine": "eecompile.runtime.fake",
    "Interface": "eecompile.runtime.interface",
    "NonFiniteError": "eecompile.errors",
    "Process": "eecompile.runtime.process",
    "Program": "eecompile.runtime.program",
    "SampleRequest": "eecompile.runtime.request",
    "Sampler": "eecompile.runtime.sampler",
    "Sampling": "eecompile.runtime.interface",
    "State": "eecompile.runtime.interface",
    "StepMetrics": "eecompile.runtime.sampler",
    "StepResult": "eecompile.runtime.sampler",
    "UsageError": "eecompile.errors",
    "ddim": "eecompile.runtime.solvers",
    "ddpm": "eecompile.runtime.solvers",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
