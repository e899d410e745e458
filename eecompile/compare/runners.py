"""Runners for polygraphy: one exit in torch, ONNX Runtime, OpenVINO, TensorRT or our engines.

All of them take the same inputs (``x``, ``t`` and the conditions) and give their outputs
the names that the bundle's graphs have, so ``Comparator.run`` and
``Comparator.compare_accuracy`` work with any of them side by side, and with polygraphy's
own runners. ``inference_time`` is measured without polygraphy's checks of the inputs.

:class:`TensorrtRunner` works with the library that polygraphy's switch
``POLYGRAPHY_USE_TENSORRT_RTX`` chose when it was imported: the two libraries need a process
each, and their results are joined through ``RunResults.save`` and ``load``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy import config

from eecompile.arrays import Array
from eecompile.compare.checks import (
    Folder,
    check_belongs,
    checked_bundle,
    checked_engine_set,
    no_gpu,
    require,
)
from eecompile.compare.exit_runner import Evaluate, ExitRunner, Feed
from eecompile.compare.torch_runners import TorchRunner, TrainedNetwork
from eecompile.errors import BackendError
from eecompile.measure.machine import gpus
from eecompile.runtime.engines.openvino import import_openvino, model_options
from eecompile.runtime.opening import engine_from_manifest
from eecompile.runtime.protocol import Engine
from eecompile.store.bundle import exit_graph_name

__all__ = [
    "EngineRunner",
    "ExitRunner",
    "OnnxRuntimeRunner",
    "OpenvinoRunner",
    "TensorrtRunner",
    "TorchRunner",
    "TrainedNetwork",
    "check_belongs",
    "checked_bundle",
    "checked_engine_set",
]

_BATCHES = 4  # batch sizes whose arrays an engine's runner keeps


class OnnxRuntimeRunner(ExitRunner):
    """The bundle's graph of one exit in an ONNX Runtime session of its own, FP32 on the CPU.

    Args:
        bundle: what ``eecompile export`` wrote.
        depth: the exit.
        threads: of one evaluation; 0 for the physical cores.
        name: of the runner.

    Raises:
        BundleError: there is no intact bundle.
        ScheduleError: the network has no such exit.
    """

    kind = "onnxruntime"

    def __init__(
        self, bundle: Folder, depth: int, *, threads: int = 0, name: str | None = None
    ) -> None:
        super().__init__(checked_bundle(bundle).interface, depth, name)
        self._path, self._threads = Path(bundle) / exit_graph_name(depth), threads

    @contextmanager
    def opened(self) -> Iterator[Evaluate]:
        """See :class:`ExitRunner`.

        Raises:
            BackendError: onnxruntime is missing.
        """
        require("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4  # what fails is raised, not printed
        # Threads that spin on after a run would slow whatever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            str(self._path), options, providers=["CPUExecutionProvider"]
        )
        yield lambda feed: session.run(list(self.outputs), dict(feed))


class OpenvinoRunner(ExitRunner):
    """The bundle's graph of one exit in OpenVINO, FP32 on the CPU; see OnnxRuntimeRunner."""

    kind = "openvino"

    def __init__(
        self, bundle: Folder, depth: int, *, threads: int = 0, name: str | None = None
    ) -> None:
        super().__init__(checked_bundle(bundle).interface, depth, name)
        self._path, self._threads = Path(bundle) / exit_graph_name(depth), threads

    @contextmanager
    def opened(self) -> Iterator[Evaluate]:
        """See :class:`ExitRunner`.

        Raises:
            BackendError: openvino is missing.
        """
        openvino = import_openvino()
        model = openvino.Core().compile_model(
            str(self._path), "CPU", model_options("fp32", self._threads)
        )
        request = model.create_infer_request()

        def evaluate(feed: Feed) -> Sequence[Array]:
            results = request.infer(dict(feed))
            return [results[name] for name in self.outputs]

        yield evaluate


class EngineRunner(ExitRunner):
    """One exit of an engine set, through eecompile's runtime.

    Args:
        engines: what ``eecompile build`` wrote.
        depth: the exit.
        threads: of one evaluation, 0 for the physical cores; None takes the target's.
        engine: the engine set's, already open, which stays open; so that several exits
            share one.
        name: of the runner.

    Raises:
        BundleError: there is no intact engine set.
        ScheduleError: the network has no such exit.
    """

    kind = "eecompile"

    def __init__(
        self,
        engines: Folder,
        depth: int,
        *,
        threads: int | None = None,
        engine: Engine | None = None,
        name: str | None = None,
    ) -> None:
        manifest = checked_engine_set(engines)
        super().__init__(manifest.interface, depth, name)
        self._folder, self._manifest = Path(engines), manifest
        self._threads, self._engine = threads, engine

    @contextmanager
    def opened(self) -> Iterator[Evaluate]:
        """See :class:`ExitRunner`.

        Raises:
            BackendError: the backend is missing, or refuses an engine.
        """
        with ExitStack() as stack:
            engine = self._engine or stack.enter_context(
                engine_from_manifest(self._folder, self._manifest, self._threads)
            )
            bindable = hasattr(engine, "bind")
            count = len(self.outputs)
            yield _Bound(engine, self.depth, count) if bindable else self._plain(engine)

    def _plain(self, engine: Engine) -> Evaluate:
        def evaluate(feed: Feed) -> Sequence[Array]:
            given = {name: np.ascontiguousarray(array) for name, array in feed.items()}
            x, t = given.pop("x").astype(np.float32), given.pop("t").astype(np.float32)
            return engine.evaluate(self.depth, x, t, given)

        return evaluate


class _Bound:
    """Evaluations on arrays that stay, one set a batch size, as a sampler's are."""

    def __init__(self, engine: Any, depth: int, outputs: int) -> None:
        self._engine, self._depth, self._outputs = engine, depth, outputs
        self._kept: OrderedDict[object, tuple[Feed, list[Array], Callable[[int], None]]]
        self._kept = OrderedDict()

    def __call__(self, feed: Feed) -> Sequence[Array]:
        key = tuple((name, array.shape) for name, array in feed.items())
        if key not in self._kept:
            self._kept[key] = self._made(feed)
            while len(self._kept) > _BATCHES:
                self._kept.popitem(last=False)
        inputs, outputs, evaluate = self._kept[key]
        for name, array in feed.items():
            inputs[name][...] = array
        evaluate(self._depth)
        return outputs

    def _made(self, feed: Feed) -> tuple[Feed, list[Array], Callable[[int], None]]:
        inputs = {name: np.array(array, order="C") for name, array in feed.items()}
        outputs = [np.empty(inputs["x"].shape, np.float32) for _ in range(self._outputs)]
        rest = {name: array for name, array in inputs.items() if name not in ("x", "t")}
        return inputs, outputs, self._engine.bind(inputs["x"], inputs["t"], rest, outputs)


class TensorrtRunner(ExitRunner):
    """One exit's plans of an engine set, each through polygraphy's own ``TrtRunner``.

    Args:
        engines: an engine set for TensorRT or TensorRT-RTX.
        depth: the exit.
        name: of the runner.

    Raises:
        BundleError: there is no intact engine set.
        BackendError: it has no plans, or polygraphy's switch names the other library.
        ScheduleError: the network has no such exit.
    """

    kind = "polygraphy"

    def __init__(self, engines: Folder, depth: int, *, name: str | None = None) -> None:
        manifest = checked_engine_set(engines)
        super().__init__(manifest.interface, depth, name)
        self._folder, self._manifest = Path(engines), manifest
        backend = manifest.target.backend
        library = "tensorrt-rtx" if config.USE_TENSORRT_RTX else "tensorrt"
        if backend != library:
            switch = "1" if backend == "tensorrt-rtx" else "0"
            plans = backend.startswith("tensorrt")
            raise BackendError(
                found=f"an engine set for {backend}, and polygraphy set up for {library}",
                expected=f"engines for {library} in this process",
                remedy=f"start Python with POLYGRAPHY_USE_TENSORRT_RTX={switch}"
                if plans
                else "use EngineRunner",
            )

    @contextmanager
    def opened(self) -> Iterator[Evaluate]:
        """See :class:`ExitRunner`.

        Raises:
            BackendError: there is no GPU.
        """
        if not gpus():
            raise no_gpu(self._manifest.target.backend)
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        plan = next(plan for plan in self._manifest.exits if plan.depth == self.depth)
        segments = [self._manifest.segments[index] for index in plan.segments]
        with ExitStack() as stack:
            runners = [
                stack.enter_context(
                    # Plans for TensorRT-RTX take all their memory from the caller.
                    TrtRunner(
                        EngineFromBytes(BytesFromPath(str(self._folder / segment.file))),
                        allocation_strategy="profile",
                    )
                )
                for segment in segments
            ]

            def evaluate(feed: Feed) -> Sequence[Array]:
                values = dict(feed)
                for segment, runner in zip(segments, runners, strict=True):
                    given = {name: values[name] for name in segment.inputs}
                    values |= runner.infer(given, check_inputs=False)
                return [np.asarray(values[name], np.float32) for name in plan.outputs]

            yield evaluate
