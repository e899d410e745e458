"""The protocol of engines: what a sampler and its trajectories ask of what evaluates a network.

A simple engine has three attributes and :meth:`Engine.evaluate`. What else engines can do has a
default here, which those override that can do better: evaluate without allocating, keep
trajectories on a device, or stand for several engines. Companions, which run once a sampling, are
engines with one function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from eecompile.arrays import Array, Inputs
from eecompile.errors import BackendError
from eecompile.handle import Handle
from eecompile.runtime.trajectory.host import HostTrajectory
from eecompile.runtime.trajectory.plan import (
    NONE,
    WHOLE,
    BoundEvaluation,
    Plan,
    Spans,
    Stretch,
    Trajectory,
)


class Engine(Handle, ABC):
    """Evaluates a network at any of its exits. May be used from several threads.

    Attributes:
        exits: depths that it evaluates, ascending.
        precision: of weights and activations, for messages.
        max_batch: largest batch that it takes.
        concurrent: whether threads evaluate side by side; otherwise one waits for another.
        members: engines by the names that schedules may give; empty for a single engine.
        runs_trajectories: whether all steps of a trajectory are best taken at once, by
            :meth:`Trajectory.run`, whose first call records them; so it is on a GPU.
        spans: what leaves each span of blocks that it can skip; empty where it evaluates
            exits as a whole.
    """

    exits: tuple[int, ...]
    precision: str
    max_batch: int
    concurrent: bool = True
    members: Mapping[str, Engine] = MappingProxyType({})
    runs_trajectories: bool = False
    spans: Spans = MappingProxyType({})

    @abstractmethod
    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """What the network gives at ``depth``.

        Args:
            depth: one of ``exits``.
            x: noisy input, float32 [B, ...], contiguous, B at most ``max_batch``.
            t: timestep, float32 [B].
            conditions: one array per condition, first axis B.

        Returns:
            The interface's outputs: the prediction, and a learned variance where the
            process has one; float32, shaped as ``x``, new arrays.

        Raises:
            BackendError: the engine refuses these inputs.
        """

    def member(self, name: str) -> Engine:
        """The member of that name; an engine stands for every name that it has no member for."""
        return self.members.get(name, self)

    def open_all(self) -> None:
        """Open what is otherwise opened when an evaluation first needs it.

        Raises:
            BackendError: the engine's library refuses it.
        """

    def bind(
        self,
        x: Array,
        t: Array,
        conditions: Inputs,
        outputs: Sequence[Array],
        tensors: Mapping[str, Array] = NONE,
    ) -> BoundEvaluation:
        """A function of the depth, which evaluates on what the arrays hold when it is called.

        Of an engine with spans it takes a stretch, too: what runs above a cut reads what ran up
        to it, or what has been put into ``tensors`` since.

        Args:
            x: noisy input, float32 [B, ...], contiguous.
            t: timestep, float32 [B].
            conditions: one array per condition, first axis B.
            outputs: one array for each of the interface's outputs, shaped as ``x``,
                written by every call.
            tensors: arrays for tensors that enter and leave spans, by their names, [B, *shape];
                written by what makes them.

        Returns:
            The function; it raises a BackendError where outputs have another shape.
        """

        def evaluate(depth: int, stretch: Stretch = WHOLE) -> None:
            assert stretch is WHOLE, "an engine without spans"
            found = self.evaluate(depth, x, t, conditions)
            if [output.shape for output in found] != [x.shape for _ in outputs]:
                raise BackendError(
                    found=f"outputs of shapes {[list(o.shape) for o in found]} at exit {depth}",
                    expected=f"the state's shape, {list(x.shape)}",
                    remedy="fix state.shape, or the network, and export again",
                )
            for into, output in zip(outputs, found, strict=True):
                into[:] = output

        return evaluate

    def trajectory(self, plan: Plan) -> Trajectory:
        """A new trajectory for a plan; on the host unless the engine has a device.

        Raises:
            BackendError: there is not enough memory on the device.
            UsageError: the plan's shape has no elements, which devices refuse.
        """
        return HostTrajectory(self, plan)


class CompanionEngine(Handle, ABC):
    """Evaluates an encoder or a decoder. May be used from several threads."""

    @abstractmethod
    def run(self, inputs: Inputs) -> list[Array]:
        """The outputs, float32, in the order of the manifest.

        Args:
            inputs: an array for each of the manifest's inputs, by name, the batch first.

        Raises:
            BackendError: the engine refuses these inputs.
        """
