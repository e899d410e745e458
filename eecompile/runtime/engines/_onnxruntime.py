"""What the ONNX Runtime backend does alike on the CPU and on GPUs: import, options, sessions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from eecompile.arrays import Array, Inputs
from eecompile.backends import BACKENDS
from eecompile.errors import BackendError, one_line
from eecompile.runtime.engines._files import opening
from eecompile.runtime.engines.tensors import check_tensors, shapes
from eecompile.runtime.protocol import CompanionEngine
from eecompile.store.companions import Companion
from eecompile.store.files import in_utf8
from eecompile.store.manifest import EngineManifest, Segment
from eecompile.store.target import Target

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's execution providers, by the target's ``options.provider``."""

_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}
_lock = Lock()
_shared: list[int] = []  # threads of the process's one pool, once there is one


def provider(target: Target) -> str:
    """The target's execution provider, by our name; ``cpu`` unless it says otherwise.

    Raises:
        BackendError: an option is none of this backend's.
    """
    name = target.options.get("provider", "cpu")
    if set(target.options) - {"provider"} or name not in PROVIDERS:
        raise BackendError(
            found=f"options {target.options} for onnxruntime",
            expected=f"options.provider of {sorted(PROVIDERS)}",
            remedy="choose among these, or another backend in the target",
        )
    return str(name)


def import_onnxruntime() -> Any:
    """The package onnxruntime; a BackendError where it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            found=f"no usable package onnxruntime ({error})",
            expected="it, to run this engine set",
            remedy=BACKENDS["onnxruntime"].install_to_run,
        ) from error
    return onnxruntime


def share_pool(threads: int) -> None:
    """Let this process's ONNX Runtime have one thread pool for all sessions.

    ONNX Runtime has one such pool a process, made before its first session; the number of
    threads, 0 for the physical cores, cannot be changed afterwards.

    Raises:
        BackendError: onnxruntime is missing, or has begun to work without such a pool.
    """
    runtime = import_onnxruntime()
    with _lock:
        if _shared:
            return
        try:
            runtime.set_global_thread_pool_sizes(threads, 1)
        except Exception as error:
            raise BackendError(
                found=f"an onnxruntime that refuses a shared pool ({error})",
                expected="one that has not opened a session yet",
                remedy="open the engine set before other models, or without shared_pool",
            ) from error
        _shared.append(threads)


def session_options(runtime: Any, threads: int) -> onnxruntime.SessionOptions:
    """Options of a session with threads of its own, unless the process shares a pool."""
    options: onnxruntime.SessionOptions = runtime.SessionOptions()
    # Fusions were made at build time; what is left is the layout for this processor.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what fails is raised, not printed
    if _shared:
        options.use_per_session_threads = False
        return options
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads spin within a run and sleep between runs: those of an idle session would
    # take the cores from the one that works. A pool that all sessions share would do as
    # well, but onnxruntime then refuses sessions of the host that have their own.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def open_session(
    runtime: Any,
    folder: Path,
    segment: Segment,
    options: onnxruntime.SessionOptions,
    manifest: EngineManifest,
    providers: Sequence[Any],
) -> onnxruntime.InferenceSession:
    """A session that runs a segment on the first of the providers.

    Raises:
        BackendError: onnxruntime refuses the segment, or does not start that provider.
    """
    built = manifest.versions.get("onnxruntime", "of an unknown version")
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    on_gpu = first != PROVIDERS["cpu"]
    path = in_utf8(opening(folder / segment.file))
    try:
        session: onnxruntime.InferenceSession = runtime.InferenceSession(
            path, options, providers=list(providers)
        )
    except Exception as error:  # onnxruntime's errors share no base class
        raise BackendError(
            found=f"{segment.file}, built with onnxruntime {built}, "
            f"refused by onnxruntime {runtime.__version__} ({one_line(error)})",
            expected=f"a segment that {first if on_gpu else 'it'} can load",
            remedy=("free GPU memory if that is what it lacks, or " if on_gpu else "")
            + "build the engine set again on this machine",
        ) from error
    if session.get_providers()[0] != first:  # it falls back to the CPU without an error
        raise BackendError(
            found=f"{first} that does not start on this machine",
            expected="an NVIDIA GPU with a driver for that onnxruntime's CUDA",
            remedy="run 'eecompile doctor', which says what is missing",
        )
    for nodes, names in (
        (session.get_inputs(), segment.inputs),
        (session.get_outputs(), segment.outputs),
    ):
        found = {node.name: (node.type, node.shape) for node in nodes}
        check_tensors(segment, manifest, names, found, _TYPES)
    return session


class OnnxRuntimeCompanion(CompanionEngine):
    """Runs a companion on a target's provider; it keeps no memory for activations between runs."""

    def __init__(self, folder: Path, companion: Companion, target: Target, threads: int) -> None:
        runtime = import_onnxruntime()
        options = session_options(runtime, threads)
        options.enable_cpu_mem_arena = False
        self._companion, self._version = companion, runtime.__version__
        path = in_utf8(opening(folder / companion.file))
        with self._blaming(companion.file):
            self._session = runtime.InferenceSession(
                path, options, providers=[PROVIDERS[provider(target)]]
            )

    def run(self, inputs: Inputs) -> list[Array]:
        """See :meth:`eecompile.runtime.protocol.CompanionEngine.run`."""
        given = {name: inputs[name] for name in self._companion.inputs}
        with self._blaming(f"{self._companion.file} at {shapes(given)}"):
            outputs: list[Array] = self._session.run(list(self._companion.outputs), given)
        return outputs

    def close(self) -> None:
        """Release the session."""
        self._session = None

    @contextmanager
    def _blaming(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # onnxruntime's errors share no base class
            raise BackendError(
                found=f"{what}, refused by onnxruntime {self._version} ({one_line(error)})",
                expected="a companion that it can run",
                remedy="build the engine set again on this machine, or decode fewer at a time "
                "([companions] batch in the target) where memory is short",
            ) from error
