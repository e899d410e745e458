"""ONNX Runtime: graphs that it has optimised once, sharing one weights file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from eecompile.compiler.progress import Report
from eecompile.compiler.sessions import optimised_graph
from eecompile.compiler.weights import WeightStore
from eecompile.measure.machine import gpus
from eecompile.runtime.engines._onnxruntime import PROVIDERS, provider
from eecompile.store.target import Target

SUFFIX = "onnx"


def versions() -> dict[str, str]:
    """Versions of the libraries that shape the engines."""
    return {"onnxruntime": onnxruntime.__version__}


def check(target: Target) -> None:
    """Pass when engines for this target can be built here; a GPU is not needed.

    Raises:
        BackendError: an option is none of this backend's.
    """
    provider(target)


def runs(target: Target) -> bool:
    """Whether engines can be run here: on a GPU, with the provider and cuda.core."""
    name = provider(target)
    if name == "cpu":
        return True
    available = PROVIDERS[name] in onnxruntime.get_available_providers()
    return available and find_spec("cuda") is not None and bool(gpus())


def portable(target: Target) -> bool:
    """Whether engines built here may be meant for other machines: those for a GPU."""
    return provider(target) != "cpu"


def precision_in_graph(target: Target) -> bool:
    """Whether the precision lies in the graph, which is lowered, and verified, before building.

    Graphs for a GPU are, as they may be built where they cannot run.
    """
    return target.precision != "fp32" or portable(target)


def prepare(model: ir.Model, target: Target) -> None:
    """Nothing: operators without a kernel are written out when the engine is opened."""


def compile_segments(
    folder: Path, models: Mapping[str, ir.Model], target: Target, work: Path, report: Report
) -> None:
    """Optimise each model, and write them to ``folder`` with one weights file.

    Graphs for a GPU are optimised when they are opened: fusions differ by provider.
    """
    store, optimised = WeightStore(), {}
    for index, (name, model) in enumerate(models.items()):
        report(f"optimising {name}", index, len(models))
        if provider(target) != "cpu":
            optimised[name] = model
            store.add(model)
            continue
        plain, fused = work / f"plain-{name}", work / f"fused-{name}"
        ir.save(model, plain, external_data=f"{plain.stem}.bin")
        optimised_graph(plain, fused)
        optimised[name] = ir.load(fused)
        store.add(optimised[name])
        plain.unlink()
        plain.with_suffix(".bin").unlink(missing_ok=True)
    store.save(folder, optimised)


def build_companion(
    model: ir.Model, folder: Path, name: str, target: Target, work: Path
) -> tuple[str, str]:
    """Optimise the graph of a companion, and write it with its weights to ``folder``."""
    file = f"{name}.{SUFFIX}"
    if provider(target) == "cpu":
        plain, fused = work / f"plain-{file}", work / f"fused-{file}"
        ir.save(model, plain, external_data=f"{plain.stem}.bin")
        optimised_graph(plain, fused)
        model = ir.load(fused)
    store = WeightStore(f"{name}.safetensors")
    store.add(model)
    store.save(folder, {file: model})
    return file, store.file
