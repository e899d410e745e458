"""Engine sets of one network, opened together: a schedule then also chooses the precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eecompile.arrays import Array, Inputs
from eecompile.errors import UsageError
from eecompile.runtime.engines.device import DeviceEngine
from eecompile.runtime.protocol import Engine
from eecompile.runtime.trajectory.device import DeviceEvaluation, DeviceEvaluator
from eecompile.runtime.trajectory.plan import NONE, BoundEvaluation


class EngineGroup(Engine):
    """Engines of the same network; the first is the one that is asked unless another is named.

    Args:
        members: by name; the group closes them.

    Attributes:
        first: the member that was opened first.
    """

    def __init__(self, members: Mapping[str, Engine]) -> None:
        self.members = dict(members)
        engines = list(self.members.values())
        self.first = engines[0]
        self.exits = self.first.exits
        self.spans = self.first.spans
        self.precision = " and ".join(dict.fromkeys(each.precision for each in engines))
        self.max_batch = min(each.max_batch for each in engines)
        self.concurrent = all(each.concurrent for each in engines)

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """The first engine's outputs; see :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        return self.first.evaluate(depth, x, t, conditions)

    def bind(
        self,
        x: Array,
        t: Array,
        conditions: Inputs,
        outputs: Sequence[Array],
        tensors: Mapping[str, Array] = NONE,
    ) -> BoundEvaluation:
        """The first engine's evaluation on fixed arrays; see :meth:`Engine.bind`."""
        return self.first.bind(x, t, conditions, outputs, tensors)

    def close(self) -> None:
        """Release all engines, the first one last: others may use its GPU."""
        for engine in reversed(list(self.members.values())):
            engine.close()


class DeviceGroup(DeviceEvaluator, EngineGroup):
    """A group on one GPU: all queue their work on the same stream.

    Attributes:
        device: the GPU, which belongs to the first engine.
    """

    members: dict[str, DeviceEngine]
    first: DeviceEngine

    def __init__(self, members: Mapping[str, DeviceEngine]) -> None:
        super().__init__(members)
        self.device = self.first.device

    def member(self, name: str) -> DeviceEngine:
        """The member of that name, or the first engine."""
        return self.members.get(name, self.first)

    def enqueue(self, evaluation: DeviceEvaluation) -> None:
        """Queue an evaluation of the first engine."""
        self.first.enqueue(evaluation)

    def settle(self) -> bool:
        """Whether evaluations of all can now be recorded in a CUDA graph."""
        settled = [member.settle() for member in self.members.values()]  # each has work to do then
        return all(settled)


def grouped(engines: Mapping[str, Engine]) -> EngineGroup:
    """A group of engines of equal exits; on the GPU as a whole where all are on the same one."""
    if len({tuple(engine.exits) for engine in engines.values()}) > 1:
        raise UsageError(
            found="engines with different exits: "
            + ", ".join(f"{name} {list(engine.exits)}" for name, engine in engines.items()),
            expected="engines of the same network",
            remedy="build all of them from one bundle",
        )
    on_device = {n: e for n, e in engines.items() if isinstance(e, DeviceEngine)}
    devices = {id(engine.device) for engine in on_device.values()}
    if len(on_device) == len(engines) and len(devices) == 1:
        return DeviceGroup(on_device)
    return EngineGroup(engines)
