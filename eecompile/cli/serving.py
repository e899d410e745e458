"""The command ``serve``."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from eecompile.cli import options
from eecompile.cli.console import extra, mode, result, say
from eecompile.errors import UsageError
from eecompile.runtime.sampler import Sampler


def serve(
    engines: options.Engines,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for one that is free.")] = 8000,
    joining: Annotated[
        bool | None,
        typer.Option(
            help="Whether requests join at the next step, or wait and are sampled together; "
            "default joining, but not on a GPU."
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most rows of an evaluation where requests join; default as many as pay, which "
            "is measured.",
        ),
    ] = None,
    max_n: Annotated[int, typer.Option(min=1, help="Most samples of one request.")] = 64,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Most samples that wait; then the answer is 503.")
    ] = 1024,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds to finish what was taken, when it is ended.")
    ] = 30.0,
    more: options.MoreEngines = None,
    threads: options.Threads = None,
) -> None:
    """Answer requests for samples over HTTP, until Ctrl-C or SIGTERM."""
    with extra("serve"):
        import uvicorn

        from eecompile.serve.app import app_from_sampler
        from eecompile.serve.limits import Limits
        from eecompile.serve.rows import rows_that_pay
    with (
        _logging_as_json(),
        _listening(host, port) as listener,
        Sampler.open(engines, *(more or []), threads=threads) as sampler,
    ):
        sampler.warmup()
        if sampler.companions is not None:
            sampler.companions.open_all()
        if max_batch is None and joining is not False:
            max_batch = rows_that_pay(sampler)
        app = app_from_sampler(
            sampler,
            limits=Limits(n=max_n),
            joining=joining,
            max_batch=max_batch,
            max_waiting=max_waiting,
            grace=grace,
        )
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=int(grace) + 1,
        )
        url = _url(listener)
        result({"url": url, "network": sampler.interface.name, "process": os.getpid()})
        sys.stdout.flush()
        say(f"{sampler.name}: {url}, with its documentation at {url}/docs")
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
            uvicorn.Server(config).run(sockets=[listener])


def triton(
    engines: options.Engines,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The model repository, a new folder.")
    ],
    max_n: Annotated[int, typer.Option(min=1, help="Most samples of one request.")] = 64,
    concurrent: Annotated[
        int,
        typer.Option(
            min=1, help="Requests that the model of one response has under way, each in a process."
        ),
    ] = 8,
    more: options.MoreEngines = None,
) -> None:
    """Write a model repository for Triton Inference Server, with its Python backend."""
    from eecompile.serve.triton import repository_from_engines

    name, stream = repository_from_engines(
        [engines, *(more or [])], output, max_n=max_n, concurrent=concurrent
    )
    result({"output": str(output), "model": name, "stream": stream})
    say(
        f"{output}: the model {name} gives one response, {stream} previews too; Triton's Python "
        f"needs {stream}/requirements.txt."
    )


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything is opened.

    What it accepts sends at once: asyncio sees to that for sockets that name their protocol, which
    this one does not, and each answer on a connection that is kept would wait 40 ms for the
    client's acknowledgement.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        number = error.errno or 0  # that of a wrong host is no system's
        reason = os.strerror(number) if number > 0 else error.strerror
        raise UsageError(
            found=f"--host {host} --port {port}, which cannot be listened at "
            f"({str(reason).lower()})",
            expected="an address of this machine, and a port that is free",
            remedy="choose another port, 0 for any that is free, or end what uses it",
        ) from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _logging_as_json() -> Iterator[None]:
    """Logs and warnings go to standard error, an object a line; a caller's are as before after."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json())
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    logging.captureWarnings(True)
    root.setLevel(logging.ERROR if mode.quiet else logging.WARNING)
    level = logging.ERROR if mode.quiet else logging.DEBUG if mode.verbose else logging.INFO
    for name in ("eecompile", "uvicorn"):
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], level = before
        root.setLevel(level)
        for name in ("eecompile", "uvicorn"):
            logging.getLogger(name).setLevel(logging.NOTSET)


class _Json(logging.Formatter):
    """A record as an object: its time, level, logger and text, and what else it has."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= vars(record).get("fields", {})
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(told).decode()
