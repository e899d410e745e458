"""What people would use instead, as engines: a bundle's graphs, each in a session of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from eecompile.arrays import Array, Inputs
from eecompile.compare.checks import Folder, checked_bundle, checked_engine_set, no_gpu, require
from eecompile.errors import BackendError
from eecompile.measure.machine import gpus
from eecompile.programs.interface import Interface
from eecompile.runtime.engines._onnxruntime import PROVIDERS, session_options
from eecompile.runtime.engines.openvino import import_openvino, model_options
from eecompile.runtime.protocol import Engine
from eecompile.store.files import in_utf8
from eecompile.store.manifest import exit_graph_name, output_names

UNLIMITED = 1 << 16  # samples in a batch of what has no limit of its own
Evaluate = Callable[[Inputs], Sequence[Any]]


class Peer(Engine):
    """An engine that loads an exit when it is first evaluated."""

    precision, max_batch, concurrent = "fp32", UNLIMITED, False

    def __init__(self, interface: Interface) -> None:
        self.interface = interface
        self.exits = interface.exits
        self._loaded: dict[int, Evaluate] = {}
        self._stack = ExitStack()

    @abstractmethod
    def load(self, depth: int, stack: ExitStack) -> Evaluate:
        """A function from the inputs to the outputs; the stack closes what it needs."""

    @contextmanager
    def loaded(self, depth: int) -> Iterator[Self]:
        """The engine with an exit that is loaded already, as long as the block lasts."""
        with self:
            self._loaded[depth] = self.load(depth, self._stack)
            yield self

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """See :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        if depth not in self._loaded:
            self._loaded[depth] = self.load(depth, self._stack)
        return self._loaded[depth]({"x": x, "t": t, **conditions})

    def close(self) -> None:
        """Release all exits; they are loaded again when they are evaluated."""
        self._loaded.clear()
        self._stack.close()


class OnnxRuntimePeer(Peer):
    """The bundle's graphs in ONNX Runtime, FP32 on the CPU, a session for each exit.

    One evaluation takes so many ``threads``; 0 for the physical cores.

    Raises:
        BundleError: there is no intact bundle.
    """

    def __init__(self, bundle: Folder, threads: int = 0) -> None:
        super().__init__(checked_bundle(bundle).interface)
        self._bundle, self._threads = Path(bundle), threads

    def load(self, depth: int, stack: ExitStack) -> Evaluate:
        """See :class:`Peer`; raises a BackendError where onnxruntime is missing."""
        require("onnxruntime")
        import onnxruntime

        session = onnxruntime.InferenceSession(
            in_utf8(self._bundle / exit_graph_name(depth)),
            session_options(onnxruntime, self._threads),
            providers=[PROVIDERS["cpu"]],
        )
        names = list(output_names(self.interface, depth))
        return lambda feed: session.run(names, feed)


class OpenvinoPeer(OnnxRuntimePeer):
    """The bundle's graphs in OpenVINO, FP32 on the CPU; see OnnxRuntimePeer."""

    def load(self, depth: int, stack: ExitStack) -> Evaluate:
        """See :class:`Peer`; raises a BackendError where openvino is missing."""
        graph = str(self._bundle / exit_graph_name(depth))
        options = model_options("fp32", self._threads)
        request = import_openvino().Core().compile_model(graph, "CPU", options)
        request = request.create_infer_request()
        names = output_names(self.interface, depth)

        def evaluate(feed: Inputs) -> Sequence[Array]:
            results = request.infer(feed)
            return [results[name] for name in names]

        return evaluate


class TensorrtPeer(Peer):
    """An engine set's plans for TensorRT or -RTX, each through polygraphy's own ``TrtRunner``.

    Raises:
        BundleError: there is no intact engine set.
        BackendError: it has no plans, or polygraphy's switch names the other library.
    """

    def __init__(self, engines: Folder) -> None:
        from polygraphy import config

        self._folder, self._manifest = Path(engines), checked_engine_set(engines)
        super().__init__(self._manifest.interface)
        backend = self._manifest.target.backend
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

    def load(self, depth: int, stack: ExitStack) -> Evaluate:
        """See :class:`Peer`; raises a BackendError where there is no GPU."""
        if not gpus():
            raise no_gpu(self._manifest.target.backend)
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        plan = next(plan for plan in self._manifest.exits if plan.depth == depth)
        segments = [self._manifest.segments[index] for index in plan.segments]
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

        def evaluate(feed: Inputs) -> Sequence[Array]:
            values = dict(feed)
            for segment, runner in zip(segments, runners, strict=True):
                given = {name: values[name] for name in segment.inputs}
                values |= runner.infer(given, check_inputs=False)
            return [np.array(values[name], np.float32) for name in plan.outputs]

        return evaluate
