"""TensorRT and TensorRT-RTX: plans from graphs, by polygraphy's loaders.

Both are one code path: the module (``tensorrt`` or ``tensorrt_rtx``) is an argument.
Polygraphy reads which one it works with when it is imported, and a crash inside the library
takes its process with it, so plans are built in a process of their own
(:mod:`eecompile.compiler.backends._worker`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec

from eecompile.errors import BackendError
from eecompile.recipe import Target

__all__ = ["Flavour", "PlanJob", "build_plan", "check_installed", "check_options"]

Flavour = Literal["tensorrt", "tensorrt_rtx"]


def check_installed(flavour: Flavour) -> None:
    """Pass when the library and polygraphy are installed; neither is imported.

    Raises:
        BackendError: one is not.
    """
    extra = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}[flavour]
    missing = [name for name in (flavour, "polygraphy") if find_spec(name) is None]
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


class PlanJob(msgspec.Struct, frozen=True):
    """One plan to build.

    Attributes:
        source: the segment's ONNX file, in the precision that its types say.
        path: of the plan.
        name: of the segment, for messages.
        target: batch profile, workspace and options.
    """

    source: str
    path: str
    name: str
    target: Target


def build_plan(flavour: Flavour, job: PlanJob, progress: Callable[[int, int], None]) -> None:
    """Build a plan and write it; in a process that works with this flavour only.

    Args:
        flavour: the library.
        job: what to build.
        progress: told of the steps of the whole, done and in all.

    Raises:
        BackendError: the library refuses the graph, or cannot build it.
    """
    library = importlib.import_module(flavour)
    from polygraphy.backend.trt import Profile, engine_bytes_from_network, network_from_onnx_path
    from polygraphy.exception import PolygraphyException

    try:
        built = network_from_onnx_path(job.source, strongly_typed=True)
    except PolygraphyException as error:
        raise _refused(library, job, error) from error
    try:
        monitor = _monitor(library, progress)
        config = _config(flavour, built[1], Profile, job.target, monitor)
        plan = engine_bytes_from_network(built, config=config)
    except PolygraphyException as error:
        raise _failed(flavour, job.name, error) from error
    Path(job.path).write_bytes(memoryview(plan))


def _config(
    flavour: Flavour, network: Any, profile_class: Any, target: Target, monitor: Any
) -> Any:
    profile = profile_class()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        rest = tuple(value.shape)[1:]
        sizes = (target.batch.min, target.batch.opt, target.batch.max)
        profile.add(value.name, *((size, *rest) for size in sizes))
    limits = {}
    if target.workspace_mib is not None:
        pool = importlib.import_module(flavour).MemoryPoolType.WORKSPACE
        limits[pool] = target.workspace_mib * 2**20
    common = {"profiles": [profile], "progress_monitor": monitor, "memory_pool_limits": limits}
    options = dict(target.options)
    if flavour == "tensorrt_rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        named = str(options.get("compute_capabilities", ""))
        pairs = [tuple(map(int, each.split("."))) for each in named.split(",") if each]
        return CreateConfigRTX(
            compute_capabilities=pairs or None, use_gpu=options.get("current_gpu"), **common
        )
    from polygraphy.backend.trt import CreateConfig

    return CreateConfig(
        builder_optimization_level=options.get("optimization_level"),
        version_compatible=options.get("version_compatible"),
        **common,
    )


def _monitor(library: Any, progress: Callable[[int, int], None]) -> Any:
    """The library's own progress: the steps of its outermost phase."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.total = "", 0

        def phase_start(self, phase: str, parent: str | None, total: int) -> None:
            if parent is None:
                self.whole, self.total = phase, total

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self.whole:
                progress(step, self.total)
            return True

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


def _refused(library: Any, job: PlanJob, error: Exception) -> BackendError:
    """Which node the parser refuses, and why: polygraphy only logs that."""
    builder = library.Builder(library.Logger(library.Logger.INTERNAL_ERROR))
    flags = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = library.OnnxParser(network, library.Logger(library.Logger.INTERNAL_ERROR))
    parser.parse_from_file(job.source)
    problems = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = [f"{p.node_operator()} {p.node_name()}: {p.desc()}" for p in problems]
    return BackendError(
        found=f"segment {job.name} refused by {library.__name__}: {'; '.join(reasons) or error}",
        expected="operators and types that it takes",
        remedy="keep that operator in FP32 (keep_fp32), or choose another backend",
    )


def _failed(flavour: Flavour, name: str, error: Exception) -> BackendError:
    return BackendError(
        found=f"{flavour} failing to build segment {name} ({error})",
        expected="a plan",
        remedy="free memory, choose another precision, or mend the target's options",
    )
