"""Serving: samples of many callers share every evaluation.

:class:`Scheduler` forms a batch for each evaluation from whatever samples have come to the same
choice; :func:`app_from_sampler` puts it behind HTTP, as ``eecompile serve`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.serve.app import app_from_sampler as app_from_sampler
    from eecompile.serve.jobs import BatchMetrics as BatchMetrics
    from eecompile.serve.jobs import Progress as Progress
    from eecompile.serve.limits import Limits as Limits
    from eecompile.serve.rows import rows_that_pay as rows_that_pay
    from eecompile.serve.scheduler import Load as Load
    from eecompile.serve.scheduler import Scheduler as Scheduler
    from eecompile.serve.triton import repository_from_engines as repository_from_engines

if not TYPE_CHECKING:  # to which any name would be one of the package's
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "app": "app_from_sampler",
            "jobs": "BatchMetrics Progress",
            "limits": "Limits",
            "rows": "rows_that_pay",
            "scheduler": "Load Scheduler",
            "triton": "repository_from_engines",
        },
    )
