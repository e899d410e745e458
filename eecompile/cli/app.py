"""The commands together, and what becomes of their errors."""

from __future__ import annotations

import io
import sys
import traceback
from typing import Annotated, NoReturn

import typer

import eecompile
from eecompile.cli.comparing import compare
from eecompile.cli.compiling import build, export, sign
from eecompile.cli.console import err, mode, modes, out
from eecompile.cli.evaluating import evaluate
from eecompile.cli.inspecting import doctor, inspect
from eecompile.cli.listing import recipe, recipes, target, targets
from eecompile.cli.sampling import program, sample
from eecompile.cli.serving import serve, triton
from eecompile.cli.tuning import tune
from eecompile.errors import EecompileError, shortened
from eecompile.show.terminal import as_it_is
from eecompile.system import refused

app = typer.Typer(
    help="Compile multi-exit diffusion networks to engines, and sample with an exit schedule.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (export, build, sign, sample, compare, tune, program, inspect, evaluate, serve, triton)
for _command in (*_COMMANDS, doctor, recipes, recipe, targets, target):
    app.command()(modes(_command))
_KEPT = {
    "build": "finished engines",
    "tune": "finished measurements",
    "evaluate": "finished samples and features",
}
"""What commands that go on keep when they are interrupted."""
_INTERRUPTED = 130  # what shells say of a command that SIGINT ended, and typer too


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"eecompile {eecompile.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("-V", "--version", callback=_version, is_eager=True, help="Show the version."),
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
        error.message = shortened(str(getattr(error, "message", "")))  # type: ignore[attr-defined]
        error.show()
        sys.exit(getattr(error, "exit_code", 2))
    if status == _INTERRUPTED:
        kept = _KEPT.get(mode.command)
        next_ = f"to go on, run it again: {kept} are kept" if kept else "it begins anew next time"
        err.print(
            "interrupted: nothing that existed is lost, and nothing half-written is left; "
            f"{next_}.",
            highlight=False,
            soft_wrap=True,
        )
    sys.exit(status or 0)


def _fail(error: EecompileError) -> NoReturn:
    if mode.verbose:
        traceback.print_exception(error)
    err.print("[bold red]error:[/]", as_it_is(str(error)), highlight=False, soft_wrap=True)
    sys.exit(1)
