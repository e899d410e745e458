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
    from eecompile.programs.interface import Condition, Interface, Sampling, State
    from eecompile.programs.process import Process
    from eecompile.programs.program import Program
    from eecompile.programs.schedule import ExitSchedule
    from eecompile.programs.solvers.ddim import ddim
    from eecompile.programs.solvers.ddpm import ddpm
    from eecompile.runtime.engines.fake import FakeEngine
    from eecompile.runtime.request import SampleRequest
    from eecompile.runtime.sampler import Sampler
    from eecompile.runtime.sampling import StepMetrics, StepResult

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
    "Condition": "eecompile.programs.interface",
    "BackendError": "eecompile.errors",
    "EecompileError": "eecompile.errors",
    "ExitSchedule": "eecompile.programs.schedule",
    "FakeEngine": "eecompile.runtime.engines.fake",
    "Interface": "eecompile.programs.interface",
    "NonFiniteError": "eecompile.errors",
    "Process": "eecompile.programs.process",
    "Program": "eecompile.programs.program",
    "SampleRequest": "eecompile.runtime.request",
    "Sampler": "eecompile.runtime.sampler",
    "Sampling": "eecompile.programs.interface",
    "State": "eecompile.programs.interface",
    "StepMetrics": "eecompile.runtime.sampling",
    "StepResult": "eecompile.runtime.sampling",
    "UsageError": "eecompile.errors",
    "ddim": "eecompile.programs.solvers",
    "ddpm": "eecompile.programs.solvers",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
