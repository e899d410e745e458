"""The terminal: what is printed, and how far a command has got."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
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
from eecompile.errors import BackendError, one_line
from eecompile.interrupt import check
from eecompile.runtime.sampling import StepResult
from eecompile.show.table import Part, printable
from eecompile.show.terminal import as_it_is, rendered

out = Console()
err = Console(stderr=True)


def say(text: str) -> None:
    """Print a line as it is."""
    out.print(as_it_is(text), highlight=False, soft_wrap=True)


def show(*parts: Part) -> None:
    """Print tables, facts and lines."""
    out.print(rendered(*parts))


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
def phases() -> Iterator[Any]:
    """A bar that names the phase and its steps; off a terminal, a line a phase."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = ""
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("")

        def report(phase: str, done: int = 0, total: int = 0) -> None:
            nonlocal shown
            check()
            if phase != shown and not err.is_terminal:
                err.print(as_it_is(phase), highlight=False, soft_wrap=True)
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
    last, quiet = TimeRemainingColumn(), not err.is_terminal
    return Progress(*columns, last, console=err, transient=True, disable=quiet)
