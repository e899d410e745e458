"""Engine sets of one network, opened together: a schedule then also chooses the precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eecompile.arrays import Array, Inputs
from eecompile.errors import UsageError
from eecompile.handle import Handle
from eecompile.runtime.cuda.device import Device
from eecompile.runtime.engine import Engine
from eecompile.runtime.engines.device import DeviceEngine
from eecompile.runtime.trajectory.device import DeviceTrajectory
from eecompile.runtime.trajectory.host import Plan

__all__ = ["DeviceGroup", "EngineGroup", "grouped"]


class EngineGroup(Handle):
    """Engines of the same network; the first is the one that is asked unless another is named.

    Args:
        engines: by name; the group closes them.

    Attributes:
        engines: by name, in the order in which they were opened.
        exits: depths that they evaluate, ascending.
        precision: of each, for messages.
        max_batch: largest batch that all of them take.
        concurrent: whether threads may evaluate side by side.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = dict(engines)
        members = list(self.engines.values())
        self.first = members[0]
        self.exits = self.first.exits
        self.precision = " and ".join(dict.fromkeys(each.precision for each in members))
        self.max_batch = min(each.max_batch for each in members)
        self.concurrent = all(getattr(each, "concurrent", True) for each in members)

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """The first engine's outputs; see :meth:`eecompile.runtime.engine.Engine.evaluate`."""
        return self.first.evaluate(depth, x, t, conditions)

    def close(self) -> None:
        """Release all engines, the first one last: others may use its GPU."""
        for engine in reversed(self.engines.values()):
            engine.close()


class DeviceGroup(EngineGroup):
    """A group on one GPU: all queue their work on the same stream.

    Attributes:
        device: the GPU, which belongs to the first engine.
    """

    def __init__(self, engines: Mapping[str, DeviceEngine]) -> None:
        super().__init__(engines)
        self.members = list(engines.values())
        self.device: Device = self.members[0].device

    def enqueue(
        self,
        depth: int,
        batch: tuple[int, ...],
        inputs: Mapping[str, int],
        outputs: Sequence[int],
    ) -> None:
        """Queue an evaluation of the first engine."""
        self.members[0].enqueue(depth, batch, inputs, outputs)

    def settle(self) -> bool:
        """Whether evaluations of all can now be recorded in a CUDA graph."""
        settled = [member.settle() for member in self.members]  # each has work to do then
        return all(settled)

    def trajectory(self, plan: Plan) -> DeviceTrajectory:
        """A trajectory whose buffers stay on the GPU.

        Raises:
            BackendError: there is not enough GPU memory.
            UsageError: the plan's shape has no elements.
        """
        return DeviceTrajectory(self, plan)


def grouped(engines: Mapping[str, Engine]) -> EngineGroup:
    """A group of engines; on the GPU as a whole where all are on the same one.

    Raises:
        UsageError: they are of networks with different exits.
    """
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
