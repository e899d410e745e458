"""The model in Triton that holds the engines, and answers in several responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from eecompile.arrays import AnyArray, Array
from eecompile.decoding import from_json
from eecompile.errors import (
    DeadlineError,
    QueueFullError,
    StoppedError,
    UsageError,
    summary,
)
from eecompile.programs.interface import Interface
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.serve.jobs import Progress, sentence_of
from eecompile.serve.limits import Limits, schedule_asked
from eecompile.serve.rows import rows_that_pay
from eecompile.serve.scheduler import Scheduler

_POLL = 0.05  # seconds between looks at which callers have gone
_GRACE = 30.0  # seconds to finish what was taken, when the model is unloaded
_log = logging.getLogger("eecompile.serve")


class StreamModel:
    """``TritonPythonModel`` of the model ``NAME_stream``; see :mod:`eecompile.serve.triton`.

    Triton hands requests over as they come; a scheduler lets them join, and a thread sends.
    """

    def initialize(self, arguments: dict[str, str]) -> None:
        """Open the engine sets beside the model."""
        place = Path(arguments["model_repository"]) / arguments["model_version"] / "engines"
        parameters = from_json(arguments["model_config"], dict[str, Any])["parameters"]
        self._limits = Limits(n=int(parameters["max_n"]["string_value"]))
        self._sampler = Sampler.open(*sorted(place.iterdir()))
        self._sampler.warmup()
        if self._sampler.companions is not None:
            self._sampler.companions.open_all()
        self._scheduler = Scheduler(self._sampler, max_batch=rows_that_pay(self._sampler))
        self._sending = _Sending()

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests; they are answered later."""
        for request in requests:
            reply = _Reply(request.get_response_sender(), self._sending)
            try:
                asked, options, preview = _asked(request, self._sampler, self._limits)
                watch = reply.watch if preview else None
                reply.follow(self._scheduler.submit(asked, watch=watch, **options))
            except Exception as error:
                future: Future[Array] = Future()
                future.set_exception(error)
                reply.follow(future)

    def finalize(self) -> None:
        """Finish what was taken, and close the engines."""
        self._scheduler.close(_GRACE)
        self._sending.close()
        self._sampler.close()


class _Reply:
    """What one caller is to be told; several threads write, one sends."""

    def __init__(self, sender: Any, sending: _Sending) -> None:
        self.sender, self._sending = sender, sending
        self._latest: Progress | None = None
        self.future: Future[Array] | None = None

    def watch(self, progress: Progress) -> None:
        """Have a preview sent, in place of one that has not been sent yet."""
        self._latest = progress
        self._sending.tell(self)

    def follow(self, future: Future[Array]) -> None:
        """Have the samples sent, or the error, when there are any."""
        self.future = future
        self._sending.begin(self)
        future.add_done_callback(lambda _: self._sending.tell(self))

    def send(self) -> bool:
        """Send what there is to send; True once that was the last."""
        import triton_python_backend_utils as triton

        progress, self._latest = self._latest, None
        future = self.future
        if future is None or not future.done():
            if progress is not None:
                self.sender.send(triton.InferenceResponse(_preview(triton, progress)))
            return False
        end = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if future.cancelled():
            self.sender.send(flags=end)
        elif (error := future.exception()) is not None:
            self.sender.send(triton.InferenceResponse(error=_error(triton, error)), flags=end)
        else:
            self.sender.send(triton.InferenceResponse(_final(triton, future.result())), flags=end)
        return True


class _Sending:
    """A thread that sends replies, and cancels requests whose callers have gone."""

    def __init__(self) -> None:
        self._ready = SimpleQueue[_Reply | None]()
        self._open: dict[int, _Reply] = {}
        self._looked = 0.0
        self._thread = Thread(target=self._run, name="eecompile-send", daemon=True)
        self._thread.start()

    def begin(self, reply: _Reply) -> None:
        """Look after a reply until it is complete."""
        self._open[id(reply)] = reply
        self.tell(reply)  # so that the thread looks whether its caller has gone

    def tell(self, reply: _Reply) -> None:
        """Say that a reply has something to send."""
        self._ready.put(reply)

    def close(self) -> None:
        """Send what is left, and end."""
        self._ready.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                reply = self._ready.get(timeout=_POLL if self._open else None)
            except Empty:
                pass
            else:
                if reply is None:
                    return
                self._send(reply)
            if time.monotonic() > self._looked + _POLL:
                self._drop_gone()

    def _send(self, reply: _Reply) -> None:
        if reply.future is not None and id(reply) not in self._open:
            return  # it is complete
        try:
            complete = reply.send()
        except Exception:  # of Triton's, which has no type of its own for them
            _log.exception("a response could not be sent")
            complete = True
        if complete:
            self._open.pop(id(reply), None)

    def _drop_gone(self) -> None:
        self._looked = time.monotonic()
        for reply in list(self._open.values()):
            try:
                if reply.future is not None and reply.sender.is_cancelled():
                    reply.future.cancel()
            except Exception:  # as in _send
                _log.exception("Triton does not say whether a caller has gone")


def _asked(
    request: Any, sampler: Sampler, limits: Limits
) -> tuple[SampleRequest, dict[str, Any], bool]:
    """Which samples, how, and whether with previews."""
    given = {each.name(): each.as_numpy() for each in request.inputs()}
    interface = sampler.interface

    def one(name: str, default: Any = None) -> Any:
        return given[name].reshape(-1)[0].item() if name in given else default

    def text(name: str) -> str | None:
        return given[name].reshape(-1)[0].decode() if name in given else None

    def texts(name: str) -> list[str] | None:
        if not interface.encoders or name not in given:
            return None
        return [each.decode() for each in given[name].reshape(-1)]

    shape, interval = given.get("shape"), given.get("guidance_interval")
    schedule = text("schedule")
    asked = SampleRequest(
        n=one("n"),
        seed=one("seed", 0),
        first=one("first", 0),
        guidance=_values(given, "guidance"),
        guidance_interval=None if interval is None else (float(interval[0]), float(interval[1])),
        conditions=_named(given, interface, ""),
        nulls=_named(given, interface, "null_"),
        shape=None if shape is None else tuple(shape.tolist()),
    )
    steps, deadline = one("steps"), one("deadline", limits.seconds)
    limits.check(
        n=asked.n, shape=asked.shape or interface.state.shape, steps=steps, deadline=deadline
    )
    options = {
        "solver": text("solver"),
        "steps": steps,
        "schedule": None if schedule is None else schedule_asked(schedule, interface),
        "deadline": deadline,
        "prompt": texts("prompt"),
        "negative": texts("negative"),
        "decode": interface.decoder is not None and not one("latents", False),
    }
    return asked, options, bool(one("preview", False))


def _values(given: dict[str, AnyArray], name: str) -> AnyArray | None:
    """A value for all samples, or one for each, as a sampler takes it."""
    array = given.get(name)
    return array[0] if array is not None and len(array) == 1 else array


def _named(given: dict[str, AnyArray], interface: Interface, before: str) -> dict[str, AnyArray]:
    found = {name: _values(given, before + name) for name in interface.conditions}
    return {name: array for name, array in found.items() if array is not None}


def _preview(triton: Any, progress: Progress) -> list[Any]:
    rows = np.array(progress.samples, np.int32)
    return _tensors(triton, progress.state, False, progress.index + 1, progress.choice.text, rows)


def _final(triton: Any, samples: Array) -> list[Any]:
    return _tensors(triton, samples, True, 0, "", np.arange(len(samples), dtype=np.int32))


def _tensors(
    triton: Any, samples: Array, final: bool, step: int, choice: str, rows: AnyArray
) -> list[Any]:
    return [
        triton.Tensor("samples", samples),
        triton.Tensor("final", np.array([final])),
        triton.Tensor("step", np.array([step], np.int32)),
        triton.Tensor("choice", np.array([choice.encode()], np.object_)),
        triton.Tensor("rows", rows),
    ]


def _error(triton: Any, error: BaseException) -> Any:
    """An error's sentence, and the status of its kind."""
    kinds = (
        (UsageError, triton.TritonError.INVALID_ARG),
        ((QueueFullError, StoppedError), triton.TritonError.UNAVAILABLE),
        (DeadlineError, triton.TritonError.CANCELLED),
    )
    status = next((code for kind, code in kinds if isinstance(error, kind)), None)
    if status is None:
        _log.error("a request failed: %s", summary(error))
        status = triton.TritonError.INTERNAL
    return triton.TritonError(sentence_of(error), status)
