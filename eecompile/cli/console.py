"""The terminal: what is printed, and how far a command has got.

Every command takes ``--json``, ``--quiet`` and ``--verbose``: :func:`modes` adds them.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from eecompile.backends import backend_from_library, install
from eecompile.errors import BackendError, one_line, printable
from eecompile.interrupt import check
from eecompile.runtime.sampling import StepResult
from eecompile.show.table import Part
from eecompile.show.terminal import as_it_is, rendered

out = Console()
err = Console(stderr=True)


@dataclass
class Mode:
    """How a command tells what it does; each command sets it anew."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    command: str = ""


mode = Mode()
_PANEL = "Output"
_SECONDS = 15.0  # between lines of one phase, off a terminal
_OPTIONS: dict[str, Any] = {
    "json": Annotated[
        bool,
        typer.Option("--json", help="Print the result as JSON, alone.", rich_help_panel=_PANEL),
    ],
    "quiet": Annotated[
        bool,
        typer.Option("-q", "--quiet", help="Print errors alone.", rich_help_panel=_PANEL),
    ],
    "verbose": Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", help="With an error, where it arose.", rich_help_panel=_PANEL
        ),
    ],
}


def modes(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options that every command has."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        mode.command = command.__name__
        for name in _OPTIONS:
            setattr(mode, name, given.pop(name))
        command(**given)

    known = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, kind, default=False, annotation=option)
        for name, option in _OPTIONS.items()
    ]
    own = [each.replace(kind=kind) for each in known.parameters.values()]
    signature = known.replace(parameters=own + more)
    vars(run)["__signature__"] = signature
    run.__annotations__ = {each.name: each.annotation for each in own + more}
    return run


def say(text: str) -> None:
    """Print a line as it is."""
    if not (mode.quiet or mode.json):
        out.print(as_it_is(text), highlight=False, soft_wrap=True)


def show(*parts: Part) -> None:
    """Print tables, facts and lines."""
    if not (mode.quiet or mode.json):
        out.print(rendered(*parts))


def result(value: Any) -> None:
    """Print what a command made as JSON, where that is asked for.

    Args:
        value: what msgspec encodes, or JSON as bytes.
    """
    if mode.json:
        encoded = value if isinstance(value, bytes) else msgspec.json.encode(value)
        sys.stdout.buffer.write(msgspec.json.format(encoded, indent=2) + b"\n")


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turns a missing or broken package into a sentence that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        backend = backend_from_library(error.name or "")
        wanted = backend.extra if backend else name
        raise BackendError(
            found=f"no package {error.name}",
            expected=f"the packages of eecompile's extra {wanted!r}",
            remedy=install(wanted),
        ) from error
    except ImportError as error:
        raise BackendError(
            found=f"a package that cannot be imported ({one_line(error)})",
            expected=f"the packages of eecompile's extra {name!r}, whole",
            remedy="install it again",
        ) from error


@contextmanager
def warned() -> Iterator[None]:
    """Warnings as a line each, without the place in the code that they come from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if not mode.quiet:
            text = as_it_is(str(message))
            err.print("[yellow]warning:[/]", text, highlight=False, soft_wrap=True)

    with warnings.catch_warnings():
        setattr(warnings, "showwarning", show)  # noqa: B010  # it takes more, and needs less
        yield


@contextmanager
def phases() -> Iterator[Any]:
    """A bar that names the phase and its steps; off a terminal, a line a phase.

    Phases that last get a further line now and then there, with how far they have got.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown, said = "", 0.0
    with Progress(*columns, console=err, transient=True, disable=_silent()) as progress:
        task = progress.add_task("")

        def report(phase: str, done: int = 0, total: int = 0) -> None:
            nonlocal shown, said
            check()
            now = time.monotonic()
            if not err.is_terminal and not mode.quiet:
                new = phase != shown
                if new or (total and now - said > _SECONDS):
                    text = phase if new else f"{phase}: {done:,} of {total:,}"
                    err.print(as_it_is(text), highlight=False, soft_wrap=True)
                    said = now
            shown = phase
            progress.update(task, description=_markup(phase), completed=done, total=total or None)

        yield report


def last_state(results: Iterator[StepResult], total: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The state after the last step; a bar shows the choice."""
    with _steps() as progress:
        task = progress.add_task("", total=total)
        for result in results:
            check()
            label = f"t = {result.timestep:g}, {result.choice.text}"
            progress.update(task, advance=1, description=_markup(label))
    return result.state


def _markup(text: str) -> str:
    """A text as rich's bars take it."""
    return escape(printable(text))


def _steps() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    last = TimeRemainingColumn()
    return Progress(*columns, last, console=err, transient=True, disable=_silent())


def _silent() -> bool:
    """Whether bars are not shown."""
    return mode.quiet or not err.is_terminal
