"""ONNX Runtime: graphs that it has optimised once, sharing one weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from eecompile.compiler.progress import Report
from eecompile.compiler.sessions import optimised_graph
from eecompile.compiler.weights import WeightStore
from eecompile.errors import BackendError
from eecompile.recipe import Target

__all__ = ["LOWERS", "SUFFIX", "check", "compile_segments", "runs", "versions"]

SUFFIX = "onnx"
LOWERS = False


def runs() -> bool:
    """Whether engines can be run here."""
    return True


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the engines."""
    return {"onnxruntime": onnxruntime.__version__}


def check(target: Target) -> None:
    """Pass when engines for this target can be built here.

    Raises:
        BackendError: the precision or an option is none of this backend's.
    """
    if target.precision != "fp32" or target.options:
        raise BackendError(
            found=f"precision {target.precision!r} and options {target.options} for onnxruntime",
            expected="fp32, and no options",
            remedy="choose another backend in the target, or remove them",
        )


def compile_segments(
    folder: Path, models: Mapping[str, ir.Model], target: Target, work: Path, report: Report
) -> None:
    """Optimise each model, and write them to ``folder`` with one weights file."""
    store, optimised = WeightStore(), {}
    for index, (name, model) in enumerate(models.items()):
        report(f"optimising {name}", index, len(models))
        plain, fused = work / f"plain-{name}", work / f"fused-{name}"
        ir.save(model, plain, external_data=f"{plain.stem}.bin")
        optimised_graph(plain, fused)
        optimised[name] = ir.load(fused)
        store.add(optimised[name])
        plain.unlink()
        plain.with_suffix(".bin").unlink(missing_ok=True)
    store.save(folder, optimised)
