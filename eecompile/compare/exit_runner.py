"""What every runner of one exit has in common, for polygraphy."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from eecompile.arrays import Array, Inputs
from eecompile.programs.interface import Interface
from eecompile.programs.schedule import ExitSchedule
from eecompile.store.bundle import output_names

Feed = Inputs
Evaluate = Callable[[Feed], Sequence[Array]]


class ExitRunner(BaseRunner):  # type: ignore[misc]
    """One exit of a network, for ``Comparator.run``.

    Args:
        interface: what the network takes and gives.
        depth: the exit.
        name: of the runner; by default the kind of runner and the exit.

    Attributes:
        outputs: names of the outputs, as in the bundle's graphs.

    Raises:
        ScheduleError: the network has no such exit.
    """

    kind = "runner"
    is_active = False  # polygraphy asks when a runner goes, even one that was never made

    def __init__(self, interface: Interface, depth: int, name: str | None = None) -> None:
        ExitSchedule.constant(depth).check(interface.exits)
        super().__init__(name=name or f"{self.kind}, exit {depth}")
        self.interface = interface
        self.depth = depth
        self.outputs = output_names(interface, depth)
        self._stack: ExitStack | None = None
        self._evaluate: Evaluate | None = None

    @contextmanager
    @abstractmethod
    def opened(self) -> Iterator[Evaluate]:
        """A function from the inputs to the outputs, float32, as long as the block lasts."""
        raise NotImplementedError
        yield

    def activate_impl(self) -> None:
        """Load what evaluates."""
        with ExitStack() as stack:
            self._evaluate = stack.enter_context(self.opened())
            self._stack = stack.pop_all()

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

    def infer_impl(self, feed_dict: Feed) -> OrderedDict[str, Array]:
        """The outputs by name; a runner may use their memory again."""
        assert self._evaluate is not None
        started = time.perf_counter()
        arrays = self._evaluate(feed_dict)
        self.inference_time = time.perf_counter() - started
        return OrderedDict(zip(self.outputs, arrays, strict=True))

    def deactivate_impl(self) -> None:
        """Release what evaluates."""
        stack, self._stack, self._evaluate = self._stack, None, None
        if stack is not None:
            stack.close()
