"""ONNX Runtime: graphs that it has optimised once, sharing one weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from eecompile.compiler.progress import Report
from eecompile.compiler.sessions import optimised_graph
from eecompile.compiler.weights import WeightStore

__all__ = ["SUFFIX", "compile_segments", "versions"]

SUFFIX = "onnx"


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the engines."""
    return {"onnxruntime": onnxruntime.__version__}


def compile_segments(
    folder: Path, models: Mapping[str, ir.Model], work: Path, report: Report
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
    store.save(folder, optimised)
