"""What the backends of TensorRT and TensorRT-RTX share, before a plan is built.

Both are one code path (:mod:`eecompile.compiler.backends._plan`), which works with one of
the two libraries. A crash inside the library takes its process with it, and polygraphy reads
which library it works with when it is imported, so plans are built in a process of their own
(:mod:`eecompile.compiler.backends._worker`). Nothing here imports either.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal

import msgspec

from eecompile.backends import BACKENDS, Backend
from eecompile.errors import BackendError
from eecompile.measure.machine import gpus
from eecompile.store.target import Target

SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"  # polygraphy's: 1 for TensorRT-RTX, 0 for TensorRT

SUFFIX = "plan"  # of the engines' file names
_FP8 = (8, 9)  # the first compute capability with it
Flavour = Literal["tensorrt", "tensorrt_rtx"]


def runs(target: Target) -> bool:
    """Whether plans can be run here: with their library, cuda.core and a GPU."""
    return _installed(BACKENDS[target.backend].library) and _installed("cuda.core") and bool(gpus())


def precision_in_graph(target: Target) -> bool:
    """Whether the precision lies in the graph: always, as the networks are strongly typed."""
    return True


def check_installed(backend: Backend) -> None:
    """Pass when the library and polygraphy are installed; neither is imported.

    Raises:
        BackendError: one is not.
    """
    missing = [name for name in (backend.library, "polygraphy") if not _installed(name)]
    if missing:
        raise BackendError(
            found=f"no package {' and '.join(missing)}",
            expected=f"both {backend.library} and polygraphy, to build plans",
            remedy=backend.install,
        )


def check_fp8(target: Target, capabilities: Iterable[str]) -> None:
    """Pass when GPUs of these compute capabilities have the products that the target asks for.

    Raises:
        BackendError: it asks for FP8, and one has none.
    """
    old = [each for each in capabilities if tuple(map(int, each.split("."))) < _FP8]
    if old and target.quantise is not None and target.quantise.kind == "fp8":
        raise BackendError(
            found=f"FP8 for compute capability {', '.join(old)}",
            expected="8.9 (Ada) or newer, which have products in FP8",
            remedy="choose quantise.kind 'int8' for these GPUs, in a target of its own",
        )


def _installed(module: str) -> bool:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # the package that it is in
        return False
    return spec is not None and spec.origin is not None  # a folder of stubs has none


class PlanJob(msgspec.Struct, frozen=True):
    """One plan to build.

    Attributes:
        source: the segment's ONNX file, in the precision that its types say.
        path: of the plan.
        name: of the segment, for messages.
        target: batch profile, workspace and options.
        timing_cache: file of measured kernels, read and extended; "" for none.
    """

    source: str
    path: str
    name: str
    target: Target
    timing_cache: str = ""
