"""Engine sets side by side, and beside the network that they were made of.

:func:`compare` measures and returns a :class:`ComparisonResult`; :class:`Comparison` is the form of
``report.json``, which :func:`read_report` reads. The runners give one exit of a bundle, an
engine set or the trained network to polygraphy's ``Comparator``, at the inputs that
:func:`points` makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eecompile.lazy import lazy_names
from eecompile.system import check_docstrings

if TYPE_CHECKING:
    from eecompile.compare.checks import checked_bundle as checked_bundle
    from eecompile.compare.comparison import ComparisonResult as ComparisonResult
    from eecompile.compare.comparison import compare as compare
    from eecompile.compare.measure import points as points
    from eecompile.compare.report import Comparison as Comparison
    from eecompile.compare.report import read_report as read_report
    from eecompile.compare.runners import EngineRunner as EngineRunner
    from eecompile.compare.runners import OnnxRuntimeRunner as OnnxRuntimeRunner
    from eecompile.compare.runners import OpenvinoRunner as OpenvinoRunner
    from eecompile.compare.runners import TensorrtRunner as TensorrtRunner
    from eecompile.compare.runners import TorchRunner as TorchRunner
    from eecompile.compare.trained import TrainedNetwork as TrainedNetwork

check_docstrings("polygraphy")
if not TYPE_CHECKING:  # to which any name would be one of the package's
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
