"""Builds plans with TensorRT or TensorRT-RTX, by polygraphy's loaders.

Imported only by the process that builds (:mod:`eecompile.compiler.backends._worker`), whose
environment says which library it is. Its calls are typed against the stubs of TensorRT,
whose interface TensorRT-RTX shares.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polygraphy.backend.trt import (
    CreateConfig,
    PostprocessConfig,
    Profile,
    engine_bytes_from_network,
    network_from_onnx_path,
)
from polygraphy.exception import PolygraphyException

from eecompile.compiler.backends._tensorrt import SWITCH, PlanJob
from eecompile.errors import BackendError
from eecompile.measure.machine import gpus
from eecompile.store.target import Target

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = importlib.import_module("tensorrt_rtx" if os.environ[SWITCH] == "1" else "tensorrt")


_RTX = trt.__name__ == "tensorrt_rtx"


def build_plan(job: PlanJob, progress: Callable[[int, int], None]) -> None:
    """Build a plan and write it; ``progress`` is told of its steps, done and in all.

    Raises:
        BackendError: the library refuses the graph, or cannot build it.
    """
    # TensorRT 11 has no other networks than strongly typed ones, and may drop the flag.
    typed = True if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else None
    try:
        built = network_from_onnx_path(job.source, strongly_typed=typed)
    except PolygraphyException as error:
        raise _refused(job, error) from error
    cache = _usable(job.timing_cache, built[0])
    try:
        config = _config(built[1], job, _Monitor(progress))
        plan = engine_bytes_from_network(built, config=config, save_timing_cache=cache)
    except PolygraphyException as error:
        raise BackendError(
            found=f"{trt.__name__} failing to build segment {job.name} ({error})",
            expected="a plan",
            remedy="free memory, choose another precision, or fix the target's options",
        ) from error
    data = memoryview(plan)
    Path(job.path).write_bytes(data)
    if _RTX and gpus():
        _warn_of_validity(data, job)


def _warn_of_validity(plan: memoryview, job: PlanJob) -> None:
    """Say in the log where this machine's GPU cannot run a plan, or not at its best."""
    library: Any = trt  # TensorRT has nothing of the kind
    runtime = library.Runtime(library.Logger(library.Logger.INTERNAL_ERROR))
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != library.EngineValidity.VALID:
        print(f"[W] {job.name} is {validity.name} on this machine's GPU ({diagnostics})")


def _usable(path: str, builder: trt.Builder) -> str | None:
    """The timing cache; removed where the library cannot read it, as after a killed build."""
    if path and Path(path).is_file():
        config = builder.create_builder_config()
        cache = config.create_timing_cache(Path(path).read_bytes())
        if cache is None or not config.set_timing_cache(cache, False):
            Path(path).unlink()
    return path or None


def _config(network: trt.INetworkDefinition, job: PlanJob, monitor: trt.IProgressMonitor) -> Any:
    profile = Profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        profile.add(value.name, *_shapes(value, job.target))
    common: dict[str, Any] = {"profiles": [profile], "progress_monitor": monitor}
    if job.target.workspace_mib is not None:
        limit = job.target.workspace_mib * 2**20
        common["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: limit}
    options = dict(job.target.options)
    if "optimization_level" in options:
        common["builder_optimization_level"] = options["optimization_level"]
    if _RTX:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        named = str(options.get("compute_capabilities", ""))
        pairs = [tuple(map(int, each.split("."))) for each in named.split(",") if each]
        made = CreateConfigRTX(
            compute_capabilities=pairs or None, use_gpu=options.get("current_gpu"), **common
        )
        return PostprocessConfig(made, _set_flags)
    if job.timing_cache and Path(job.timing_cache).is_file():
        common["load_timing_cache"] = job.timing_cache
    if options.get("hardware_compatible"):
        common["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    made = CreateConfig(version_compatible=options.get("version_compatible"), **common)
    return PostprocessConfig(made, _set_flags)


def _set_flags(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig
) -> None:
    """FP32 is FP32: by default the library rounds the factors of products to 10 bits.

    Plans of TensorRT-RTX take all their memory from the caller, so that trajectories can be
    captured as CUDA graphs.
    """
    config.clear_flag(trt.BuilderFlag.TF32)
    if _RTX:
        library: Any = trt  # TensorRT has no such flag
        config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)


def _shapes(value: trt.ITensor, target: Target) -> list[tuple[int, ...]]:
    """Smallest, usual and largest shape of an input; only the batch may vary."""
    rest = [value.shape[axis] for axis in range(1, len(value.shape))]
    if any(length < 0 for length in rest):
        raise BackendError(
            found=f"input {value.name} of shape [batch, {rest}], free in more than the batch",
            expected="samples of one shape, for plans",
            remedy="remove state.resizable from the recipe and export again",
        )
    return [(size, *rest) for size in (target.batch.min, target.batch.opt, target.batch.max)]


class _Monitor(trt.IProgressMonitor):
    """The library's own progress: the steps of its outermost phase."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        super().__init__()
        self._progress = progress
        self._whole, self._total = "", 0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        if parent_phase is None:
            self._whole, self._total = phase_name, num_steps

    def step_complete(self, phase_name: str, step: int) -> bool:
        if phase_name == self._whole:
            self._progress(step, self._total)
        return True

    def phase_finish(self, phase_name: str) -> None:
        pass


def _refused(job: PlanJob, error: Exception) -> BackendError:
    """Which node the parser refuses, and why: polygraphy only logs that."""
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.INTERNAL_ERROR))
    parser.parse_from_file(job.source)
    problems = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = [f"{p.node_operator()} {p.node_name()}: {p.desc()}" for p in problems]
    return BackendError(
        found=f"segment {job.name} refused by {trt.__name__}: {'; '.join(reasons) or error}",
        expected="operators and types that it takes",
        remedy="keep that operator in FP32 (keep_fp32), or choose another backend",
    )
