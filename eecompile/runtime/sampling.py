"""A sampling: what was asked for together, planned, and on its way through one program."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count

import msgspec
import numpy as np

from eecompile.arrays import Array, DeviceArray
from eecompile.errors import UsageError
from eecompile.programs.choice import Choice
from eecompile.programs.program import Program
from eecompile.runtime.pool import TrajectoryPool
from eecompile.runtime.protocol import Engine
from eecompile.runtime.request import Batch
from eecompile.runtime.trajectory.plan import Trajectory

_log = logging.getLogger("eecompile.runtime")


class StepResult(msgspec.Struct, frozen=True):
    """A step that has been taken.

    Attributes:
        index: of the step, from 0.
        timestep: at which the network was evaluated.
        choice: what was evaluated.
        state: the state after the step, float32 [n, ...].
        seconds: wall time of the step.
    """

    index: int
    timestep: float
    choice: Choice
    state: Array
    seconds: float


class StepMetrics(msgspec.Struct, frozen=True):
    """What a hook is told of a step on one batch; the other attributes are those of StepResult.

    Attributes:
        engine: the engine set's network and target.
        program: the solver and its options.
        samples: in the batch.
        rows: that the network was evaluated on, those of guidance included; 0 for none.
    """

    engine: str
    program: str
    index: int
    timestep: float
    choice: Choice
    samples: int
    rows: int
    seconds: float


Hook = Callable[[StepMetrics], object]


def progress_line(done: int, total: int) -> None:
    """Say on standard error how many steps are done, each time over what it said before."""
    print(
        f"\rstep {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True
    )


@dataclass(frozen=True)
class BatchRun:
    """Batches of samples that run through one program.

    Attributes:
        engine: evaluates the network.
        pool: lends the engine's trajectories.
        program: every choice is made.
        batches: of all requests' samples.
        shapes: of each request's samples, [n, ...].
        on_step: told of every step on every batch, if anyone is.
        name: of the engine set, for metrics.
    """

    engine: Engine
    pool: TrajectoryPool[Trajectory]
    program: Program
    batches: Sequence[Batch]
    shapes: Sequence[tuple[int, ...]]
    on_step: Hook | None
    name: str

    def watched(self, told: Callable[[int, int], object]) -> BatchRun:
        """This run, telling how many steps are done and of how many, besides the hook."""
        total, done = len(self.batches) * len(self.program.steps), count(1)

        def step(metrics: StepMetrics) -> None:
            told(next(done), total)
            if self.on_step is not None:
                self.on_step(metrics)

        return replace(self, on_step=step)

    def samples(self) -> list[Array]:
        """The samples of each request, float32 [n, ...]."""
        samples = [np.empty(shape, np.float32) for shape in self.shapes]
        started = time.perf_counter()
        for batch in self.batches:
            with self._started(batch) as trajectory:
                self._run(trajectory)
                for (request, row), sample in zip(batch.places, trajectory.state(), strict=True):
                    samples[request][row] = sample
        _log.debug(
            "%s: %d samples, %s, %d evaluations in %.3f s",
            self.name,
            sum(map(len, samples)),
            self.program.solver,
            len(self.batches) * len(self.program.steps),
            time.perf_counter() - started,
        )
        return samples

    def state_on_device(self) -> DeviceArray:
        """The samples of the only request, where they were computed; they speak DLPack.

        Raises:
            UsageError: they are more than one batch.
        """
        if len(self.batches) > 1:
            raise UsageError(
                found=f"{self.shapes[0][0]} samples to be left on the device",
                expected=f"no more than fit into a batch of {self.engine.max_batch}",
                remedy="ask for fewer at a time (first=...), or build for larger batches",
            )
        with self._started(self.batches[0]) as trajectory:
            self._run(trajectory)
            return trajectory.state_dlpack()

    def step_by_step(self) -> Iterator[StepResult]:
        """The steps of the only request."""
        with ExitStack() as stack:
            running = [(stack.enter_context(self._started(each)), each) for each in self.batches]
            for index, step in enumerate(self.program.steps):
                started = time.perf_counter()
                state = np.empty(self.shapes[0], np.float32)
                for trajectory, batch in running:
                    self._step(trajectory, index)
                    state[[row for _, row in batch.places]] = trajectory.state()
                seconds = time.perf_counter() - started
                yield StepResult(index, step.timestep, step.chosen, state, seconds)

    def warm_up(self) -> None:
        """Run a trajectory of each size; on the host, evaluate each exit and take one step."""
        sizes = {(each.plan.guided, each.plan.size): each for each in self.batches}
        for batch in sizes.values():
            with self._started(batch) as trajectory:
                if self.engine.runs_trajectories:
                    trajectory.run()
                else:
                    self._evaluate_exits(batch)
                    trajectory.step(0)

    def _evaluate_exits(self, batch: Batch) -> None:
        """Evaluate each exit of each engine once, whichever the schedule names."""
        plan = batch.plan
        rows = plan.size + (0 if plan.apart else plan.guided)
        x = np.zeros((rows, *plan.shape), np.float32)
        t = np.full(rows, plan.program.steps[0].timestep, np.float32)
        conditions = {name: array[:rows] for name, array in batch.rows.conditions.items()}
        for engine in self.engine.members.values() or [self.engine]:
            for depth in plan.interface.exits:
                engine.evaluate(depth, x, t, conditions)

    @contextmanager
    def _started(self, batch: Batch) -> Iterator[Trajectory]:
        """A trajectory at the initial noise of a batch, as long as the block lasts."""
        with self.pool.trajectory(self.engine, batch.plan) as trajectory:
            trajectory.start(batch.rows)
            yield trajectory

    def _run(self, trajectory: Trajectory) -> None:
        """Take all steps: at once where a device does that, unless someone watches."""
        if self.on_step is None and self.engine.runs_trajectories:
            self.pool.check_open()
            trajectory.run()
            return
        for index in range(len(self.program.steps)):
            self._step(trajectory, index)

    def _step(self, trajectory: Trajectory, index: int) -> None:
        self.pool.check_open()
        if self.on_step is None:
            trajectory.step(index)
            return
        started = time.perf_counter()
        trajectory.step(index)
        trajectory.wait()
        self.tell(trajectory, index, time.perf_counter() - started)

    def tell(self, trajectory: Trajectory, index: int, seconds: float) -> None:
        """Tell the hook, if there is one, of a step that a trajectory of this run has taken."""
        if self.on_step is None:
            return
        plan, step = trajectory.plan, self.program.steps[index]
        engine = step.chosen.engine
        metrics = StepMetrics(
            f"{plan.interface.name} for {engine}" if engine else self.name,
            self.program.solver,
            index,
            step.timestep,
            step.chosen,
            plan.size,
            trajectory.rows[index],
            seconds,
        )
        try:
            self.on_step(metrics)
        except Exception:  # whatever a caller's hook may raise
            _log.exception("the hook on_step failed")
