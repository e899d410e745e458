"""TensorRT-RTX: plans that are compiled for the GPU when they are opened; built without one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from eecompile.compiler.attention import DecomposeAttention
from eecompile.compiler.backends._tensorrt import check_installed, check_options
from eecompile.compiler.backends._worker import Worker
from eecompile.errors import BackendError
from eecompile.recipe import Target

__all__ = ["LOWERS", "SUFFIX", "builder", "check", "prepare", "runs", "versions"]

SUFFIX = "plan"
LOWERS = True  # the precision lies in the graph


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the plans."""
    return {"tensorrt_rtx": version("tensorrt_rtx")}


def runs() -> bool:
    """Whether plans can be run here: this version builds them only."""
    return False


def check(target: Target) -> None:
    """Pass when plans for this target can be built here.

    Raises:
        BackendError: a package is missing, or an option is none of this backend's.
    """
    check_installed("tensorrt_rtx")
    check_options(target, {"compute_capabilities": str, "current_gpu": bool})
    if target.precision not in ("fp32", "fp16"):
        raise BackendError(
            found=f"precision {target.precision!r} for tensorrt-rtx",
            expected="'fp32' or 'fp16'",
            remedy="choose one of these in the target",
        )


def prepare(model: ir.Model, target: Target) -> None:
    """Bring the joined graph into the form that the library takes.

    It has a kernel for Attention in FP16, for heads of 16 features and more, and none in FP32.
    """
    kernels = range(16, 257, 8) if target.precision == "fp16" else ()
    DecomposeAttention(kernels)(model)


def builder(work: Path) -> AbstractContextManager[Worker]:
    """What builds the plans; its log lies in ``work``."""
    return Worker.opened("tensorrt_rtx", work / "build.log")
