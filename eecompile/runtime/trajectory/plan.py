"""What a trajectory is: the plan of a batch's way through a program, and the steps on it.

A sampler divides what it is asked for into batches that the engine takes. Each becomes a
trajectory: buffers for a program at one batch size, and the steps on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from eecompile.arrays import Array, DeviceArray, Inputs
from eecompile.handle import Handle
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program, Step
from eecompile.store.manifest import SpanTensor

Spans = Mapping[tuple[int, int], Sequence[SpanTensor]]
"""What leaves each span that an engine can skip, by the cuts at which it starts and stops."""


class Stretch(NamedTuple):
    """The part of an exit whose blocks come after cut ``above`` and up to cut ``upto``.

    Up to a cut runs what leads to the first block, too; above one, what follows the last block.
    """

    above: int = -1
    upto: int | None = None

    def holds(self, level: int) -> bool:
        """Whether a segment of that level belongs to it."""
        return self.above < level and (self.upto is None or level <= self.upto)


WHOLE = Stretch()
"""All of an exit."""
NONE: Mapping[str, Array] = MappingProxyType({})
"""No tensors of spans."""


class BoundEvaluation(Protocol):
    """An evaluation on fixed arrays."""

    def __call__(self, depth: int, stretch: Stretch = WHOLE) -> None:
        """Evaluate an exit, or a part of it, on what the arrays hold now."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is static of a trajectory.

    Attributes:
        program: the steps; every depth is chosen.
        interface: what the network takes and gives.
        shape: of one sample.
        size: number of samples, n.
        guided: how many of them are guided, g; those are the first. Where guidance acts,
            rows n to n + g of an evaluation's batch are the first g samples again, with
            the null conditions.
        interval: times within which guidance acts, both included (arXiv 2404.07724).
        apart: whether an evaluation takes one row at a time (engines of batch 1).
    """

    program: Program
    interface: Interface
    shape: tuple[int, ...]
    size: int
    guided: int = 0
    interval: tuple[float, float] | None = None
    apart: bool = False

    def acts(self, step: Step) -> bool:
        """Whether guidance acts in ``step``."""
        if not self.guided or not step.chosen.evaluates:
            return False
        return self.interval is None or self.interval[0] <= step.moment <= self.interval[1]

    def rows(self, step: Step) -> int:
        """Batch size of the evaluation in ``step``: n, or n + g; 0 where there is none."""
        if not step.chosen.evaluates:
            return 0
        return self.size + (self.guided if self.acts(step) else 0)


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What is particular to each sample of a trajectory.

    Attributes:
        seeds: of each sample, uint64 [n].
        samples: index of each sample under its seed, uint64 [n].
        scales: guidance of each guided sample, float32 [g].
        conditions: by name, for the n samples and then, without condition, for the g
            guided ones, [n + g, ...].
    """

    seeds: NDArray[np.uint64]
    samples: NDArray[np.uint64]
    scales: Array
    conditions: Inputs


class Member(Protocol):
    """What the lowering reads of an engine; see :class:`eecompile.runtime.protocol.Engine`.

    The protocol of engines imports trajectories, so that an engine can make its own.
    """

    precision: str
    spans: Spans

    def member(self, name: str) -> Member:
        """See :meth:`eecompile.runtime.protocol.Engine.member`."""


class Evaluator(Member, Protocol):
    """What a trajectory on the host reads of an engine."""

    def member(self, name: str) -> Evaluator:
        """See :meth:`eecompile.runtime.protocol.Engine.member`."""

    def bind(
        self,
        x: Array,
        t: Array,
        conditions: Inputs,
        outputs: Sequence[Array],
        tensors: Mapping[str, Array] = NONE,
    ) -> BoundEvaluation:
        """See :meth:`eecompile.runtime.protocol.Engine.bind`."""


class Trajectory(Handle, ABC):
    """Buffers for a plan, and the steps on them; used by one thread at a time.

    Attributes:
        plan: what is static.
        rows: how many rows each step evaluates.
    """

    plan: Plan
    rows: Sequence[int]

    @abstractmethod
    def start(self, rows: Rows) -> None:
        """Load the conditions and the initial noise; the next step is step 0."""

    @abstractmethod
    def step(self, index: int) -> None:
        """Take one step. Steps are taken in order.

        Raises:
            NonFiniteError: the network returned NaN or infinity. A device may find that
                only when the state is read.
            BackendError: the engine failed.
        """

    def run(self) -> None:
        """Take all steps."""
        for index in range(len(self.plan.program.steps)):
            self.step(index)

    def wait(self) -> None:
        """Return once the steps taken are done."""

    @abstractmethod
    def state(self) -> Array:
        """The state now, float32 [n, *shape]: a copy on the host.

        Raises:
            NonFiniteError: the network returned NaN or infinity on the way.
        """

    def state_dlpack(self) -> DeviceArray:
        """The state now, as :meth:`state`, but a copy where it was computed.

        Returns:
            An object for ``torch.from_dlpack`` and the like; it outlives the trajectory.
        """
        return self.state()
