"""What runs, as data: processes, schedules, solvers and the programs they compile to.

:mod:`eecompile.programs.solvers` has the solvers as functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.programs.choice import Choice, Exit, Forecast
    from eecompile.programs.interface import Condition, Interface, Sampling, State
    from eecompile.programs.process import Process
    from eecompile.programs.program import Program, Step, Term, Update
    from eecompile.programs.schedule import ExitSchedule

__all__ = [
    "Choice",
    "Condition",
    "Exit",
    "ExitSchedule",
    "Forecast",
    "Interface",
    "Process",
    "Program",
    "Sampling",
    "State",
    "Step",
    "Term",
    "Update",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "choice": "Choice Exit Forecast",
        "interface": "Condition Interface Sampling State",
        "process": "Process",
        "program": "Program Step Term Update",
        "schedule": "ExitSchedule",
    },
)
