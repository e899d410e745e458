"""The commands together, and what becomes of their errors."""

from __future__ import annotations

import io
import sys
from typing import Annotated, NoReturn

import typer

import eecompile
from eecompile.cli.comparing import compare
from eecompile.cli.compiling import build, export
from eecompile.cli.console import err, out
from eecompile.cli.evaluating import evaluate
from eecompile.cli.inspecting import doctor, inspect
from eecompile.cli.sampling import program, sample
from eecompile.cli.tuning import tune
from eecompile.errors import EecompileError
from eecompile.show.terminal import as_it_is
from eecompile.system import refused

app = typer.Typer(
    help="Compile multi-exit diffusion networks to engines, and sample with an exit schedule.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for _command in (export, build, sample, compare, tune, program, inspect, evaluate, doctor):
    app.command()(_command)
_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"eecompile {eecompile.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line; errors are printed as a sentence, with exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # terminals that lack a character show "?"
            stream.reconfigure(errors="replace")
    try:
        status = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except Exception as error:
        if (told := refused(error)) is not None:
            _fail(told)
        if isinstance(error, EecompileError):
            _fail(error)
        if not hasattr(error, "show"):  # not one of the option parser's own
            raise
        error.show()
        sys.exit(getattr(error, "exit_code", 2))
    if status == _INTERRUPTED:
        err.print(
            "interrupted: nothing that existed is lost, and nothing half-written is left; "
            "engines and measurements that were finished are kept for the next time.",
            soft_wrap=True,
        )
        sys.exit(1)
    sys.exit(status or 0)


def _fail(error: EecompileError) -> NoReturn:
    err.print("[bold red]error:[/]", as_it_is(str(error)), highlight=False, soft_wrap=True)
    sys.exit(1)
