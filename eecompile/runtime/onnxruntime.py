"""The ONNX Runtime backend: the CPU, and NVIDIA GPUs by CUDA or TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eecompile.bundle import EngineManifest, ExitPlan, Segment
from eecompile.errors import BackendError
from eecompile.recipe import Target
from eecompile.runtime.handle import Handle

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["PROVIDERS", "OnnxRuntimeEngine", "open_backend", "provider"]

Array = NDArray[np.float32]
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's execution providers, by the target's ``options.provider``."""


def provider(target: Target) -> str:
    """The target's execution provider, by our name; ``cpu`` unless it says otherwise."""
    return str(target.options.get("provider", "cpu"))


def open_backend(folder: Path, manifest: EngineManifest, threads: int) -> OnnxRuntimeEngine:
    """The engine of an engine set whose files have been checked.

    Raises:
        BackendError: onnxruntime is missing, or refuses a segment.
    """
    return OnnxRuntimeEngine(folder, manifest, threads)


class OnnxRuntimeEngine(Handle):
    """Runs an exit's segments in order; tensors between them are not copied."""

    def __init__(self, folder: Path, manifest: EngineManifest, threads: int) -> None:
        runtime = _import_onnxruntime()
        self.exits = manifest.interface.exits
        self.precision = manifest.target.precision
        self.max_batch = manifest.target.batch.max
        self._value = runtime.OrtValue.ortvalue_from_numpy
        self._plans: dict[int, ExitPlan] = {plan.depth: plan for plan in manifest.exits}
        self._segments = manifest.segments
        options = _options(runtime, threads)
        self._sessions = [
            _session(runtime, folder, segment, options, manifest) for segment in manifest.segments
        ]
        self._last_use = {plan.depth: _last_uses(plan, self._segments) for plan in manifest.exits}

    def evaluate(
        self, depth: int, x: Array, t: Array, conditions: Mapping[str, NDArray[np.generic]]
    ) -> Sequence[Array]:
        """The outputs at ``depth``; see :meth:`eecompile.runtime.engine.Engine.evaluate`."""
        plan = self._plans[depth]
        if len(plan.segments) == 1:
            return self._evaluate_one(plan, {"x": x, "t": t, **conditions})
        values: dict[str, Any] = {"x": self._value(x), "t": self._value(t)}
        values |= {name: self._value(array) for name, array in conditions.items()}
        for index, finished in zip(plan.segments, self._last_use[depth], strict=True):
            segment = self._segments[index]
            feeds = {name: values[name] for name in segment.inputs}
            results = self._sessions[index].run_with_ort_values(segment.outputs, feeds)
            values.update(zip(segment.outputs, results, strict=True))
            for name in finished:
                del values[name]
        return [values[name].numpy() for name in plan.outputs]

    def _evaluate_one(
        self, plan: ExitPlan, values: dict[str, NDArray[np.generic]]
    ) -> Sequence[Array]:
        index = plan.segments[0]
        feeds = {name: values[name] for name in self._segments[index].inputs}
        outputs: list[Array] = self._sessions[index].run(plan.outputs, feeds)
        return outputs

    def close(self) -> None:
        """Release the sessions."""
        self._sessions.clear()


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            found=f"no usable package onnxruntime ({error})",
            expected="it, to run this engine set",
            remedy="pip install 'eecompile[cpu]'",
        ) from error
    return onnxruntime


def _options(runtime: Any, threads: int) -> onnxruntime.SessionOptions:
    options = runtime.SessionOptions()
    # Fusions were made at build time; what is left is the layout for this processor.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, not printed
    # Threads spin within a run and sleep between runs: those of an idle session would
    # take the cores from the one that works. A pool that all sessions share would do as
    # well, but onnxruntime then refuses every session of the host that has its own.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _session(
    runtime: Any,
    folder: Path,
    segment: Segment,
    options: onnxruntime.SessionOptions,
    manifest: EngineManifest,
) -> onnxruntime.InferenceSession:
    wanted = PROVIDERS[provider(manifest.target)]
    if wanted not in runtime.get_available_providers():
        raise BackendError(
            found=f"an onnxruntime {runtime.__version__} without {wanted}",
            expected="that provider, for this engine set",
            remedy="pip uninstall onnxruntime, then pip install 'eecompile[gpu]'",
        )
    providers = list(dict.fromkeys((wanted, PROVIDERS["cpu"])))
    try:
        path = str(folder / segment.file)
        session = runtime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class
        raise BackendError(
            found=f"{segment.file}, built with onnxruntime {manifest.versions['onnxruntime']}, "
            f"refused by onnxruntime {runtime.__version__} ({' '.join(str(error).split())[:300]})",
            expected="a segment that it can load",
            remedy="build the engine set again on this machine",
        ) from error
    if session.get_providers()[0] != wanted:  # it falls back to the CPU without an error
        raise BackendError(
            found=f"{wanted} that does not start on this machine",
            expected="an NVIDIA GPU with a driver for that onnxruntime's CUDA",
            remedy="run 'eecompile doctor', which says what is missing",
        )
    return session


def _last_uses(plan: ExitPlan, segments: tuple[Segment, ...]) -> list[list[str]]:
    """For each segment of a plan, the tensors that no later one reads."""
    pending = set(plan.outputs)
    finished = []
    for index in reversed(plan.segments):
        segment = segments[index]
        touched = dict.fromkeys((*segment.inputs, *segment.outputs))
        finished.append([name for name in touched if name not in pending])
        pending |= set(touched)
    return finished[::-1]
