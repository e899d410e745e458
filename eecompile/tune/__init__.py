"""Exit schedules chosen by measurement, under a budget of time.

:func:`tune` measures what every choice costs and how far it moves the samples, finds the
schedules that lose least, and measures those; it returns a :class:`Front`, which
:func:`read_front` reads from ``front.json``. :class:`TuningSettings` says how to search. Needs
numpy and the runtime; the page needs plotly and jinja2, the tables in a terminal rich.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.tune.report import Front as Front
    from eecompile.tune.report import TuningSettings as TuningSettings
    from eecompile.tune.report import read_front as read_front
    from eecompile.tune.tuning import tune as tune

if not TYPE_CHECKING:  # to which any name would be one of the package's
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "report": "Front TuningSettings read_front",
            "tuning": "tune",
        },
    )
