"""TensorRT-RTX: plans that are compiled for the GPU when they are opened; built without one."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from eecompile.backends import BACKENDS
from eecompile.compiler.backends._tensorrt import SUFFIX as SUFFIX
from eecompile.compiler.backends._tensorrt import check_fp8, check_installed
from eecompile.compiler.backends._tensorrt import precision_in_graph as precision_in_graph
from eecompile.compiler.backends._tensorrt import runs as runs
from eecompile.compiler.backends._worker import Worker
from eecompile.compiler.graph.attention import DecomposeAttention
from eecompile.compiler.segments import LOG, check_options
from eecompile.errors import BackendError
from eecompile.store.target import Target


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the plans."""
    return {"tensorrt_rtx": version("tensorrt_rtx")}


def check(target: Target) -> None:
    """Pass when plans for this target can be built here.

    Raises:
        BackendError: a package is missing, or an option is none of this backend's.
    """
    known = {"compute_capabilities": str, "current_gpu": bool, "optimization_level": int}
    check_options(target, known)
    named = str(target.options.get("compute_capabilities", ""))
    wrong = [each for each in named.split(",") if each and not re.fullmatch(r"\d+\.\d", each)]
    if wrong or (named and target.options.get("current_gpu")):
        raise BackendError(
            found=f"compute_capabilities = {named!r}"
            + (" beside current_gpu" if target.options.get("current_gpu") else ""),
            expected="capabilities such as '8.6,8.9', or current_gpu, or neither for all GPUs",
            remedy="fix the target's [options]",
        )
    check_fp8(target, filter(None, named.split(",")))
    check_installed(BACKENDS["tensorrt-rtx"])


def portable(target: Target) -> bool:
    """Whether plans built here may be meant for other machines: unless for this GPU alone."""
    return not target.options.get("current_gpu")


def prepare(model: ir.Model, target: Target) -> None:
    """Bring the joined graph into the form that the library takes.

    It has kernels for Attention in half precision, for heads of 16 features and more, and
    none in FP32.
    """
    kernels = () if target.precision == "fp32" else range(16, 257, 8)
    DecomposeAttention(kernels)(model)


def builder(work: Path, cache: Path) -> AbstractContextManager[Worker]:
    """What builds the plans; its log lies in ``work``. It measures nothing, and needs no cache."""
    return Worker("tensorrt_rtx", work / LOG)
