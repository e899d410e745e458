"""TensorRT: plans for the GPU of the machine that builds them, whose kernels it measures."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import metadata
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
from eecompile.measure.machine import gpus
from eecompile.store.target import Target

# With TensorRT 11 on, there is a kernel for Attention in these widths of a head.
_ATTENTION_SINCE = 11
_WIDTHS = range(16, 257, 8)


def versions() -> dict[str, str]:
    """What shapes the plans: the library, and the GPU with its driver."""
    found = {"tensorrt": _version()}
    for gpu in gpus()[:1]:
        found |= {
            "GPU": gpu.name,
            "compute capability": gpu.compute_capability,
            "driver": gpu.driver,
        }
    return found


def check(target: Target) -> None:
    """Pass when plans for this target can be built here.

    Raises:
        BackendError: a package or a GPU is missing, or an option is none of this backend's.
    """
    known = {
        "optimization_level": int,
        "version_compatible": bool,
        "hardware_compatible": bool,
        "through": str,
    }
    check_options(target, known)
    check_installed(BACKENDS["tensorrt"])
    found = gpus()
    if not found:
        raise BackendError(
            found="no NVIDIA GPU",
            expected="the GPU that the plans are for: TensorRT measures its kernels on it",
            remedy="build there, or for TensorRT-RTX, which needs none (engines/rtx-fp16.toml)",
        )
    check_fp8(target, filter(None, [found[0].compute_capability]))


def portable(target: Target) -> bool:
    """Whether plans built here may be meant for other machines: they are for this GPU."""
    return False


def prepare(model: ir.Model, target: Target) -> None:
    """Bring the joined graph into the form that the library takes."""
    newest = int(_version().partition(".")[0] or 0) >= _ATTENTION_SINCE
    keep = _WIDTHS if newest and target.precision != "fp32" else ()
    DecomposeAttention(keep)(model)


def builder(work: Path, cache: Path) -> AbstractContextManager[Worker]:
    """What builds the plans; its log lies in ``work``, and all share one timing cache."""
    return Worker("tensorrt", work / LOG, cache)


def _version() -> str:
    """Of TensorRT, or "" where it is not installed; it need not be imported for that."""
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""
