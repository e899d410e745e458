"""Any engine at one of its exits as a runner of polygraphy's."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from eecompile.arrays import AnyArray, Array, Inputs
from eecompile.programs.interface import Interface
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.protocol import Engine
from eecompile.store.manifest import output_names

_BATCHES = 4  # batch sizes whose arrays are kept
# Inputs, outputs, and what evaluates on them.
_Bound = tuple[dict[str, AnyArray], list[Array], Callable[[int], None]]


class ExitRunner(BaseRunner):  # type: ignore[misc]
    """One exit of an engine, for ``Comparator.run``.

    It evaluates on arrays that stay, one set for each batch size, as a sampler's do. The engine
    is ``opened`` as long as the runner is active. ``outputs`` are named as in the bundle's graphs.

    Raises:
        ScheduleError: the network has no such exit.
    """

    kind = "runner"
    is_active = False  # polygraphy asks when a runner goes, even one that was never made

    def __init__(
        self,
        interface: Interface,
        depth: int,
        opened: Callable[[], AbstractContextManager[Engine]],
        name: str | None = None,
    ) -> None:
        ExitSchedule.constant(depth).check(interface.exits)
        super().__init__(name=name or f"{self.kind}, exit {depth}")
        self.interface = interface
        self.depth = depth
        self.outputs = output_names(interface, depth)
        self._opened = opened
        self._stack = ExitStack()
        self._kept: OrderedDict[object, _Bound] = OrderedDict()

    def activate_impl(self) -> None:
        """Open the engine."""
        self._engine = self._stack.enter_context(self._opened())

    def get_input_metadata_impl(self) -> Any:
        """Names, dtypes and shapes of the inputs; None is an axis that may vary."""
        state, metadata = self.interface.state, TensorMetadata()
        free = state.resizable.axes if state.resizable else ()
        shape = [None if axis in free else length for axis, length in enumerate(state.shape)]
        metadata.add("x", np.dtype(np.float32), (None, *shape))
        metadata.add("t", np.dtype(np.float32), (None,))
        for name, spec in self.interface.conditions.items():
            metadata.add(name, np.dtype(spec.dtype), (None, *spec.shape))
        return metadata

    def infer_impl(self, feed_dict: Inputs) -> OrderedDict[str, Array]:
        """The outputs by name; a runner may use their memory again."""
        started = time.perf_counter()
        key = tuple((name, array.shape) for name, array in feed_dict.items())
        if key not in self._kept:
            self._kept[key] = self._bound(feed_dict)
            while len(self._kept) > _BATCHES:
                self._kept.popitem(last=False)
        inputs, outputs, evaluate = self._kept[key]
        for name, array in feed_dict.items():
            inputs[name][...] = array
        evaluate(self.depth)
        self.inference_time = time.perf_counter() - started
        return OrderedDict(zip(self.outputs, outputs, strict=True))

    def deactivate_impl(self) -> None:
        """Close the engine, unless it is another's."""
        self._kept.clear()
        self._stack.close()

    def _bound(self, feed: Inputs) -> _Bound:
        x, t = (np.empty(feed[name].shape, np.float32) for name in ("x", "t"))
        conditions = {
            name: np.empty(feed[name].shape, spec.dtype)
            for name, spec in self.interface.conditions.items()
        }
        outputs = [np.empty_like(x) for _ in self.outputs]
        evaluate = self._engine.bind(x, t, conditions, outputs)
        return {"x": x, "t": t, **conditions}, outputs, evaluate
