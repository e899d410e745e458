"""An engine set behind HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from math import ceil
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import eecompile
from eecompile.arrays import Array
from eecompile.errors import (
    DeadlineError,
    EecompileError,
    QueueFullError,
    StoppedError,
    UsageError,
)
from eecompile.programs.companions import SampleDecoder
from eecompile.programs.interface import Interface
from eecompile.runtime.program_cache import Schedule
from eecompile.runtime.sampler import Sampler
from eecompile.serve.body import SampleBody, sentence
from eecompile.serve.formats import EVENTS, FORMS, TEXT, Bounds, Form, accepted, npz, png
from eecompile.serve.jobs import Progress, sentence_of
from eecompile.serve.limits import Limits, schedule_asked
from eecompile.serve.metrics import Metrics
from eecompile.serve.page import HEADERS, network_facts, page
from eecompile.serve.scheduler import Scheduler

_log = logging.getLogger("eecompile.serve")
_GONE = 499  # nginx's status for a caller that has gone
_router = APIRouter()
_DEFAULT = Limits()
_STATUSES: tuple[tuple[type[EecompileError], int], ...] = (
    (UsageError, 422),
    (QueueFullError, 503),
    (StoppedError, 503),
    (DeadlineError, 504),
)
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The samples, decoded where the network has a decoder, in the form that "
        "Accept names; an archive by default.",
        "content": {
            **dict.fromkeys(FORMS, _BINARY),
            **{form: {"schema": {"type": "string"}} for form in (EVENTS, TEXT)},
        },
    },
    406: {"description": "Accept names none of these forms."},
    413: {"description": "The body is too large."},
    422: {"description": "The request is wrong; the sentence says how."},
    500: {"description": "The engines failed; the sentence says how."},
    503: {"description": "Too many samples wait, or the server is closing: see Retry-After."},
    504: {"description": "The deadline has passed."},
}


def app_from_sampler(
    sampler: Sampler,
    *,
    limits: Limits = _DEFAULT,
    joining: bool | None = None,
    max_batch: int | None = None,
    max_waiting: int = 1024,
    grace: float = 30.0,
) -> FastAPI:
    """An application for any ASGI server, which is the whole of ``eecompile serve``.

    Its ``state.scheduler`` is made when the server starts it, and closed when it ends. Where
    samplings take steps on the host, the sampler's ``on_step`` becomes the application's.

    Args:
        sampler: stays the caller's to close.
        limits: of a request.
        joining: see :class:`eecompile.serve.Scheduler`.
        max_batch: likewise.
        max_waiting: samples that may wait.
        grace: seconds to finish what was taken, in the end.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        metrics = Metrics()
        if not sampler.engine.runs_trajectories:  # on a GPU, it would wait for every step
            sampler.on_step = metrics.step
        scheduler = Scheduler(
            sampler,
            joining=joining,
            max_batch=max_batch,
            max_waiting=max_waiting,
            on_batch=metrics.batch,
        )
        metrics.watch(scheduler)
        app.state.scheduler, app.state.metrics, app.state.ready = scheduler, metrics, True
        yield
        app.state.ready = False
        await run_in_threadpool(scheduler.close, grace)

    app = FastAPI(
        title=f"eecompile: {sampler.name}",
        version=eecompile.__version__,
        lifespan=lifespan,
    )
    app.state.limits, app.state.ready = limits, False
    app.include_router(_router)
    app.add_middleware(_Observed, app=app, limits=limits)
    app.add_exception_handler(EecompileError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _sentenced)
    app.add_exception_handler(Exception, _broken)
    return app


@_router.post("/samples", responses=_RESPONSES, response_class=Response)
async def samples(body: SampleBody, request: Request) -> Response:
    """Sample: a picture, text, an archive, or steps as they are taken (server-sent events)."""
    form = accepted(request.headers.get("accept", "*/*"))
    if form is None:
        raise HTTPException(
            406,
            f"found Accept: {request.headers['accept'][:200]}; expected one of "
            f"{', '.join((*FORMS, EVENTS, TEXT))}; change the header.",
        )
    scheduler: Scheduler = request.app.state.scheduler
    sampler, limits = scheduler.sampler, request.app.state.limits
    body.check(limits, sampler.interface.state.shape)
    decoder = None if body.latents else sampler.interface.decoder
    reads = decoder is not None and decoder.kind == "text"
    if form == "image/png":
        _check_pictures(body, sampler.interface, decoder)
    if form == TEXT and not reads:
        raise UsageError(
            found=f"{TEXT} for samples of {sampler.interface.name} that are no text",
            expected=f"Accept: {' or '.join(FORMS)}",
            remedy="change the header",
        )
    plan = partial(sampler.program, body.solver, body.steps, _schedule(body, sampler.interface))
    options: dict[str, Any] = {
        "solver": await run_in_threadpool(plan),
        "priority": body.priority,
        "deadline": limits.seconds if body.deadline is None else body.deadline,
        "prompt": body.prompt,
        "negative": body.negative,
        "decode": decoder is not None,
    }
    bounds = sampler.interface.state.range if decoder is None else decoder.range
    if form == EVENTS:
        stream = scheduler.stream(body.request(), **options)
        texts = sampler.texts if reads else None
        told = _told(stream, sampler.interface.state.range, bounds, texts)
        return StreamingResponse(told, media_type=EVENTS)
    task = asyncio.ensure_future(scheduler.sample(body.request(), **options))
    array = await _unless_gone(request, task)
    if array is None:
        return Response(status_code=_GONE)
    if form == TEXT:
        lines = await run_in_threadpool(sampler.texts, array)
        return Response(
            "".join(f"{' '.join(each.splitlines())}\n" for each in lines), media_type=TEXT
        )
    encoded = await run_in_threadpool(FORMS[form], array, bounds)
    return Response(encoded, media_type=form)


@_router.get("/", include_in_schema=False)
async def root() -> HTMLResponse:
    """The page with which a person tries it."""
    return HTMLResponse(page(), headers=HEADERS)


@_router.get("/network")
async def network(request: Request) -> JSONResponse:
    """What may be asked for: conditions, solvers, schedules, defaults, limits."""
    app = request.app
    return JSONResponse(network_facts(app.state.scheduler.sampler, app.state.limits))


@_router.get("/health")
async def health(request: Request) -> JSONResponse:
    """Whether the thread that evaluates lives."""
    alive = request.app.state.scheduler.alive
    return JSONResponse({"alive": alive}, 200 if alive else 503)


@_router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """Whether requests are taken, and how many samples are under way."""
    load = request.app.state.scheduler.load()
    is_ready = request.app.state.ready
    told = {"ready": is_ready, "waiting": load.waiting, "active": load.active}
    return JSONResponse(told, 200 if is_ready else 503)


@_router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """What Prometheus reads."""
    text = request.app.state.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _schedule(body: SampleBody, interface: Interface) -> Schedule | None:
    """A name, a depth, or choices; never a file."""
    given = body.schedule
    return schedule_asked(given, interface) if isinstance(given, str) else given


def _check_pictures(body: SampleBody, interface: Interface, decoder: SampleDecoder | None) -> None:
    from eecompile.show.pictures import check_pictures

    if decoder is None:
        check_pictures(tuple(body.shape or interface.state.shape))
    elif decoder.kind != "image":
        raise UsageError(
            found=f"image/png for decoded {decoder.kind}",
            expected=f"Accept: {' or '.join(form for form in FORMS if form != 'image/png')}",
            remedy="change the header",
        )


async def _unless_gone(request: Request, task: asyncio.Future[Array]) -> Array | None:
    """The samples, or None where the caller has gone: then nothing is sampled for it."""
    gone = asyncio.ensure_future(_disconnected(request))
    either: set[asyncio.Future[Any]] = {task, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _told(
    stream: AsyncIterator[Progress | Array],
    state: Bounds,
    bounds: Bounds,
    texts: Callable[[Array], list[str]] | None,
) -> AsyncIterator[str]:
    """Steps and samples as events; an error is the last of them.

    The bounds are those of a step's state, and of the samples at the end, which may be texts.
    """
    try:
        async for each in stream:
            if isinstance(each, Progress):
                fields = {
                    "index": each.index,
                    "steps": each.steps,
                    "timestep": each.timestep,
                    "choice": each.choice.text,
                    "samples": each.samples,
                    "spent": msgspec.to_builtins(each.spent),
                    "png": await run_in_threadpool(_picture, each.state, state),
                }
                yield _event("step", fields)
            else:
                fields = {
                    "npz": await run_in_threadpool(_encoded, npz, each, bounds),
                    "png": await run_in_threadpool(_picture, each, bounds),
                    "texts": await run_in_threadpool(texts, each) if texts else None,
                }
                yield _event("samples", fields)
    except EecompileError as error:
        yield _event("error", {"detail": str(error)})
    except Exception as error:  # of whatever the engines are
        _log.exception("a request failed")
        yield _event("error", {"detail": sentence_of(error)})


def _event(name: str, fields: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n"


def _picture(states: Array, bounds: Bounds) -> str | None:
    try:
        return _encoded(png, states, bounds)
    except UsageError:  # no pictures
        return None


def _encoded(form: Form, states: Array, bounds: Bounds) -> str:
    return base64.b64encode(form(states, bounds)).decode()


async def _refused(request: Request, error: Exception) -> Response:
    """An error of ours: its sentence, and the status of its kind."""
    status = next((code for kind, code in _STATUSES if isinstance(error, kind)), 500)
    if status == 500:
        _log.error("a request failed: %s", error)
    headers = {}
    if status == 503:
        seconds = request.app.state.scheduler.load().seconds
        headers["Retry-After"] = str(min(60, max(1, ceil(seconds))))
    return JSONResponse({"detail": str(error)}, status, headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": sentence(error.errors())}, 422)


async def _sentenced(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found, expected = {
        400: ("a body that cannot be read", "JSON, not nested deeply"),
        404: (f"no path {request.url.path[:200]!r}", "one that /docs lists"),
        405: (f"{request.method} {request.url.path[:200]}", "a method that /docs lists"),
    }.get(error.status_code, ("", ""))
    detail = f"found {found}; expected {expected}; change the request." if found else error.detail
    return JSONResponse({"detail": detail}, error.status_code, error.headers)


async def _broken(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": sentence_of(error)}, 500)


class _Observed:
    """Counts and logs requests, and ends those whose body is too large or too slow."""

    def __init__(self, inner: ASGIApp, app: FastAPI, limits: Limits) -> None:
        self._inner, self._app, self._limits = inner, app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started, status, size, more = time.perf_counter(), _GONE, 0, True

        async def timely() -> Message:
            nonlocal more, size
            left = started + self._limits.upload - time.perf_counter()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left) if more else None)
            except TimeoutError as error:
                raise HTTPException(
                    408,
                    f"found a body that is not there after {self._limits.upload:g} s; expected "
                    "all of it; send it faster.",
                ) from error
            more = message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self._limits.body:
                raise HTTPException(
                    413,
                    f"found a body of more than {self._limits.body} bytes; expected at most "
                    "that; ask for less, or in several requests.",
                )
            return message

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._inner(scope, timely, counted)
        finally:
            seconds = time.perf_counter() - started
            if scope["path"] == "/samples":
                self._app.state.metrics.request(status, seconds)
            told = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(seconds, 6),
                "client": (scope.get("client") or ("",))[0],
            }
            level = logging.INFO if scope["path"] == "/samples" else logging.DEBUG
            _log.log(level, "request", extra={"fields": told})
