"""Joining: one batch for each evaluation, of whatever samples have come to the same choice."""

from __future__ import annotations

import time
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress

import numpy as np

from eecompile.runtime.pool import TrajectoryPool
from eecompile.runtime.trajectory.host import HostEvaluation, HostTrajectory
from eecompile.runtime.trajectory.plan import BoundEvaluation
from eecompile.serve.jobs import BatchMetrics, PendingRequest, Progress, Spent

_IDLE = 32  # trajectories that wait for the next request of their kind: making one takes long
_KEPT = 32  # sizes of batches whose arrays an engine keeps bound
_SHAPES = 8  # of states, for which there are arrays
_FULLER = 2  # times the rows of the oldest one's batch: another choice then goes first
_OVERTAKEN = 8  # times running, at most


class JointEvaluations:
    """Evaluates the same choice for several trajectories in one batch.

    Rows are copied into one set of arrays, and the outputs back: an engine reads each row's
    own timestep and conditions.

    Args:
        limit: rows of a batch.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rooms: OrderedDict[tuple[int, tuple[int, ...]], _Room] = OrderedDict()

    def group(self, evaluations: Sequence[HostEvaluation], patient: bool = False) -> list[int]:
        """Which evaluations share the next batch.

        Args:
            evaluations: that wait, the oldest first, which is in the batch,
            patient: unless it may wait, and another choice fills a batch over twice as well.
        """
        first = evaluations[0]
        if patient:
            first = self._fuller(evaluations)
        if first.alone:
            return [0]
        chosen, rows = list[int](), 0
        for index, each in enumerate(evaluations):
            more = each.operation.rows
            if each.kind != first.kind or each.alone or (chosen and rows + more > self._limit):
                continue
            chosen.append(index)
            rows += more
        return chosen

    def _fuller(self, evaluations: Sequence[HostEvaluation]) -> HostEvaluation:
        """The oldest, or the oldest of a choice whose batch has over twice its rows."""
        rows: dict[object, int] = {}
        firsts: dict[object, HostEvaluation] = {}
        for each in evaluations:
            if not each.alone:
                firsts.setdefault(each.kind, each)
                more = rows.get(each.kind, 0) + each.operation.rows
                rows[each.kind] = min(more, self._limit)
        oldest = evaluations[0]
        own = oldest.operation.rows if oldest.alone else rows[oldest.kind]
        kind = max(rows, key=lambda kind: rows[kind], default=None)
        return oldest if kind is None or rows[kind] <= _FULLER * own else firsts[kind]

    def evaluate(self, group: Sequence[HostEvaluation]) -> None:
        """Make evaluations of one kind, whose rows fit into a batch."""
        if len(group) == 1:
            group[0]()
            return
        first = group[0]
        key = id(first.engine), first.x.shape[1:]
        if key not in self._rooms:
            self._rooms[key] = _Room(self._limit, first)
        self._rooms.move_to_end(key)
        while len(self._rooms) > _SHAPES:
            self._rooms.popitem(last=False)
        self._rooms[key].evaluate(group)


class _Room:
    """Arrays for the largest batch of an engine at one shape, bound for the sizes that occur."""

    def __init__(self, limit: int, like: HostEvaluation) -> None:
        self._engine, x = like.engine, (limit, *like.x.shape[1:])
        self._x, self._t = np.empty(x, np.float32), np.empty(limit, np.float32)
        self._conditions = {
            name: np.empty((limit, *array.shape[1:]), array.dtype)
            for name, array in like.conditions.items()
        }
        self._outputs = [np.empty(x, np.float32) for _ in like.outputs]
        self._bound: OrderedDict[int, BoundEvaluation] = OrderedDict()

    def evaluate(self, group: Sequence[HostEvaluation]) -> None:
        rows = 0
        for each in group:
            part = slice(rows, rows + each.operation.rows)
            self._x[part], self._t[part] = each.x, each.t
            for name, array in each.conditions.items():
                self._conditions[name][part] = array
            rows = part.stop
        with np.errstate(over="ignore", invalid="ignore"):  # each trajectory checks its outputs
            self._bound_for(rows)(group[0].operation.depth)
        rows = 0
        for each in group:
            part = slice(rows, rows + each.operation.rows)
            for output, made in zip(each.outputs, self._outputs, strict=True):
                output[:] = made[part]
            rows = part.stop

    def _bound_for(self, rows: int) -> BoundEvaluation:
        if rows not in self._bound:
            self._bound[rows] = self._engine.bind(
                self._x[:rows],
                self._t[:rows],
                {name: array[:rows] for name, array in self._conditions.items()},
                [output[:rows] for output in self._outputs],
            )
        self._bound.move_to_end(rows)
        while len(self._bound) > _KEPT:
            self._bound.popitem(last=False)
        return self._bound[rows]


class Passage:
    """A batch on its way through its program, from evaluation to evaluation.

    Attributes:
        job: whose batch it is.
        came: its place among others.
        samples: how many.
        evaluation: that it waits for.
        overtaken: batches that have gone before it since its last, as the oldest.
    """

    evaluation: HostEvaluation

    def __init__(
        self, job: PendingRequest, batch: int, came: float, pool: TrajectoryPool[HostTrajectory]
    ) -> None:
        self.job, self.came = job, came
        self.overtaken = 0
        self._batch, self._seconds = batch, 0.0
        self._stack = ExitStack()
        planned = job.run.batches[batch]
        self.samples = len(planned.places)
        borrowed = pool.trajectory(job.run.engine, planned.plan)
        self._trajectory = self._stack.enter_context(borrowed)
        self._trajectory.start(planned.rows)
        self._evaluations = self._all()

    def advance(self, seconds: float = 0.0) -> bool:
        """Go on to the next evaluation: True, or False at the end.

        Args:
            seconds: that the evaluation before has taken, in its share of the batch.
        """
        self._seconds += seconds
        following = next(self._evaluations, None)
        if following is None:
            return False
        self.evaluation = following
        return True

    def finish(self) -> None:
        """Hand the samples over, and give the memory back."""
        self.job.finish(self._batch, self._trajectory.state())
        self._stack.close()

    def drop(self, error: Exception | None = None) -> None:
        """Give the memory back; what was being made is lost."""
        with suppress(Exception), self._stack:
            if error is not None:
                raise error  # a trajectory that failed is not used again

    def _all(self) -> Iterator[HostEvaluation]:
        run, trajectory = self.job.run, self._trajectory
        for index in range(len(run.program.steps)):
            yield from trajectory.evaluations(index)
            run.tell(trajectory, index, self._seconds)
            self._report(index)
            self._seconds = 0.0

    def _report(self, index: int) -> None:
        job = self.job
        if job.watch is None:
            return
        steps, places = job.run.program.steps, job.run.batches[self._batch].places
        step, samples = steps[index], tuple(row for _, row in places)
        before = job.spent.get(step.chosen.text, Spent())
        spent = Spent(before.steps + 1, before.seconds + self._seconds)
        job.spent[step.chosen.text] = spent
        state = self._trajectory.state()
        job.watch(
            Progress(index, len(steps), step.timestep, step.chosen, samples, state, dict(job.spent))
        )


class Joining:
    """Takes all passages on, one evaluation after another, the oldest job's first where it pays.

    Args:
        limit: rows of a batch.
        room: samples that may be on their way.
        told: of every batch.

    Attributes:
        done: samples that have been made, or have failed.
    """

    def __init__(self, limit: int, room: int, told: Callable[[BatchMetrics], object]) -> None:
        self._room, self._told = room, told
        self._joint = JointEvaluations(limit)
        self._pool = TrajectoryPool(HostTrajectory, _IDLE)
        self._active: list[Passage] = []
        self.done = 0

    @property
    def active(self) -> int:
        """Samples on their way."""
        return sum(each.samples for each in self._active)

    @property
    def room(self) -> int:
        """Samples that may begin now."""
        return self._room - self.active

    def begin(self, came: float, job: PendingRequest, batch: int) -> None:
        """Let a batch join, unless nobody waits for it any more."""
        if job.over():
            return
        try:
            passage = Passage(job, batch, came, self._pool)
        except Exception as error:  # such as too little memory
            job.fail(error)
            return
        insort(self._active, passage, key=lambda each: each.came)
        self._take_on(passage)

    def turn(self) -> None:
        """Make one evaluation, for the oldest and whoever else has come to the same choice.

        Where a choice at which more wait fills the batch better, it goes first, a few times.
        """
        for gone in [each for each in self._active if each.job.over()]:
            self._active.remove(gone)
            gone.drop()
        if not self._active:
            return
        oldest = self._active[0]
        chosen = self._joint.group(
            [each.evaluation for each in self._active], oldest.overtaken < _OVERTAKEN
        )
        oldest.overtaken = 0 if chosen[0] == 0 else oldest.overtaken + 1
        group = [self._active[index] for index in chosen]
        rows = sum(each.evaluation.operation.rows for each in group)
        started = time.perf_counter()
        self._evaluate(group)
        seconds = time.perf_counter() - started
        self._told(BatchMetrics(len(group), rows, seconds))
        for passage in group:
            if passage.job.over():
                continue  # and leaves with the next turn
            share = seconds * passage.evaluation.operation.rows / rows
            self._take_on(passage, share)

    def close(self, error: Exception) -> None:
        """Fail whatever is on its way, and release all memory."""
        for passage in self._active:
            passage.job.fail(error)
            passage.drop()
        self._active.clear()
        self._pool.close()

    def _evaluate(self, group: Sequence[Passage]) -> None:
        try:
            self._joint.evaluate([each.evaluation for each in group])
        except Exception as error:  # backends' errors share no base class
            if len(group) == 1:
                group[0].job.fail(error)
                return
            for passage in group:  # one must not spoil the others'
                self._evaluate([passage])

    def _take_on(self, passage: Passage, seconds: float = 0.0) -> None:
        """Take a passage on to its next evaluation or its end; if it fails, so does its job.

        It has left before its future ends: whoever waited for that finds its room free.
        """
        try:
            if passage.advance(seconds):
                return
            self._leave(passage)
            passage.finish()
        except Exception as error:  # NaN, or what a caller's function raises
            self._leave(passage)
            passage.job.fail(error)
            passage.drop(error)

    def _leave(self, passage: Passage) -> None:
        if passage in self._active:
            self._active.remove(passage)
            self.done += passage.samples
