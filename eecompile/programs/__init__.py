"""What runs, as data: processes, schedules, solvers and the programs they compile to.

:mod:`eecompile.programs.solvers` has the solvers as functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.programs.choice import Choice as Choice
    from eecompile.programs.choice import Exit as Exit
    from eecompile.programs.choice import Forecast as Forecast
    from eecompile.programs.choice import Span as Span
    from eecompile.programs.interface import Condition as Condition
    from eecompile.programs.interface import Interface as Interface
    from eecompile.programs.interface import Sampling as Sampling
    from eecompile.programs.interface import State as State
    from eecompile.programs.process import Process as Process
    from eecompile.programs.program import Program as Program
    from eecompile.programs.program import Step as Step
    from eecompile.programs.program import Term as Term
    from eecompile.programs.program import Update as Update
    from eecompile.programs.schedule import ExitSchedule as ExitSchedule

if not TYPE_CHECKING:  # to which any name would be one of the package's
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "choice": "Choice Exit Forecast Span",
            "interface": "Condition Interface Sampling State",
            "process": "Process",
            "program": "Program Step Term Update",
            "schedule": "ExitSchedule",
        },
    )
