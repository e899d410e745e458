"""The commands that only look: ``inspect`` and ``doctor``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from eecompile.cli.console import phases, result, say, show
from eecompile.cli.values import program_of, schedule_of
from eecompile.errors import BackendError, EecompileError, UsageError
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.isolated import SECONDS, check_isolated
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_bundle, open_engine_set, peek
from eecompile.store.manifest import BundleManifest, EngineManifest


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, an engine set, or a program's JSON.")],
    program: Annotated[
        bool, typer.Option("--program", help="Show the program that sampling would run.")
    ] = False,
    solver: Annotated[str | None, typer.Option(help="With --program: the solver.")] = None,
    steps: Annotated[int | None, typer.Option(help="With --program: number of steps.")] = None,
    schedule: Annotated[str | None, typer.Option(help="With --program: the exit schedule.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Show every step of a program.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Open an engine set and evaluate its exits, in a process of its own."
        ),
    ] = False,
    limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help=f"With --check: how long it may take; default {SECONDS:g}."
        ),
    ] = None,
    signed_by: Annotated[
        Path | None,
        typer.Option("--signed-by", metavar="KEY", help="Public key that must have signed it."),
    ] = None,
) -> None:
    """Show a bundle, an engine set (exits, sizes, sharing, schedules, errors) or a program."""
    from eecompile.show.bundles import bundle_parts, engine_parts
    from eecompile.show.programs import program_parts

    if not program and (solver is not None or steps is not None or schedule is not None):
        raise UsageError(
            found="--solver, --steps or --schedule without --program",
            expected="them only for the program that sampling would run",
            remedy="add --program, or drop them",
        )
    if limit is not None and not check:
        raise UsageError(
            found="--limit without --check",
            expected="it only for what is checked",
            remedy="add --check, or drop it",
        )
    if (check or signed_by) and (program or path.is_file()):
        raise UsageError(
            found="--check or --signed-by for a program",
            expected="them for a bundle or an engine set",
            remedy="drop them",
        )
    if program and path.is_file():
        raise UsageError(
            found=f"--program beside {path}, which is a file",
            expected="a bundle or an engine set beside --program, or a program's file alone",
            remedy="drop --program",
        )
    if program or path.is_file():
        interface = None
        if program:
            planner = planner_of(path)
            interface = planner.interface
            shown = planner.program(solver, steps, schedule_of(schedule, interface))
        else:
            shown = program_of(path, None)
        result(shown.to_json())
        show(*program_parts(shown, interface, whole=all_))
        return
    if check:
        _check(path, signed_by, SECONDS if limit is None else limit)
        return
    manifest = _manifest(path, signed_by)
    result(manifest)
    if isinstance(manifest, BundleManifest):
        show(*bundle_parts(manifest))
    else:
        show(*engine_parts(manifest))
    if signed_by:
        say(f"signed by {signed_by}")


class CheckReport(msgspec.Struct, kw_only=True):
    """What ``inspect --check --json`` prints.

    Attributes:
        path: of the engine set.
        signed_by: the file of the public key, if one was asked for.
        seconds: that the check took.
        exits: that were evaluated.
        error: found, expected and remedy; None where nothing failed.
    """

    path: str
    signed_by: str | None = None
    seconds: float = 0.0
    exits: tuple[int, ...] = ()
    error: dict[str, str] | None = None


def _check(path: Path, signed_by: Path | None, limit: float) -> None:
    """Open an engine set in a process of its own, and say how that went."""
    report = CheckReport(path=str(path), signed_by=None if signed_by is None else str(signed_by))
    started = time.perf_counter()
    try:
        manifest = open_engine_set(path, signed_by)
        check_isolated([path], {manifest.target.name: manifest}, seconds=limit)
        report.exits = manifest.interface.exits
    except EecompileError as error:
        report.error = {
            "found": error.found,
            "expected": error.expected,
            "remedy": error.remedy,
        }
        raise
    finally:
        report.seconds = time.perf_counter() - started
        result(report)
    say(
        f"{path}: {len(manifest.files)} files have their digests"
        + (f", signed by {signed_by}" if signed_by else "")
        + f"; {len(manifest.exits)} exits evaluated in {report.seconds:.1f} s, in a process "
        "of its own"
    )


def doctor() -> None:
    """Show what can build and run on this machine, why the rest cannot, and what to install."""
    from eecompile.doctor.examine import examine
    from eecompile.doctor.tables import doctor_parts

    with phases() as progress:
        progress("asking every backend")
        report = examine()
    result(report)
    show(*doctor_parts(report))
    if not report.usable:
        raise BackendError(
            found="no backend that can run here",
            expected="at least one",
            remedy=report.backends[0].runs.remedy,
        )


def planner_of(path: Path) -> Sampler:
    """Makes programs for the network of a bundle or an engine set; it cannot evaluate it."""
    interface = _manifest(path).interface
    return Sampler(FakeEngine(interface.exits, lambda depth, x, t, conditions: x), interface)


def _manifest(path: Path, signed_by: Path | None = None) -> BundleManifest | EngineManifest:
    opened = open_bundle if peek(path, signed_by) == "bundle" else open_engine_set
    return opened(path, signed_by)
