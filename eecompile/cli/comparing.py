"""The command ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eecompile.backends import PEERS
from eecompile.cli import options
from eecompile.cli.console import err, extra, phases, result, say, show
from eecompile.cli.values import numbers_of, request_of
from eecompile.errors import UsageError
from eecompile.show.terminal import as_it_is
from eecompile.system import check_torch

_REGRESSED = 3  # exit status where the baseline was better


def compare(
    bundle: options.Bundle,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report.")],
    engines: Annotated[
        list[Path] | None, typer.Option("--engines", help="An engine set of that bundle.")
    ] = None,
    torch: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="Measure errors to the network of this recipe."),
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also what else is installed, such as OpenVINO.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(help=f"One that must be there: {', '.join(PEERS)}."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,16",
    rounds: Annotated[
        int | None, typer.Option(help="How often each figure is measured; default by time.")
    ] = None,
    solver: options.Solver = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    set_: options.Conditions = None,
    null: options.Nulls = None,
    shape: options.Shape = None,
    seed: options.Seed = 0,
    schedule: Annotated[
        list[str] | None, typer.Option(help="An exit schedule, as for sample; default all.")
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option(
            "--polygraphy-script", metavar="FILE", help="Also write a script for polygraphy."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="An older report.json: exit with 3 where something regressed."),
    ] = None,
    max_slowdown: Annotated[
        str | None, typer.Option(help="With --baseline: how much slower; default 5%.")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="With --baseline: how much more relative error; default 1e-3."),
    ] = None,
) -> None:
    """Compare engine sets: speed, memory and error of every exit, and what schedules buy."""
    if baseline is None and (max_slowdown is not None or max_error is not None):
        raise UsageError(
            found="--max-slowdown or --max-error without --baseline",
            expected="an older report.json to compare with",
            remedy="add --baseline, or drop them",
        )
    if not engines and torch is None and not peers and not peer:
        raise UsageError(
            found="nothing to compare",
            expected="engine sets (--engines), the trained network (--torch), or --peers",
            remedy=f"for example eecompile compare {bundle} --engines out/cpu -o {output}",
        )
    if torch is not None:
        check_torch()
    with extra("compare"):
        from eecompile.compare import comparison as comparing
        from eecompile.compare import gate
        from eecompile.compare.checks import checked_bundle
        from eecompile.compare.report import read_report
        from eecompile.compare.script import check_script, write_script
        from eecompile.compare.tables import comparison_parts
    comparing.check_output(output)
    older = None if baseline is None else read_report(baseline)
    if older is not None:
        gate.check_network(older, checked_bundle(bundle).interface.name)
    slowdown = gate.fraction("5%" if max_slowdown is None else max_slowdown)
    limit = 1e-3 if max_error is None else max_error
    gate.check_limits(slowdown, limit)
    if script is not None:
        check_script(script)
    sizes, named = numbers_of("--batch", batch), peer or []
    samples = request_of(seed, guidance, guidance_interval, set_, null, shape)
    with phases() as report:
        made = comparing.compare(
            bundle,
            engines or [],
            recipe=torch,
            peers=peers,
            named=named,
            batches=sizes,
            rounds=_rounds(rounds),
            solver=solver,
            steps=steps,
            samples=samples,
            schedules=schedule,
            report=report,
        )
    result(made.report)
    show(*comparison_parts(made.report))
    for path in comparing.write(made, output):
        say(f"report: {path}")
    if script is not None:
        write_script(script, bundle, engines or [], torch)
        say(f"script: {script}")
    if older is not None:
        found = gate.regressions(made.report, older, max_slowdown=slowdown, max_error=limit)
        _judge(found, gate.unjudged(made.report, older), baseline)


def _rounds(given: int | None) -> int:
    if given is not None and given < 1:
        raise UsageError(
            found=f"--rounds {given}", expected="1 or more", remedy="leave it out to choose by time"
        )
    return given or 0


def _judge(regressions: list[str], others: int, baseline: Path | None) -> None:
    """Say what regressed, and leave with the status that tells a script so."""
    for text in regressions:
        err.print("[bold red]regressed:[/]", as_it_is(text), highlight=False, soft_wrap=True)
    if regressions:
        raise typer.Exit(_REGRESSED)
    left = f"; {others} of its times were not measured now" if others else ""
    say(f"nothing regressed against {baseline}{left}")
