"""The commands that only look: ``inspect`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eecompile.cli.console import phases, result, show
from eecompile.cli.values import program_of, schedule_of
from eecompile.errors import BackendError, UsageError
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import (
    BundleManifest,
    EngineManifest,
    open_bundle,
    open_engine_set,
    peek,
)


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, an engine set, or a program's JSON.")],
    program: Annotated[
        bool, typer.Option("--program", help="Show the program that sampling would run.")
    ] = False,
    solver: Annotated[str | None, typer.Option(help="With --program: the solver.")] = None,
    steps: Annotated[int | None, typer.Option(help="With --program: number of steps.")] = None,
    schedule: Annotated[str | None, typer.Option(help="With --program: the exit schedule.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Show every step of a program.")] = False,
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
    manifest = _manifest(path)
    result(manifest)
    if isinstance(manifest, BundleManifest):
        show(*bundle_parts(manifest))
    else:
        show(*engine_parts(manifest))


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


def _manifest(path: Path) -> BundleManifest | EngineManifest:
    return open_bundle(path) if peek(path) == "bundle" else open_engine_set(path)
