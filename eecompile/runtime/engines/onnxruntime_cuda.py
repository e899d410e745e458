"""ONNX Runtime on NVIDIA GPUs, by its CUDA or TensorRT provider; tensors stay on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eecompile.backends import BACKENDS
from eecompile.errors import BackendError, one_line
from eecompile.measure.machine import gpus
from eecompile.runtime.cuda.device import CudaDevice
from eecompile.runtime.engines._onnxruntime import (
    PROVIDERS,
    import_onnxruntime,
    open_session,
    provider,
    session_options,
)
from eecompile.runtime.engines.device import DeviceEngine, shared_device
from eecompile.runtime.protocol import Engine
from eecompile.runtime.trajectory.device import DeviceEvaluation
from eecompile.store.manifest import EngineManifest, ExitPlan, Segment


def open_cuda(
    folder: Path, manifest: EngineManifest, threads: int, share_device_with: Engine | None = None
) -> OnnxRuntimeCudaEngine:
    """See :func:`eecompile.runtime.opening.engine_from_manifest`.

    Threads are for operators that the provider, which is not ``cpu``, leaves to the CPU.

    Raises:
        BackendError: onnxruntime, its provider or a GPU is missing, or it refuses a segment.
    """
    runtime = import_onnxruntime()
    wanted = PROVIDERS[provider(manifest.target)]
    if wanted not in runtime.get_available_providers():
        raise BackendError(
            found=f"an onnxruntime {runtime.__version__} without {wanted}",
            expected="that provider, for this engine set",
            remedy=f"pip uninstall -y onnxruntime, then {BACKENDS['onnxruntime-cuda'].install}",
        )
    if not gpus():
        raise BackendError(
            found="no NVIDIA GPU",
            expected=f"one, for onnxruntime's {wanted}",
            remedy="run the engines on a machine with a GPU and its driver, or build for the "
            "CPU (engines/cpu.toml)",
        )
    with shared_device(share_device_with) as device, device.using():
        engine = OnnxRuntimeCudaEngine(folder, manifest, runtime, device, threads)
    engine.owns_device = not isinstance(share_device_with, DeviceEngine)
    return engine


class OnnxRuntimeCudaEngine(DeviceEngine):
    """Runs an exit's segments in order, on the device's stream.

    Runs are queued without waiting for the GPU, so that trajectories can be recorded: what ONNX
    Runtime allocates in a run, it has by then from the runs before. Memory between segments is
    used again by later runs, which the stream does in their turn.
    This thread has the device in use while the engine is made.
    """

    place = "cuda"  # ONNX Runtime's name for where the memory is

    def __init__(
        self,
        folder: Path,
        manifest: EngineManifest,
        runtime: Any,
        device: CudaDevice,
        threads: int,
    ) -> None:
        target, interface = manifest.target, manifest.interface
        super().__init__(device, interface, target.precision, target.batch.max)
        self._plans: dict[int, ExitPlan] = {plan.depth: plan for plan in manifest.exits}
        self._segments = manifest.segments
        self.spans = {(span.start, span.stop): span.tensors for span in manifest.spans}
        self._kinds = {
            name: tensor
            for tensors in self.spans.values()
            for tensor in tensors
            for name in (tensor.leaves, tensor.enters)
            if name
        }
        self._made: dict[str, Any] = {}  # in the last evaluation
        if hasattr(runtime, "preload_dlls"):
            runtime.preload_dlls()  # of the nvidia-* packages, which no search path names
        options = session_options(runtime, threads)
        self._queued = runtime.RunOptions()
        self._queued.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._sessions = [
            open_session(runtime, folder, segment, options, manifest, providers)
            for segment, providers in ((s, _providers(manifest, s, device)) for s in self._segments)
        ]

    def enqueue(self, evaluation: DeviceEvaluation) -> None:
        """Evaluate; see :meth:`DeviceEvaluator.enqueue`."""
        depth, batch, tensors = evaluation.depth, evaluation.batch, evaluation.tensors
        plan = self._plans[depth]
        places = {**evaluation.inputs, **tensors}
        results = {**dict(zip(plan.outputs, evaluation.outputs, strict=True)), **tensors}
        if evaluation.stretch.above < 0:
            self._made = {}
        made = self._made
        for index in plan.segments:
            session, segment = self._sessions[index], self._segments[index]
            if not evaluation.stretch.holds(segment.level):
                continue
            binding = session.io_binding()
            for name in segment.inputs:
                if name in made and name not in tensors:
                    binding.bind_ortvalue_input(name, made[name])
                else:
                    binding.bind_input(name, *self._array(name, batch), places[name])
            for name in segment.outputs:
                if name in results:
                    binding.bind_output(name, *self._array(name, batch), results[name])
                else:
                    binding.bind_output(name, self.place, self.device.ordinal)
            try:
                session.run_with_iobinding(binding, self._queued)
            except Exception as error:  # onnxruntime's errors share no base class
                raise BackendError(
                    found=f"exit {depth} failing with a batch of {batch[0]} ({one_line(error)})",
                    expected="an evaluation",
                    remedy="free GPU memory if that is what it lacks, or check the conditions' "
                    "values",
                ) from error
            made |= dict(zip(segment.outputs, binding.get_outputs(), strict=True))

    def settle(self) -> bool:
        """See :meth:`DeviceEvaluator.settle`."""
        return True

    def _array(
        self, name: str, batch: tuple[int, ...]
    ) -> tuple[str, int, type[np.generic], tuple[int, ...]]:
        """Device, its number, type and shape of a tensor; results are like ``x``."""
        place = (self.place, self.device.ordinal)
        if name == "t":
            return (*place, np.float32, batch[:1])
        if (tensor := self._kinds.get(name)) is not None:
            return (*place, np.dtype(tensor.dtype).type, (*batch[:1], *tensor.shape))
        if (spec := self.interface.conditions.get(name)) is not None:
            return (*place, np.dtype(spec.dtype).type, (*batch[:1], *spec.shape))
        return (*place, np.float32, batch)

    def close(self) -> None:
        """Release the sessions and all memory."""
        with self.device.using():
            self._sessions.clear()
        super().close()


def _providers(manifest: EngineManifest, segment: Segment, device: CudaDevice) -> list[Any]:
    """ONNX Runtime's providers for a segment, best first, all on the device's stream."""
    common = {"user_compute_stream": str(device.handle)}
    if device.ordinal:  # 0 is the default, and ONNX Runtime 1.31 warns where it is named
        common["device_id"] = str(device.ordinal)
    chain = [(PROVIDERS["cuda"], common), PROVIDERS["cpu"]]
    if provider(manifest.target) != "tensorrt":
        return chain
    return [(PROVIDERS["tensorrt"], common | _of_tensorrt(manifest, segment)), *chain]


def _of_tensorrt(manifest: EngineManifest, segment: Segment) -> dict[str, str]:
    """Provider options for TensorRT: precision and optimisation-profile shapes.

    Without those sizes it builds again for every size that it meets; they are known where
    a segment reads nothing but the network's inputs.
    """
    target, interface = manifest.target, manifest.interface
    options = {"trt_fp16_enable": "True"} if target.precision == "fp16" else {}
    shapes = {"x": interface.state.shape, "t": ()}
    shapes |= {name: spec.shape for name, spec in interface.conditions.items()}
    if interface.state.resizable is None and set(segment.inputs) <= set(shapes):
        batch = target.batch
        for name, size in (("min", batch.min), ("opt", batch.opt), ("max", batch.max)):
            options[f"trt_profile_{name}_shapes"] = ",".join(
                f"{each}:{'x'.join(map(str, (size, *shapes[each])))}" for each in segment.inputs
            )
    return options
