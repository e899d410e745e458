"""The deployment compiler for multi-exit diffusion networks.

``eecompile export`` writes a bundle, ``eecompile build`` an engine set, and
:class:`Sampler` samples from that without PyTorch. Importing this package loads numpy
and nothing heavier; names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.errors import BackendError, EecompileError, NonFiniteError, UsageError
    from eecompile.programs.choice import Exit, Forecast
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
    "Exit",
    "ExitSchedule",
    "FakeEngine",
    "Forecast",
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "errors": "BackendError EecompileError NonFiniteError UsageError",
        "programs.choice": "Exit Forecast",
        "programs.interface": "Condition Interface Sampling State",
        "programs.process": "Process",
        "programs.program": "Program",
        "programs.schedule": "ExitSchedule",
        "programs.solvers": "ddim ddpm",
        "runtime.engines.fake": "FakeEngine",
        "runtime.request": "SampleRequest",
        "runtime.sampler": "Sampler",
        "runtime.sampling": "StepMetrics StepResult",
    },
)
