"""The TensorRT and TensorRT-RTX backends: plans on NVIDIA GPUs.

Both libraries have the same interface, but for the kernels that TensorRT-RTX compiles when it
opens a plan. Nothing of a library is called before the plans are known to fit it and the GPU:
where they do not, it may end its process.
"""

from __future__ import annotations

import importlib
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eecompile.backends import BACKENDS, FOR_OTHER_GPUS
from eecompile.errors import BackendError, one_line
from eecompile.measure.machine import gpus
from eecompile.runtime.cuda.device import CudaDevice
from eecompile.runtime.cuda.kernel_cache import KernelCache
from eecompile.runtime.engines._files import opening
from eecompile.runtime.engines.device import DeviceEngine, shared_device
from eecompile.runtime.protocol import Engine
from eecompile.runtime.trajectory.device import DeviceEvaluation
from eecompile.store.manifest import EngineManifest, ExitPlan, Segment
from eecompile.store.target import Target

if TYPE_CHECKING:
    import tensorrt as trt


LOG = logging.getLogger("eecompile.runtime")
_RTX = "tensorrt-rtx"
# What runs version-compatible plans as well as the library that builds them.
_LEAN = (BACKENDS["tensorrt-lean"].library, "tensorrt_lean_bindings", "tensorrt_dispatch")
_LOGGERS: dict[str, Any] = {}
_BUILD_AGAIN = "build the engine set again with the library that is installed here"


def open_backend(
    folder: Path, manifest: EngineManifest, threads: int, share_device_with: Engine | None = None
) -> TensorrtEngine:
    """See :func:`eecompile.runtime.opening.engine_from_manifest`; threads are of no use here.

    Raises:
        BackendError: a package or a GPU is missing, they are not those that the plans were
            built for, or the library refuses a plan.
    """
    library = import_library(manifest.target)
    check_version(str(library.__version__), manifest)
    if not gpus():
        raise BackendError(
            found="no NVIDIA GPU",
            expected=f"one, to run plans of {manifest.target.backend}",
            remedy="run them on a machine with a GPU and its driver, or build for the CPU "
            "(engines/cpu.toml); 'eecompile doctor' says what runs here",
        )
    with shared_device(share_device_with) as device:
        check_gpu(device.name, device.compute_capability, manifest)
        with device.using():
            opened = TensorrtEngine(folder, manifest, library, device, share_device_with)
    opened.owns_device = not isinstance(share_device_with, DeviceEngine)
    return opened


def import_library(target: Target) -> Any:
    """The library that runs a target's plans; its lean runtime where that will do."""
    names = [BACKENDS[target.backend].library]
    if target.options.get("version_compatible"):
        names += _LEAN
    failures = []
    for name in names:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            failures.append(f"{name}: {one_line(error)}")
            continue
        if hasattr(module, "Runtime"):
            return module
        failures.append(f"{name}: no code in it")  # a folder of stubs
    raise BackendError(
        found=f"no usable package {names[0]} ({'; '.join(failures)})",
        expected="it, to run this engine set",
        remedy=BACKENDS[target.backend].install_to_run,
    )


def check_version(found: str, manifest: EngineManifest) -> None:
    """Raise BackendError unless plans of this engine set may run in this version of their library.

    TensorRT runs plans of its own major and minor version, and version-compatible ones of
    older versions; TensorRT-RTX those of its own release only.
    """
    target = manifest.target
    library = BACKENDS[target.backend].library
    built = manifest.versions.get(library, "")
    length = 3 if target.backend == _RTX else 2
    ours, theirs = _release(found)[:length], _release(built)[:length]
    older = bool(target.options.get("version_compatible")) and target.backend != _RTX
    if not theirs or ours == theirs or (older and theirs < ours):
        return
    wanted = ".".join(map(str, theirs))
    raise BackendError(
        found=f"{target.backend} {found}, and plans built with {built}",
        expected=f"version {wanted}" + (" or newer" if older else ""),
        remedy=f"pip install '{library}=={wanted}.*', or {_BUILD_AGAIN}",
    )


def check_gpu(name: str, capability: str, manifest: EngineManifest) -> None:
    """Raise BackendError unless plans of this engine set may run on a GPU of that capability."""
    options, versions = manifest.target.options, manifest.versions
    if manifest.target.backend == _RTX:
        named = str(options.get("compute_capabilities", ""))
        known = [each for each in named.split(",") if each]
        oldest, built = "7.5", f"compute capability {' or '.join(known)}"
    elif options.get("hardware_compatible"):
        known, oldest, built = [], "8.0", ""
    else:
        known, oldest = [versions.get("compute capability", "")], "0.0"
        built = f"{versions.get('GPU', 'a GPU')}, compute capability {known[0]}"
        if name != versions.get("GPU", name) and capability in known:
            LOG.warning("plans measured on %s run on %s", versions["GPU"], name)
    fits = not any(known) or capability in known
    if fits and _release(capability) >= _release(oldest):
        return
    raise BackendError(
        found=f"{name}, compute capability {capability}",
        expected=f"{built}, for which the plans were built"
        if not fits
        else f"compute capability {oldest} or newer",
        remedy="run them on such a GPU, or build the engine set again for this one",
    )


def check_validity(library: Any, runtime: Any, plan: bytes, name: str) -> None:
    """Raise BackendError unless TensorRT-RTX says that a plan will run on this machine."""
    errors = _logger(library).errors
    errors.clear()
    validity, flags = runtime.get_engine_validity(plan)
    if validity == library.EngineValidity.VALID:
        return
    members = library.EngineInvalidityDiagnostics.__members__
    reasons = [key for key, flag in members.items() if int(flag) & int(flags)]
    named = ", ".join(reasons).lower().replace("_", " ")
    what = one_line("; ".join(filter(None, [named, *errors]))) or "no reason given"
    if validity == library.EngineValidity.SUBOPTIMAL:
        LOG.warning("%s may be slower than it could be on this GPU (%s)", name, what)
        return
    raise BackendError(
        found=f"{name}, which tensorrt_rtx {library.__version__} cannot run here ({what})",
        expected="a plan for this version and this GPU, and a driver that is new enough",
        remedy=FOR_OTHER_GPUS
        if "unsupported cc" in named
        else "update the NVIDIA driver, or build the engine set again on this machine",
    )


class TensorrtEngine(DeviceEngine):
    """Runs an exit's plans in order; they share the memory for activations.

    Each plan has a context for every batch size that was asked for: a context whose shapes
    change does work that a CUDA graph cannot record.

    Args:
        folder: of the engine set.
        manifest: of the engine set.
        library: ``tensorrt``, its lean runtime, or ``tensorrt_rtx``.
        device: the GPU, in use by this thread; the engine closes it.
        share_device_with: its memory for activations serves as well, if large enough.
    """

    def __init__(
        self,
        folder: Path,
        manifest: EngineManifest,
        library: Any,
        device: CudaDevice,
        share_device_with: Engine | None = None,
    ) -> None:
        target = manifest.target
        super().__init__(device, manifest.interface, target.precision, target.batch.max)
        self._smallest = target.batch.min
        self._library = library
        self._plans: dict[int, ExitPlan] = {plan.depth: plan for plan in manifest.exits}
        self._segments = manifest.segments
        self.spans = {(span.start, span.stop): span.tensors for span in manifest.spans}
        self._logger = _logger(library)
        self._runtime: trt.Runtime = library.Runtime(self._logger)
        if target.options.get("version_compatible"):
            # Such a plan brings the runtime of its own version, which is host code.
            self._runtime.engine_host_code_allowed = True
        self._engines = [self._opened(folder / segment.file) for segment in self._segments]
        self._check_types()
        needed = max(engine.device_memory_size_v2 for engine in self._engines)
        self._activation_bytes = max(needed, 256)
        self._activations: int
        other = share_device_with
        if isinstance(other, TensorrtEngine) and other._activation_bytes >= needed:
            self._activation_bytes = other._activation_bytes
            self._activations = other._activations
        else:
            self._activations = device.allocate(self._activation_bytes)
        self._between = self._rooms()
        self._contexts: dict[tuple[int, int], trt.IExecutionContext] = {}
        self._configs: list[Any] = []  # of the contexts, which may refer to them
        self._cache: KernelCache | None = None
        if target.backend == _RTX:
            self._cache = KernelCache(self._engines[0].create_runtime_config(), folder, manifest)

    def enqueue(self, evaluation: DeviceEvaluation) -> None:
        """Queue an evaluation; see :meth:`DeviceEvaluator.enqueue`."""
        batch, plan = evaluation.batch, self._plans[evaluation.depth]
        rows = batch[0]
        if batch[1:] != self.interface.state.shape:  # what plans were built for
            raise BackendError(
                found=f"samples of shape {list(batch[1:])}",
                expected=f"{list(self.interface.state.shape)}",
                remedy="choose that shape, or a backend whose shapes are free",
            )
        results = dict(zip(plan.outputs, evaluation.outputs, strict=True))
        places = {**self._between, **evaluation.inputs, **results, **evaluation.tensors}
        for index in plan.segments:
            if not evaluation.stretch.holds(self._segments[index].level):
                continue
            segment, context = self._segments[index], self._context(index, rows)
            for name in (*segment.inputs, *segment.outputs):
                if not context.set_tensor_address(name, places[name]):
                    raise self._refused(segment, f"tensor {name}")
            if not context.execute_async_v3(self.device.handle):
                raise self._refused(segment, f"a batch of {rows}")

    def settle(self) -> bool:
        """Keep the kernels compiled by now; see :meth:`DeviceEvaluator.settle`."""
        if self._cache is not None:
            self._cache.save()
        asks = [getattr(each, "is_stream_capturable", None) for each in self._contexts.values()]
        return all(ask is None or ask(self.device.handle) for ask in asks)

    def close(self) -> None:
        """Release the plans and all memory; kernels compiled on the way are kept on disk."""
        with self.device.using():
            if self._cache is not None:
                self._cache.save()
            if self._contexts:  # which queued work may use
                with suppress(Exception):  # a GPU that failed keeps failing
                    self.device.synchronize()
            self._contexts.clear()
            self._configs.clear()
            self._cache = None
            self._engines.clear()
        super().close()

    def _opened(self, path: Path) -> trt.ICudaEngine:
        data = opening(path).read_bytes()
        if hasattr(self._runtime, "get_engine_validity"):
            check_validity(self._library, self._runtime, data, path.name)
        self._logger.errors.clear()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError(
                found=f"{path.name} refused by {self._library.__name__} "
                f"{self._library.__version__} ({self._reason()})",
                expected="a plan that it can load on this GPU",
                remedy="free GPU memory if that is what it lacks, or build the engine set again "
                "on this machine",
            )
        return engine

    def _check_types(self) -> None:
        """Pass when what goes in and comes out has the types that samplers give and take."""
        conditions = self.interface.conditions
        wanted = {name: np.dtype(spec.dtype) for name, spec in conditions.items()}
        wanted |= {"x": np.dtype(np.float32), "t": np.dtype(np.float32)}
        results = {name for plan in self._plans.values() for name in plan.outputs}
        wanted |= {name: np.dtype(np.float32) for name in results}
        for segment, engine in zip(self._segments, self._engines, strict=True):
            for name in (*segment.inputs, *segment.outputs):
                found = engine.get_tensor_dtype(name)
                if name in wanted and np.dtype(self._library.nptype(found)) != wanted[name]:
                    raise BackendError(
                        found=f"tensor {name} of type {found} in {segment.file}",
                        expected=str(wanted[name]),
                        remedy="build the engine set again",
                    )

    def _rooms(self) -> dict[str, int]:
        """Memory for what plans hand to one another, by tensor, for the largest batch.

        What is an exit's result may be a tensor like any other in another exit.
        """
        rooms = {}
        for index, segment in enumerate(self._segments):
            users = [plan for plan in self._plans.values() if index in plan.segments]
            for name in segment.outputs:
                if all(name in plan.outputs for plan in users):
                    continue
                engine = self._engines[index]
                count = int(np.prod(_shape(engine, name, self.max_batch)))
                kind: Any = engine.get_tensor_dtype(name)
                rooms[name] = self.device.allocate(count * int(kind.itemsize))
        return rooms

    def _context(self, index: int, rows: int) -> trt.IExecutionContext:
        """The context of a plan for a batch size."""
        if (index, rows) not in self._contexts:
            self._contexts[index, rows] = self._made(index, rows)
        return self._contexts[index, rows]

    def _made(self, index: int, rows: int) -> trt.IExecutionContext:
        segment, engine = self._segments[index], self._engines[index]
        if not self._smallest <= rows <= self.max_batch:
            raise BackendError(
                found=f"a batch of {rows}",
                expected=f"{self._smallest} to {self.max_batch}, for which the plans were built",
                remedy="ask for another number of samples, or fix batch.min and batch.max",
            )
        self._logger.errors.clear()
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            context = engine.create_execution_context(strategy)
        else:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            self._specialise(config)
            context = engine.create_execution_context(config)
            self._configs.append(config)
        if context is None:
            raise self._refused(segment, "a context")
        context.set_device_memory(self._activations, self._activation_bytes)
        for name in segment.inputs:
            if not context.set_input_shape(name, _shape(engine, name, rows)):
                raise self._refused(segment, f"a batch of {rows}")
        return context

    def _specialise(self, config: Any) -> None:
        """Have TensorRT-RTX compile kernels for the shapes before it needs them.

        By default it compiles them in the background, and a CUDA graph would keep those that
        it uses meanwhile. The trajectory's graph makes its own graphs useless.
        """
        library = self._library
        strategies = library.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        config.cuda_graph_strategy = library.CudaGraphStrategy.DISABLED
        if self._cache is not None:
            self._cache.attach(config)

    def _refused(self, segment: Segment, what: str) -> BackendError:
        return BackendError(
            found=f"{segment.file} refusing {what} ({self._reason()})",
            expected="an evaluation",
            remedy="free GPU memory if that is what it lacks, or build the engine set again",
        )

    def _reason(self) -> str:
        return one_line("; ".join(self._logger.errors)) or "it gives no reason"


def _logger(library: Any) -> Any:
    """What takes a library's messages: one for the whole process, as the library keeps it."""
    name = library.__name__
    if name not in _LOGGERS:
        severity = library.ILogger.Severity
        levels = {severity.INTERNAL_ERROR: logging.ERROR, severity.ERROR: logging.ERROR}
        levels[severity.WARNING] = logging.WARNING

        class Logger(library.ILogger):  # type: ignore[misc]
            """Keeps errors for the exceptions that follow them."""

            def __init__(self) -> None:
                super().__init__()
                self.errors: list[str] = []

            def log(self, severity: Any, msg: str) -> None:
                level = levels.get(severity, logging.DEBUG)
                if level == logging.ERROR:
                    self.errors.append(msg)
                LOG.log(level, "%s: %s", name, msg)

        _LOGGERS[name] = Logger()
    return _LOGGERS[name]


def _shape(engine: trt.ICudaEngine, name: str, rows: int) -> tuple[int, ...]:
    """A tensor's shape at a batch size: the free axis is the batch."""
    shape: Any = engine.get_tensor_shape(name)
    return tuple(rows if length < 0 else int(length) for length in shape)


def _release(version: str) -> tuple[int, ...]:
    """A version's leading numbers, such as (11, 4, 0, 106)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
