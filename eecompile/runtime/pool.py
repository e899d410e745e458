"""The trajectories of a sampler, kept for the next request of their kind."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Generic, TypeVar

from eecompile.errors import BackendError, UsageError
from eecompile.runtime.protocol import Engine
from eecompile.runtime.trajectory.plan import Plan, Trajectory

Kind = TypeVar("Kind", bound=Trajectory)


class TrajectoryPool(Generic[Kind]):
    """Lends an engine's trajectories. May be used from several threads.

    Args:
        make: makes a trajectory of an engine for a plan.
        idle: how many may wait for the next request of their kind.
    """

    def __init__(self, make: Callable[[Engine, Plan], Kind], idle: int = 8) -> None:
        self._make, self._most = make, idle
        self._lock = Lock()
        self._idle: OrderedDict[object, list[Kind]] = OrderedDict()
        self._closed = False

    def check_open(self) -> None:
        """Pass until the pool is closed."""
        if self._closed:
            raise _closed()

    @contextmanager
    def trajectory(self, engine: Engine, plan: Plan) -> Iterator[Kind]:
        """A trajectory for a plan, lent to the block; kept afterwards, unless something fails.

        Raises:
            BackendError: there is no memory for it, even without those that are kept.
            UsageError: the sampler was closed meanwhile.
        """
        # The trajectory keeps the program, so that its id stays its own.
        program = id(plan.program)
        key = (program, plan.shape, plan.size, plan.guided, plan.interval, plan.apart)
        trajectory = self._kept(key) or self._made(engine, plan)
        try:
            yield trajectory
        except BaseException as error:
            with suppress(Exception):  # what went wrong first is what is told
                trajectory.close()
            if self._closed and isinstance(error, Exception):
                raise _closed() from error  # whatever closing brought about
            raise
        self._put_back(key, trajectory)

    def close(self) -> None:
        """Release what is kept; what is lent is released when it comes back."""
        with self._lock:
            self._closed = True  # from here on, nothing is put back
        self._clear()

    def _kept(self, key: object) -> Kind | None:
        with self._lock:
            waiting = self._idle.get(key)
            trajectory = waiting.pop() if waiting else None
            if waiting == []:
                del self._idle[key]
        return trajectory

    def _made(self, engine: Engine, plan: Plan) -> Kind:
        try:
            return self._make(engine, plan)
        except BackendError:
            self._clear()  # memory that waits for other requests may be what is missing
            return self._make(engine, plan)

    def _put_back(self, key: object, trajectory: Kind) -> None:
        surplus = []
        with self._lock:
            if self._closed:
                surplus.append(trajectory)
            else:
                self._idle.setdefault(key, []).append(trajectory)
                self._idle.move_to_end(key)
            while sum(map(len, self._idle.values())) > self._most:
                oldest = next(iter(self._idle))
                surplus.append(self._idle[oldest].pop())
                if not self._idle[oldest]:
                    del self._idle[oldest]
        for each in surplus:
            each.close()

    def _clear(self) -> None:
        with self._lock:
            idle = [trajectory for waiting in self._idle.values() for trajectory in waiting]
            self._idle.clear()
        for trajectory in idle:
            trajectory.close()


def _closed() -> UsageError:
    return UsageError(
        found="a sampler that is closed",
        expected="an open one",
        remedy="sample within its with statement, or open it again",
    )
