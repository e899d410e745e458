"""What the backends of TensorRT and TensorRT-RTX share, before a plan is built.

Both are one code path (:mod:`eecompile.compiler.backends._plan`), which works with one of
the two libraries. A crash inside the library takes its process with it, and polygraphy reads
which library it works with when it is imported, so plans are built in a process of their own
(:mod:`eecompile.compiler.backends._worker`). Nothing here imports either.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import Literal

import msgspec

from eecompile.errors import BackendError
from eecompile.measure.machine import gpus
from eecompile.store.target import Target

__all__ = [
    "SWITCH",
    "Flavour",
    "PlanJob",
    "check_installed",
    "check_options",
    "check_precision",
    "lowers",
    "runs",
]

SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"  # polygraphy's: 1 for TensorRT-RTX, 0 for TensorRT

Flavour = Literal["tensorrt", "tensorrt_rtx"]


def runs(target: Target) -> bool:
    """Whether plans can be run here: with their library, cuda.core and a GPU."""
    library = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}[target.backend]
    return _installed(library) and _installed("cuda.core") and bool(gpus())


def lowers(target: Target) -> bool:
    """Whether the precision lies in the graph: always, as the networks are strongly typed."""
    return True


def check_installed(flavour: Flavour) -> None:
    """Pass when the library and polygraphy are installed; neither is imported.

    Raises:
        BackendError: one is not.
    """
    extra = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}[flavour]
    missing = [name for name in (flavour, "polygraphy") if not _installed(name)]
    if missing:
        raise BackendError(
            found=f"no package {' and '.join(missing)}",
            expected=f"both {flavour} and polygraphy, to build plans",
            remedy=f"pip install 'eecompile[{extra}]'",
        )


def check_options(target: Target, known: dict[str, type]) -> None:
    """Pass when every option of the target is known, and of its type.

    Raises:
        BackendError: one is not.
    """
    for name, value in target.options.items():
        if name not in known or not isinstance(value, known[name]):
            raise BackendError(
                found=f"option {name} = {value!r} for {target.backend}",
                expected=", ".join(f"{n} ({kind.__name__})" for n, kind in known.items()),
                remedy="mend or remove it in the target's [options]",
            )


def check_precision(target: Target, known: Collection[str]) -> None:
    """Pass when the backend has the target's precision.

    Raises:
        BackendError: it has not.
    """
    if target.precision not in known:
        raise BackendError(
            found=f"precision {target.precision!r} for {target.backend}",
            expected=" or ".join(map(repr, known)),
            remedy="choose one of these in the target",
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
