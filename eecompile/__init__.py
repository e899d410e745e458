"""The deployment compiler for multi-exit diffusion networks.

``eecompile export`` writes a bundle, ``eecompile build`` an engine set, and
:class:`Sampler` samples from that without PyTorch. Importing this package loads numpy
and nothing heavier; names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.errors import BackendError as BackendError
    from eecompile.errors import EecompileError as EecompileError
    from eecompile.errors import NonFiniteError as NonFiniteError
    from eecompile.errors import UsageError as UsageError
    from eecompile.programs.choice import Exit as Exit
    from eecompile.programs.choice import Forecast as Forecast
    from eecompile.programs.choice import Span as Span
    from eecompile.programs.interface import Condition as Condition
    from eecompile.programs.interface import Interface as Interface
    from eecompile.programs.interface import Sampling as Sampling
    from eecompile.programs.interface import State as State
    from eecompile.programs.process import Process as Process
    from eecompile.programs.program import Program as Program
    from eecompile.programs.schedule import ExitSchedule as ExitSchedule
    from eecompile.programs.solvers.ddim import ddim as ddim
    from eecompile.programs.solvers.ddpm import ddpm as ddpm
    from eecompile.runtime.engines.fake import FakeEngine as FakeEngine
    from eecompile.runtime.request import SampleRequest as SampleRequest
    from eecompile.runtime.sampler import Sampler as Sampler
    from eecompile.runtime.sampling import StepMetrics as StepMetrics
    from eecompile.runtime.sampling import StepResult as StepResult

__version__ = "0.1.0"

if not TYPE_CHECKING:  # to which any name would be one of the package's
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "errors": "BackendError EecompileError NonFiniteError UsageError",
            "programs.choice": "Exit Forecast Span",
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
