"""Quality of samples beside real data, on the features of a network that knows pictures.

:func:`evaluate` computes Fréchet distance, precision and recall of the samples of several
schedules; it takes :class:`Options` and returns an :class:`Evaluation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.evaluate.evaluation import Options as Options
    from eecompile.evaluate.evaluation import evaluate as evaluate
    from eecompile.evaluate.report import Evaluation as Evaluation

if not TYPE_CHECKING:  # to which any name would be one of the package's
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "evaluation": "Options evaluate",
            "report": "Evaluation",
        },
    )
