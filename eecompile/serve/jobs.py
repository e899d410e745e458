"""What callers wait for, and the bounded queue in which it waits."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from itertools import count
from threading import Condition

import msgspec
import numpy as np

from eecompile.arrays import Array
from eecompile.errors import (
    DeadlineError,
    EecompileError,
    QueueFullError,
    StoppedError,
    summary,
)
from eecompile.programs.choice import Choice
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampling import BatchRun


class Spent(msgspec.Struct, frozen=True):
    """What a choice has cost a request.

    Attributes:
        steps: that its batches have taken.
        seconds: in the engines, divided among requests by rows.
    """

    steps: int = 0
    seconds: float = 0.0


class Progress(msgspec.Struct, frozen=True):
    """A step that some samples of a request have taken.

    Attributes:
        index: of the step, from 0.
        steps: number of steps of the program.
        timestep: at which the network was evaluated.
        choice: what was evaluated.
        samples: which of the request's samples, from 0: all, unless they are more than a batch.
        state: of these, float32 [len(samples), ...].
        spent: on the whole request so far, by the choice's text.
    """

    index: int
    steps: int
    timestep: float
    choice: Choice
    samples: tuple[int, ...]
    state: Array
    spent: Mapping[str, Spent]


class BatchMetrics(msgspec.Struct, frozen=True):
    """What a hook is told of a batch.

    Attributes:
        requests: that shared it.
        rows: of the evaluation, those of guidance included; of a whole trajectory, its samples.
        seconds: wall time.
    """

    requests: int
    rows: int
    seconds: float


Watch = Callable[[Progress], object]


class PendingRequest:
    """A request on its way; ``future`` gets its samples, float32 [n, *shape], or decoded.

    Args:
        request: which samples.
        came: when, in seconds of :func:`time.monotonic`, less its head start.
        deadline: until when, in the same seconds; None for no end.
        watch: told of every step.
        decode: is handed the request and its samples, and answers it; None for the samples
            themselves.

    Attributes:
        run: its batches and program, once it is planned.
    """

    run: BatchRun

    def __init__(
        self,
        request: SampleRequest,
        came: float,
        deadline: float | None = None,
        watch: Watch | None = None,
        decode: Callable[[PendingRequest, Array], object] | None = None,
    ) -> None:
        self.request, self.came, self.deadline = request, came, deadline
        self.watch, self._decode = watch, decode
        self.future: Future[Array] = Future()
        self.begun = 0  # batches
        self.spent: dict[str, Spent] = {}
        self._left = -1  # batches; none is planned

    def plan(self, request: SampleRequest, run: BatchRun) -> None:
        """Take the batches and the program, and the conditions that stand for prompts."""
        self.request, self.run = request, run
        self._samples = np.empty(run.shapes[0], np.float32)
        self._left = len(run.batches)

    @property
    def waiting(self) -> int:
        """Samples that have not begun."""
        if self._left < 0:
            return self.request.n
        return sum(len(batch.places) for batch in self.run.batches[self.begun :])

    def over(self) -> bool:
        """Whether nobody waits for it any more; past its deadline, it fails."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.fail(
                DeadlineError(
                    found="a request whose deadline has passed",
                    expected="samples before that",
                    remedy="allow more seconds, ask for fewer steps, or send fewer requests",
                )
            )
        return self.future.done()

    def finish(self, batch: int, state: Array) -> None:
        """Take the samples of a batch; with those of the last, the future has its result."""
        for (_, row), sample in zip(self.run.batches[batch].places, state, strict=True):
            self._samples[row] = sample
        self._left -= 1
        if not self._left:
            self.made(self._samples)

    def made(self, samples: Array) -> None:
        """Have the samples decoded, or give them to the future."""
        if self._decode is None:
            self.answer(samples)
        else:
            self._decode(self, samples)

    def answer(self, samples: Array) -> None:
        """Give the future its result, unless it has been cancelled."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_result(samples)

    def fail(self, error: BaseException) -> None:
        """Give the future an error, unless it has ended."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Queue:
    """Jobs that wait, oldest first; a head start makes one older than it is.

    Args:
        limit: samples that may wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = Condition()
        self._jobs: list[tuple[float, int, PendingRequest]] = []
        self._held: dict[int, PendingRequest] = {}
        self._order = count()
        self._waiting = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Samples that wait."""
        return self._waiting

    def hold(self, job: PendingRequest) -> None:
        """Count a job that is not planned yet among those that wait; :meth:`put` adds it.

        Raises:
            QueueFullError: too many samples wait.
            StoppedError: the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise stopped()
            if self._waiting and self._waiting + job.waiting > self._limit:
                raise QueueFullError(
                    found=f"{self._waiting} samples waiting, and {job.waiting} more",
                    expected=f"at most {self._limit}",
                    remedy="ask again later",
                )
            self._held[id(job)] = job
            self._waiting += job.waiting
        job.future.add_done_callback(lambda _: self._forget(job))

    def put(self, job: PendingRequest) -> None:
        """Add a planned job that is held, unless it has ended."""
        with self._changed:
            if self._held.pop(id(job), None) is not None:
                self._waiting -= job.waiting
                self._push(job, job.came)

    def count(self, samples: int) -> None:
        """Count samples that wait for a decoder, too, or with a negative number no longer."""
        with self._changed:
            self._waiting += samples

    def close(self) -> None:
        """Take no more jobs; those that wait can still begin."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self) -> bool:
        """Return once a job waits: True; or none does and none will: False."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or (self._closed and not self._held))
            return bool(self._jobs)

    def begin(self, room: int) -> list[tuple[float, PendingRequest, int]]:
        """The batches that begin now, of about ``room`` samples: when they came, and which.

        The next batch of a job waits behind whatever has come until its last one began.
        """
        begun = []
        with self._changed:
            while self._jobs and room > 0:
                came, _, job = heapq.heappop(self._jobs)
                self._waiting -= job.waiting
                begun.append((came, job, job.begun))
                room -= len(job.run.batches[job.begun].places)
                job.begun += 1
                if job.waiting:
                    self._push(job, time.monotonic())
        return begun

    def sweep(self) -> None:
        """Fail what waits past its deadline."""
        with self._changed:
            jobs = [*self._held.values(), *(entry[2] for entry in self._jobs)]
        for job in jobs:
            job.over()

    def gather(self, room: int) -> list[PendingRequest]:
        """The oldest job, and others of its program, of about ``room`` samples together."""
        with self._changed:
            if not self._jobs:
                return []
            first = self._jobs[0][2]
            alike, others = [], []
            for entry in sorted(self._jobs):
                job = entry[2]
                fits = job.waiting <= room and _goes_with(first, job)
                if job is first or fits:
                    alike.append(job)
                    room -= job.waiting
                    self._waiting -= job.waiting
                    job.begun = len(job.run.batches)
                else:
                    others.append(entry)
            self._jobs = others  # sorted, which is a heap
        return alike

    def _push(self, job: PendingRequest, key: float) -> None:
        heapq.heappush(self._jobs, (key, next(self._order), job))
        self._waiting += job.waiting
        self._changed.notify_all()

    def _forget(self, job: PendingRequest) -> None:
        """Make room at once where a job that waits has ended."""
        with self._changed:
            if self._held.pop(id(job), None) is not None:
                self._waiting -= job.waiting
                self._changed.notify_all()
                return
            if job.begun == len(job.run.batches):
                return
            left = [entry for entry in self._jobs if entry[2] is not job]
            if len(left) < len(self._jobs):
                self._waiting -= job.waiting
                self._jobs = left
                heapq.heapify(left)


def _goes_with(first: PendingRequest, job: PendingRequest) -> bool:
    """Whether two jobs can be sampled together."""
    one, other = first.request.guidance_interval, job.request.guidance_interval
    return first.run.program is job.run.program and one == other


def sentence_of(error: BaseException) -> str:
    """What a caller is told of an error: what was found, what is expected, what to do."""
    if isinstance(error, EecompileError):
        return str(error)
    return (
        f"found {summary(error)[:300]}; expected engines that evaluate; try again, or see the "
        "server's log."
    )


def stopped() -> StoppedError:
    """The error of jobs that a scheduler takes or finishes no more."""
    return StoppedError(
        found="a scheduler that is closing",
        expected="one that is open",
        remedy="send the request to another server, or again later",
    )
