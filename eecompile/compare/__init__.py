"""Engine sets side by side, and beside the network that they were made of.

:func:`compare` measures and returns a :class:`ComparisonResult`; :class:`Comparison` is the form of
``report.json``, which :func:`read_report` reads. The runners give one exit of a bundle, an
engine set or the trained network to polygraphy's ``Comparator``, at the inputs that
:func:`points` makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names

if TYPE_CHECKING:
    from eecompile.compare.checks import checked_bundle
    from eecompile.compare.comparison import ComparisonResult, compare
    from eecompile.compare.measure import points
    from eecompile.compare.report import Comparison, read_report
    from eecompile.compare.runners import (
        EngineRunner,
        OnnxRuntimeRunner,
        OpenvinoRunner,
        TensorrtRunner,
        TorchRunner,
    )
    from eecompile.compare.trained import TrainedNetwork

__all__ = [
    "Comparison",
    "ComparisonResult",
    "EngineRunner",
    "OnnxRuntimeRunner",
    "OpenvinoRunner",
    "TensorrtRunner",
    "TorchRunner",
    "TrainedNetwork",
    "checked_bundle",
    "compare",
    "points",
    "read_report",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "checks": "checked_bundle",
        "comparison": "ComparisonResult compare",
        "measure": "points",
        "report": "Comparison read_report",
        "runners": "EngineRunner OnnxRuntimeRunner OpenvinoRunner TensorrtRunner TorchRunner",
        "trained": "TrainedNetwork",
    },
)
