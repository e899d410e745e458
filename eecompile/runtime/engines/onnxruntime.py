"""The ONNX Runtime backend on the CPU; for GPUs, see engines/onnxruntime_cuda.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from eecompile.arrays import Array, Inputs
from eecompile.runtime.engines._onnxruntime import (
    PROVIDERS,
    OnnxRuntimeCompanion,
    import_onnxruntime,
    open_session,
    provider,
    session_options,
)
from eecompile.runtime.protocol import CompanionEngine, Engine
from eecompile.runtime.trajectory.plan import NONE, WHOLE, BoundEvaluation, Stretch
from eecompile.store.companions import Companion
from eecompile.store.manifest import EngineManifest, ExitPlan
from eecompile.store.target import Target


def open_backend(
    folder: Path, manifest: EngineManifest, threads: int, share_device_with: Engine | None = None
) -> Engine:
    """The engine of an engine set whose files have been checked.

    Raises:
        BackendError: onnxruntime is missing, or refuses a segment, or for its provider
            there is no GPU.
    """
    if provider(manifest.target) != "cpu":
        from eecompile.runtime.engines.onnxruntime_cuda import open_cuda

        return open_cuda(folder, manifest, threads, share_device_with)
    return OnnxRuntimeEngine(folder, manifest, threads)


def open_companion(
    folder: Path, companion: Companion, target: Target, threads: int
) -> CompanionEngine:
    """The engine of a companion whose files have been checked.

    Raises:
        BackendError: onnxruntime is missing, or refuses it.
    """
    return OnnxRuntimeCompanion(folder, companion, target, threads)


_lock = Lock()
_arena: list[bool] = []  # whether the process's one pool of memory has been asked for


class OnnxRuntimeEngine(Engine):
    """Runs an exit's segments in order; tensors between them are not copied."""

    def __init__(self, folder: Path, manifest: EngineManifest, threads: int) -> None:
        runtime = import_onnxruntime()
        self.exits = manifest.interface.exits
        self.precision: str = manifest.target.precision
        self.max_batch = manifest.target.batch.max
        self._value = runtime.OrtValue.ortvalue_from_numpy
        self._plans: dict[int, ExitPlan] = {plan.depth: plan for plan in manifest.exits}
        self._segments = manifest.segments
        self.spans = {(span.start, span.stop): span.tensors for span in manifest.spans}
        options = session_options(runtime, threads)
        _share_memory(runtime)
        options.add_session_config_entry("session.use_env_allocators", "1")
        self._sessions = [
            open_session(runtime, folder, segment, options, manifest, [PROVIDERS["cpu"]])
            for segment in manifest.segments
        ]

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """The outputs at ``depth``; see :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        outputs = [np.empty_like(x) for _ in self._plans[depth].outputs]
        self.bind(x, t, conditions, outputs)(depth)
        return outputs

    def bind(
        self,
        x: Array,
        t: Array,
        conditions: Inputs,
        outputs: Sequence[Array],
        tensors: Mapping[str, Array] = NONE,
    ) -> BoundEvaluation:
        """An evaluation on fixed arrays; see :meth:`eecompile.runtime.protocol.Engine.bind`."""
        inputs = {"x": x, "t": t, **conditions}
        given = {n: np.ascontiguousarray(a) for n, a in inputs.items()}
        return _Bound(self, given | dict(tensors), outputs)

    def close(self) -> None:
        """Release the sessions."""
        self._sessions.clear()


class _Bound:
    """Evaluations on fixed arrays: what is bound once need not be told again."""

    def __init__(
        self,
        engine: OnnxRuntimeEngine,
        inputs: Inputs,
        outputs: Sequence[Array],
    ) -> None:
        self._engine = engine
        self._outputs = outputs
        # Tensors that segments share, once a segment that makes them has run.
        self._values = {name: engine._value(array) for name, array in inputs.items()}
        self._bindings: dict[tuple[int, Stretch], list[tuple[Any, Any]]] = {}

    def __call__(self, depth: int, stretch: Stretch = WHOLE) -> None:
        """Evaluate the network at ``depth``, or that stretch of it."""
        if (depth, stretch) not in self._bindings:
            self._bindings[depth, stretch] = self._first(depth, stretch)
            return
        for session, binding in self._bindings[depth, stretch]:
            session.run_with_iobinding(binding)

    def _first(self, depth: int, stretch: Stretch) -> list[tuple[Any, Any]]:
        """Bind and run the segments of an exit; they say how large their results are."""
        engine, plan = self._engine, self._engine._plans[depth]
        into = zip(plan.outputs, self._outputs, strict=True)
        results = {name: engine._value(array) for name, array in into}
        bindings = []
        for index in plan.segments:
            session, segment = engine._sessions[index], engine._segments[index]
            if not stretch.holds(segment.level):
                continue
            binding = session.io_binding()
            for name in segment.inputs:
                value = results[name] if name in results else self._values[name]
                binding.bind_ortvalue_input(name, value)
            for name in segment.outputs:
                room = results.get(name) or self._values.get(name)
                if room is None:  # no other exit's evaluation has made any
                    binding.bind_output(name, "cpu")
                else:
                    binding.bind_ortvalue_output(name, room)
            session.run_with_iobinding(binding)
            for name, value in zip(segment.outputs, binding.get_outputs(), strict=True):
                if name not in results and name not in self._values:
                    self._values[name] = value
                    binding.bind_ortvalue_output(name, value)
            bindings.append((session, binding))
        return bindings


def _share_memory(runtime: Any) -> None:
    """Let the sessions that ask for it take their activations from one pool of memory.

    Each would keep its own otherwise, though only one of an evaluation works at a time.
    The pool is the process's; sessions of the host do not use it unless they ask.
    """
    with _lock:
        if _arena:
            return
        kind, memory = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, runtime.OrtMemType.DEFAULT
        info = runtime.OrtMemoryInfo("Cpu", kind, 0, memory)
        # Exactly as much as is asked for, where the default doubles.
        with suppress(Exception):  # the host has made one: that does as well
            runtime.create_and_register_allocator(
                info, runtime.OrtArenaCfg({"arena_extend_strategy": 1})
            )
        _arena.append(True)
