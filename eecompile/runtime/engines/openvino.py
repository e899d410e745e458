"""The OpenVINO backend (CPU)."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.arrays import AnyArray, Array, Inputs
from eecompile.backends import BACKENDS
from eecompile.errors import BackendError, one_line
from eecompile.runtime.engines._files import opening
from eecompile.runtime.engines.tensors import check_tensors, shapes
from eecompile.runtime.protocol import CompanionEngine, Engine
from eecompile.runtime.trajectory.plan import NONE, WHOLE, BoundEvaluation, Stretch
from eecompile.store.bundle import check_listed
from eecompile.store.companions import Companion
from eecompile.store.files import in_utf8
from eecompile.store.manifest import EngineManifest, ExitPlan, Segment
from eecompile.store.target import Target

WEIGHTS = "weights.bin"  # the weights of all segments, every tensor once
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_TYPES = {"float32": "f32", "int64": "i64"}
_TELEMETRY = "openvino_telemetry"


def open_backend(
    folder: Path, manifest: EngineManifest, threads: int, share_device_with: Engine | None = None
) -> OpenvinoEngine:
    """See :func:`eecompile.runtime.opening.engine_from_manifest`; it shares nothing.

    Raises:
        BackendError: openvino is missing, or refuses a segment, or the processor has no
            instructions for the engine set's precision.
    """
    return OpenvinoEngine(folder, manifest, threads)


def open_companion(
    folder: Path, companion: Companion, target: Target, threads: int
) -> CompanionEngine:
    """The engine of a companion whose files have been checked.

    Raises:
        BackendError: openvino is missing, or refuses it, or the processor has no instructions
            for its precision.
    """
    return OpenvinoCompanion(folder, companion, target, threads)


class OpenvinoCompanion(CompanionEngine):
    """Runs a companion, a request at a time."""

    def __init__(self, folder: Path, companion: Companion, target: Target, threads: int) -> None:
        self._runtime, self._companion = import_openvino(), companion
        core = self._runtime.Core()
        check_precision(core, target.precision)
        with self._blaming(companion.file):
            path = opening(folder / companion.file)
            graph = core.read_model(path, folder / companion.weights)
            options = model_options(target.precision, threads)
            self._model = core.compile_model(graph, "CPU", options)

    def run(self, inputs: Inputs) -> list[Array]:
        """See :meth:`eecompile.runtime.protocol.CompanionEngine.run`."""
        given = {name: inputs[name] for name in self._companion.inputs}
        with self._blaming(f"{self._companion.file} at {shapes(given)}"):
            found = self._model.create_infer_request().infer(given)
            return [np.array(found[name], np.float32) for name in self._companion.outputs]

    @contextmanager
    def _blaming(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # its errors share no base class
            raise BackendError(
                found=f"{what}, refused by openvino {self._runtime.get_version()} "
                f"({one_line(error)})",
                expected="a companion that it can run",
                remedy="build the engine set again on this machine",
            ) from error


class OpenvinoEngine(Engine):
    """Runs an exit's segments in order; no tensor is copied on the way.

    Batches of the sizes that the engine set has further blobs for run on models of that size
    alone, which are opened when the first such batch comes.
    """

    def __init__(self, folder: Path, manifest: EngineManifest, threads: int) -> None:
        self._runtime = import_openvino()
        self._core = self._runtime.Core()
        self.exits = manifest.interface.exits
        self.precision = manifest.target.precision
        self.max_batch = manifest.target.batch.max
        check_precision(self._core, self.precision)
        self._folder = folder
        self._plans: dict[int, ExitPlan] = {plan.depth: plan for plan in manifest.exits}
        self._segments = manifest.segments
        self.spans = {(span.start, span.stop): span.tensors for span in manifest.spans}
        self._results = {name for plan in manifest.exits for name in plan.outputs}
        self._options = model_options(self.precision, threads)
        check_listed(folder, manifest, [WEIGHTS])
        self._files = {record.name for record in manifest.files}
        built = manifest.versions.get("openvino", "of an unknown version")
        models = [
            self._from_blob(segment) or self._from_graph(segment, built)
            for segment in self._segments
        ]
        for segment, model in zip(self._segments, models, strict=True):
            check_tensors(segment, manifest, segment.inputs, _tensors(model.inputs), _TYPES)
            check_tensors(segment, manifest, segment.outputs, _tensors(model.outputs), _TYPES)
        self._models = list(map(_Model, models))
        self._sizes = {manifest.target.batch.min, manifest.target.batch.opt}
        self._fixed: dict[tuple[int, int], _Model | None] = {}
        self._lock = threading.Lock()

    def model(self, index: int, batch: int) -> _Model:
        """A segment's model for a batch of that size, or else for all sizes."""
        with self._lock:
            if (index, batch) not in self._fixed:
                found = self._from_blob(self._segments[index], batch)
                self._fixed[index, batch] = found and _Model(found)
            return self._fixed[index, batch] or self._models[index]

    def open_all(self) -> None:
        """Open the further blobs, too."""
        for index, batch in product(range(len(self._segments)), sorted(self._sizes)):
            self.model(index, batch)

    def _from_blob(self, segment: Segment, batch: int = 0) -> Any | None:
        """The model in a segment's blob; None where none fits this OpenVINO and processor."""
        blob = blob_name(self._runtime, self._core, segment.file, batch)
        if blob not in self._files:
            return None
        data = opening(self._folder / blob).read_bytes()
        options = blob_options(self._folder)
        with suppress(Exception):  # its errors share no base class
            return self._core.import_model(data, "CPU", self._options | options)
        return None

    def _from_graph(self, segment: Segment, built: str) -> Any:
        """The model of a segment's graph, which OpenVINO ``built`` wrote."""
        try:
            path = opening(self._folder / segment.file)
            graph = self._core.read_model(path, self._folder / WEIGHTS)
            return self._core.compile_model(graph, "CPU", self._options)
        except Exception as error:  # as above
            raise BackendError(
                found=f"{segment.file}, built with openvino {built}, refused by openvino "
                f"{self._runtime.get_version()} ({one_line(error)})",
                expected="a segment that it can load",
                remedy="build the engine set again on this machine",
            ) from error

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """The outputs at ``depth``; see :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        outputs = [np.empty(x.shape, np.float32) for _ in self._plans[depth].outputs]
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
        given = {"x": x, "t": t, **conditions}
        inputs = {n: np.require(a, None, ("C", "W")) for n, a in given.items()}
        return _Bound(self, inputs, outputs, tensors)

    def close(self) -> None:
        """Release the models."""
        self._models.clear()
        self._fixed.clear()


def _tensors(ports: Sequence[Any]) -> dict[str, tuple[str, list[int | None]]]:
    """Type and lengths of a model's inputs or outputs, by every name that they have."""
    return {
        name: (
            port.element_type.get_type_name(),
            [axis.get_length() if axis.is_static else None for axis in port.partial_shape],
        )
        for port in ports
        for name in port.get_names()
    }


class _Model:
    """A compiled model, whose requests are made, run and dropped one at a time.

    It has one stream, on which they would wait for each other anyway. OpenVINO's CPU plugin does
    not keep them apart: it crashes now and then where a request is made while another one of the
    same model runs (2026.4).
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled, self._lock = compiled, threading.Lock()
        self._dropped: deque[Any] = deque()

    @contextmanager
    def running(self, request: _Request) -> Iterator[Any]:
        """OpenVINO's own request, which is made when it is first asked for."""
        with self._lock:
            self._dropped.clear()
            if request.own is None:
                request.own = self.compiled.create_infer_request()
            yield request.own

    def drop(self, own: Any) -> None:
        """Drop a request before the next one runs: whoever drops it may not wait."""
        self._dropped.append(own)


class _Request:
    """A request of a model."""

    def __init__(self, model: _Model) -> None:
        self.model, self.own = model, None

    def __del__(self) -> None:
        self.model.drop(self.own)


class _Bound:
    """Evaluations on fixed arrays, with a request for each segment that they have needed."""

    def __init__(
        self,
        engine: OpenvinoEngine,
        inputs: Inputs,
        outputs: Sequence[Array],
        tensors: Mapping[str, Array],
    ) -> None:
        self._engine, self._batch = engine, len(inputs["x"])
        # A request knows where arrays are, but does not keep them: this does.
        self._arrays = {**inputs, **tensors}
        self._outputs = outputs
        self._results = [self._shared(array) for array in outputs]
        self._rooms: dict[str, Any] = {}
        self._crossing = {name: self._shared(array) for name, array in tensors.items()}
        self._tensors = {name: self._shared(array) for name, array in inputs.items()}
        self._tensors |= self._crossing
        self._requests: dict[int, _Request] = {}

    def __call__(self, depth: int, stretch: Stretch = WHOLE) -> None:
        """Evaluate the network at ``depth``, or that stretch of it."""
        engine, plan = self._engine, self._engine._plans[depth]
        results = dict(zip(plan.outputs, self._results, strict=True))
        for index in plan.segments:
            segment = engine._segments[index]
            if not stretch.holds(segment.level):
                continue
            if index not in self._requests:
                self._requests[index] = _Request(engine.model(index, self._batch))
            asked = self._requests[index]
            with asked.model.running(asked) as request:
                for name in segment.inputs:
                    request.set_tensor(name, self._tensors[name])
                for name in segment.outputs:
                    if name in self._crossing:
                        request.set_tensor(name, self._crossing[name])
                    elif name in engine._results:
                        known = results[name] if name in results else self._own(name)
                        request.set_tensor(name, known)
                request.infer(share_outputs=True)
                for name in segment.outputs:
                    if name not in self._crossing:
                        self._tensors[name] = request.get_tensor(name)

    def _own(self, name: str) -> Any:
        """Room for a tensor that is another exit's result, and in this one is not."""
        if name not in self._arrays:
            self._arrays[name] = np.empty(self._arrays["x"].shape, np.float32)
            self._rooms[name] = self._shared(self._arrays[name])
        return self._rooms[name]

    def _shared(self, array: AnyArray) -> Any:
        return self._engine._runtime.Tensor(array, shared_memory=True)


def import_openvino() -> Any:
    """The package openvino, which then sends no telemetry."""
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise BackendError(
            found=f"no usable package openvino ({error})",
            expected="it, for targets whose backend is openvino",
            remedy=BACKENDS["openvino"].install_to_run,
        ) from error
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Where openvino is imported for the first time, it finds no telemetry package.

    Importing it reports to its makers unless that package is missing. The host application
    may still import the package for itself.
    """
    if "openvino" in sys.modules:
        yield
        return
    found = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if found is not None:
            sys.modules[_TELEMETRY] = found


def check_precision(core: Any, precision: str) -> None:
    """Raise BackendError where the processor has no instructions for a precision.

    OpenVINO would emulate them, or compute in FP32.
    """
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError(
            found=f"a processor without BF16 ({core.get_property('CPU', 'FULL_DEVICE_NAME')})",
            expected="AVX-512 BF16 or AMX, for precision bf16",
            remedy="build for a target with precision fp32, such as engines/cpu-openvino.toml",
        )


def model_options(precision: str, threads: int) -> dict[str, object]:
    """OpenVINO's properties of a compiled model; no threads takes all physical cores."""
    options: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        # Processes that each use a few threads would pin them to the same few cores.
        "ENABLE_CPU_PINNING": False,
    }
    return options | ({"INFERENCE_NUM_THREADS": threads} if threads else {})


def blob_options(folder: Path) -> dict[str, object]:
    """Further properties where a blob is written or read: its weights are the folder's."""
    weights = in_utf8(folder / WEIGHTS)
    return {"CACHE_MODE": "OPTIMIZE_SIZE", "ENABLE_WEIGHTLESS": True, "WEIGHTS_PATH": weights}


def blob_name(runtime: Any, core: Any, segment: str, batch: int = 0) -> str:
    """File name of a segment's blob for this OpenVINO and this processor.

    ``batch`` is the only batch size that it takes; 0 for all.
    """
    properties = ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE")
    facts = [runtime.get_version(), *(core.get_property("CPU", name) for name in properties)]
    facts += sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    stem = f"{Path(segment).stem}.batch-{batch}" if batch else Path(segment).stem
    return f"{stem}.{key[:12]}.blob"
