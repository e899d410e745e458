"""Serving: samples of many callers share every evaluation.

:class:`Scheduler` forms a batch for each evaluation from whatever samples have come to the same
choice; :func:`app_from_scheduler` puts it behind HTTP, as ``eecompile serve`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.serve.app import Limits as Limits
    from eecompile.serve.app import app_from_scheduler as app_from_scheduler
    from eecompile.serve.jobs import BatchMetrics as BatchMetrics
    from eecompile.serve.jobs import Progress as Progress
    from eecompile.serve.scheduler import Load as Load
    from eecompile.serve.scheduler import Scheduler as Scheduler

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "app": "Limits app_from_scheduler",
        "jobs": "BatchMetrics Progress",
        "scheduler": "Load Scheduler",
    },
)
