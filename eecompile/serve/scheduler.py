"""The scheduler: a queue, and one thread that evaluates for all callers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from threading import Thread

import msgspec

from eecompile.arrays import Array
from eecompile.errors import UsageError
from eecompile.handle import Handle
from eecompile.programs.program import Program
from eecompile.programs.solvers import Solver
from eecompile.runtime.companions import NotEncoded, decoding, prompted
from eecompile.runtime.program_cache import Schedule
from eecompile.runtime.prompts import count_of
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.serve.companions import CompanionThreads, Prompts
from eecompile.serve.jobs import BatchMetrics, PendingRequest, Progress, Queue, Watch, stopped
from eecompile.serve.joining import Joining

_KEEPS = 0.999  # of the mean seconds a sample, from one turn to the next
_SWEEP = 0.1  # seconds
_log = logging.getLogger("eecompile.serve")


class Load(msgspec.Struct, frozen=True):
    """How much there is to do.

    Attributes:
        waiting: samples that have not begun, or wait for the decoder.
        active: samples on their way.
        seconds: after which those that wait now will have begun, by the last samples' rate.
    """

    waiting: int
    active: int
    seconds: float


class Scheduler(Handle):
    """Samples for many callers at once, on one sampler; may be used from several threads.

    With ``joining``, a batch is formed for every evaluation, of whatever samples have come to
    the same choice (exit and engine set) and are of one shape, whatever their timestep, seed,
    guidance, solver or schedule: a request joins at the next evaluation. The oldest request is in
    the batch, unless another choice fills it over twice as well, eight times running at most.
    Without it, requests of one program that wait are sampled together to
    the end, by :meth:`Sampler.sample_requests`; so a GPU replays whole trajectories.

    What evaluates spans of blocks keeps hidden states, and does not share its evaluations.

    Args:
        sampler: which stays the caller's to close, after the scheduler. Joining tells its
            ``on_step`` of every step, with the step's share of the batch's seconds.
        joining: None joins unless the engines run whole trajectories, as on a GPU.
        max_batch: rows of an evaluation; None, and at most, the engine's. Where larger batches
            save no time, as on a CPU, fewer make requests wait less: see
            :func:`eecompile.serve.rows_that_pay`.
        max_active: samples that may be on their way; None is twice ``max_batch``.
        max_waiting: samples that may wait.
        on_batch: told of every batch. What it raises is logged, not raised.

    Attributes:
        sampler: the sampler.
        joining: whether evaluations are joined.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        joining: bool | None = None,
        max_batch: int | None = None,
        max_active: int | None = None,
        max_waiting: int = 1024,
        on_batch: Callable[[BatchMetrics], object] | None = None,
    ) -> None:
        largest = sampler.engine.max_batch
        limit = min(largest, largest if max_batch is None else max_batch)
        for name, value in (
            ("max_batch", limit),
            ("max_active", max_active),
            ("max_waiting", max_waiting),
        ):
            if value is not None and value < 1:
                raise UsageError(
                    found=f"{name} {value}", expected="1 or more", remedy="choose another number"
                )
        self.sampler = sampler
        self.joining = not sampler.engine.runs_trajectories if joining is None else joining
        self._limit, self._on_batch = limit, on_batch
        self._queue = Queue(max_waiting)
        self._work = Joining(limit, max_active or 2 * limit, self._told)
        self._companions = CompanionThreads(sampler, self._queue)
        self._gathered = 0  # samples of the batch that runs
        self._seconds, self._samples = 0.0, 0.0
        self._swept = 0.0
        self._stopping = False
        loop = self._join if self.joining else self._gather
        self._thread = Thread(target=loop, name="eecompile-serve", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that evaluates runs."""
        return self._thread.is_alive()

    def load(self) -> Load:
        """How much there is to do now."""
        waiting, samples = self._queue.waiting, self._samples
        seconds = waiting * self._seconds / samples if samples else 0.0
        return Load(waiting, self._gathered or self._work.active, seconds)

    def submit(
        self,
        request: SampleRequest,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        priority: float = 0.0,
        deadline: float | None = None,
        prompt: Prompts | None = None,
        negative: Prompts | None = None,
        decode: bool = False,
        watch: Watch | None = None,
    ) -> Future[Array]:
        """Ask for samples; the future has them, float32 [n, *shape], or the error.

        Where the network has encoders or a decoder, a thread of their own encodes prompts before
        the samples begin, and another decodes them in the end.

        Cancel the future to give its rows back: it leaves before the next evaluation.

        Args:
            request: which samples.
            solver: see :meth:`Sampler.steps`, as ``steps`` and ``schedule``.
            steps: number of steps.
            schedule: exit schedule.
            priority: a head start in seconds: how much older than it is the request counts.
            deadline: seconds from now after which it fails.
            prompt: see :meth:`Sampler.steps`, as ``negative``; one, or one for each sample.
            negative: likewise.
            decode: whether the future has what the decoder makes of the samples.
            watch: told of every step by the thread that evaluates, when joining; it must be
                quick. What it raises ends the request.

        Raises:
            UsageError: an argument is out of range, a condition unknown or wrong.
            QueueFullError: too many samples wait.
            StoppedError: the scheduler is closed.
        """
        sampler, now = self.sampler, time.monotonic()
        interface, companions = sampler.interface, sampler.companions
        if decode:
            decoding(interface, companions)  # else fails now
        end = None if deadline is None else now + deadline
        decoder = self._companions.decode if decode else None
        job = PendingRequest(request, now - priority, end, watch, decoder)
        if companions is None or not interface.encoders:
            request = sampler.prompted(request, prompt, negative)
            job.plan(request, sampler.planned([request], solver, steps, schedule))
            self._queue.hold(job)
            self._queue.put(job)
            return job.future
        program = sampler.program(solver, steps, schedule)
        for what, given in (("prompt", prompt), ("negative prompt", negative)):
            count_of(request.n, given, what)
        sampler.check(prompted(request, interface, NotEncoded(interface), prompt, negative))
        self._queue.hold(job)
        self._companions.encode(job, program, prompt, negative)
        return job.future

    async def sample(
        self,
        request: SampleRequest,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        priority: float = 0.0,
        deadline: float | None = None,
        prompt: Prompts | None = None,
        negative: Prompts | None = None,
        decode: bool = False,
    ) -> Array:
        """The samples; arguments and errors are those of :meth:`submit`.

        Where the awaiting task is cancelled, so is the request.
        """
        future = self.submit(
            request,
            solver=solver,
            steps=steps,
            schedule=schedule,
            priority=priority,
            deadline=deadline,
            prompt=prompt,
            negative=negative,
            decode=decode,
        )
        return await asyncio.wrap_future(future)

    def stream(
        self,
        request: SampleRequest,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        priority: float = 0.0,
        deadline: float | None = None,
        prompt: Prompts | None = None,
        negative: Prompts | None = None,
        decode: bool = False,
    ) -> AsyncIterator[Progress | Array]:
        """Steps as they are taken, and the samples at the end; errors are as in :meth:`submit`.

        Called within a running event loop. Whoever reads slowly misses steps, never the
        samples nor the last step; a reader that leaves ends the request.
        """
        latest, changed = deque[Progress](maxlen=1), asyncio.Event()
        loop = asyncio.get_running_loop()

        def watch(progress: Progress) -> None:
            latest.append(progress)
            loop.call_soon_threadsafe(changed.set)

        future = self.submit(
            request,
            solver=solver,
            steps=steps,
            schedule=schedule,
            priority=priority,
            deadline=deadline,
            prompt=prompt,
            negative=negative,
            decode=decode,
            watch=watch,
        )
        return _events(asyncio.wrap_future(future), latest, changed)

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, finish those taken, and end.

        Args:
            timeout: seconds after which those that are left fail with a StoppedError; None
                waits for all of them.
        """
        end = None if timeout is None else time.monotonic() + timeout
        self._queue.close()
        self._thread.join(timeout)
        self._companions.finish(None if end is None else max(0.0, end - time.monotonic()))
        self._stopping = self._companions.stopping = True
        self._thread.join()
        self._companions.close()
        self._end()

    def _join(self) -> None:
        """The thread's loop: every turn is an evaluation."""
        while not self._stopping and (self._work.active or self._queue.wait()):
            started, before = time.perf_counter(), self._work.done
            for came, job, batch in self._queue.begin(self._work.room):
                self._work.begin(came, job, batch)
            self._work.turn()
            self._count(self._work.done - before, time.perf_counter() - started)
            self._sweep()
        self._end()

    def _gather(self) -> None:
        """The thread's loop: every turn is a sampling from its start to its end."""
        while not self._stopping and self._queue.wait():
            jobs = [job for job in self._queue.gather(self._limit) if not job.over()]
            if not jobs:
                continue
            self._gathered = sum(job.request.n for job in jobs)
            started = time.perf_counter()
            self._sample(jobs)
            seconds = time.perf_counter() - started
            self._told(BatchMetrics(len(jobs), self._gathered, seconds))
            self._count(self._gathered, seconds)
            self._gathered = 0
            self._sweep()
        self._end()

    def _sample(self, jobs: list[PendingRequest]) -> None:
        try:
            requests = [job.request for job in jobs]
            arrays = self.sampler.sample_requests(requests, solver=jobs[0].run.program)
        except Exception as error:  # of whatever the engines are
            if len(jobs) == 1:
                jobs[0].fail(error)
                return
            for job in jobs:  # one must not spoil the others'
                self._sample([job])
            return
        for job, samples in zip(jobs, arrays, strict=True):
            job.made(samples)

    def _end(self) -> None:
        while jobs := self._queue.begin(1):
            for _, job, _ in jobs:
                job.fail(stopped())
        self._work.close(stopped())

    def _count(self, done: int, seconds: float) -> None:
        """Of work and samples: older turns count less and less."""
        self._seconds = _KEEPS * self._seconds + seconds
        self._samples = _KEEPS * self._samples + done

    def _sweep(self) -> None:
        """Let go, now and then, of what waits past its deadline."""
        now = time.monotonic()
        if now > self._swept + _SWEEP:
            self._swept = now
            self._queue.sweep()

    def _told(self, metrics: BatchMetrics) -> None:
        if self._on_batch is None:
            return
        try:
            self._on_batch(metrics)
        except Exception:  # whatever a caller's hook may raise
            _log.exception("the hook on_batch failed")


async def _events(
    answer: asyncio.Future[Array], latest: deque[Progress], changed: asyncio.Event
) -> AsyncIterator[Progress | Array]:
    answer.add_done_callback(lambda _: changed.set())
    try:
        while not answer.done():
            await changed.wait()
            changed.clear()
            if latest and not answer.done():
                yield latest.popleft()
        if latest:
            yield latest.popleft()  # the last step
        yield answer.result()
    finally:
        answer.cancel()
