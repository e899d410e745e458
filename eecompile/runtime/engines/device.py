"""What engines on a GPU share: evaluating host arrays, and bringing trajectories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from eecompile.arrays import Array, Inputs
from eecompile.errors import BackendError
from eecompile.programs.interface import Interface
from eecompile.runtime.cuda.device import CudaDevice, open_device
from eecompile.runtime.protocol import Engine
from eecompile.runtime.trajectory.device import DeviceEvaluation, DeviceEvaluator, arena_of


class DeviceEngine(DeviceEvaluator, Engine):
    """An engine whose work is queued on a GPU; may be used from several threads.

    Evaluations and trajectories of one engine are queued on one stream, so they may share
    the memory for activations. Threads wait for one another while they queue, and while one
    reads a result.

    Attributes:
        interface: what the network takes and gives.
        owns_device: whether closing the engine also closes the GPU.
    """

    concurrent = False
    owns_device = True

    def __init__(
        self, device: CudaDevice, interface: Interface, precision: str, max_batch: int
    ) -> None:
        self.device = device
        self.interface = interface
        self.exits = interface.exits
        self.precision = precision
        self.max_batch = max_batch

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """The outputs at ``depth``; see :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        if len(x) > self.max_batch:
            raise BackendError(
                found=f"a batch of {len(x)}",
                expected=f"at most {self.max_batch}",
                remedy="evaluate fewer at once, or build with a larger batch.max",
            )
        kinds = {name: spec.dtype for name, spec in self.interface.conditions.items()}
        given = {"x": x, "t": t, **conditions}
        given = {n: np.asarray(a, kinds.get(n, "float32")) for n, a in given.items()}
        results = [np.empty(x.shape, np.float32) for _ in self.interface.outputs]
        sizes = {name: array.nbytes for name, array in given.items()}
        named = {f"output {index}": array for index, array in enumerate(results)}
        offsets, total = arena_of(sizes | {name: array.nbytes for name, array in named.items()})
        with self.device.using():
            base = self.device.allocate(total)
            try:
                places = {name: base + offset for name, offset in offsets.items()}
                for name, array in given.items():
                    self.device.upload(places[name], array)
                inputs = {name: places[name] for name in given}
                outputs = [places[name] for name in named]
                self.enqueue(DeviceEvaluation(depth, x.shape, inputs, outputs))
                for name, array in named.items():
                    self.device.download(places[name], array)
            finally:
                self.device.release(base)
        return results

    def member(self, name: str) -> DeviceEngine:
        """The engine itself, which has no members."""
        return self

    def close(self) -> None:
        """Release the engine's memory, and its trajectories' with it."""
        if self.owns_device:
            self.device.close()


@contextmanager
def shared_device(engine: Engine | None) -> Iterator[CudaDevice]:
    """The GPU of an engine, or a GPU newly opened if that has none.

    It stays open, unless what is done within fails and it was opened for that.
    """
    if isinstance(engine, DeviceEngine):
        yield engine.device
        return
    device = open_device()
    try:
        yield device
    except BaseException:
        device.close()
        raise
