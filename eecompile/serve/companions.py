"""Threads beside the one that evaluates: one encodes requests' prompts, one decodes samples."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from eecompile.arrays import Array
from eecompile.programs.program import Program
from eecompile.runtime.sampler import Sampler
from eecompile.serve.jobs import PendingRequest, Queue, stopped

Prompts = str | Sequence[str]


class CompanionThreads:
    """Encodes and decodes for one request after another, while others' steps are evaluated.

    Neither thread is started before it is needed.

    Args:
        sampler: whose companions work.
        queue: to which requests go once their prompts are encoded.

    Attributes:
        stopping: whether what waits for the threads fails with a StoppedError.
    """

    def __init__(self, sampler: Sampler, queue: Queue) -> None:
        self._sampler, self._queue = sampler, queue
        self._encoding = ThreadPoolExecutor(1, "eecompile-encode")
        self._decoding = ThreadPoolExecutor(1, "eecompile-decode")
        self.stopping = False

    def encode(
        self,
        job: PendingRequest,
        program: Program,
        prompt: Prompts | None,
        negative: Prompts | None,
    ) -> None:
        """Have a job planned and queued, which the queue holds, once its prompts are encoded."""
        try:
            self._encoding.submit(self._encode, job, program, prompt, negative)
        except RuntimeError:  # closed a moment ago
            job.fail(stopped())

    def decode(self, job: PendingRequest, samples: Array) -> None:
        """Have a job answered with what its samples are decoded to; it waits until then."""
        self._queue.count(len(samples))
        self._decoding.submit(self._decode, job, samples)

    def finish(self, timeout: float | None = None) -> None:
        """Wait until what has been sampled is decoded."""
        if self._sampler.companions is not None and not self.stopping:
            wait([self._decoding.submit(int)], timeout)

    def close(self) -> None:
        """End the threads."""
        self._encoding.shutdown()
        self._decoding.shutdown()

    def _encode(
        self,
        job: PendingRequest,
        program: Program,
        prompt: Prompts | None,
        negative: Prompts | None,
    ) -> None:
        self._queue.sweep()
        if job.over():
            return
        try:
            if self.stopping:
                raise stopped()
            request = self._sampler.prompted(job.request, prompt, negative)
            job.plan(request, self._sampler.planned([request], program))
        except Exception as error:  # of whatever the engines are
            job.fail(error)
            return
        self._queue.put(job)

    def _decode(self, job: PendingRequest, samples: Array) -> None:
        self._queue.count(-len(samples))
        if job.over():
            return
        try:
            if self.stopping:
                raise stopped()
            decoded = self._sampler.decode(samples)
        except Exception as error:  # likewise
            job.fail(error)
            return
        job.answer(decoded)
