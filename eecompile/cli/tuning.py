"""The command ``tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eecompile.cli import options
from eecompile.cli.console import phases, result, say, show
from eecompile.cli.values import request_of
from eecompile.runtime.sampler import Sampler

_BATCH = 16  # where the engines take as many


def tune(
    engines: options.Engines,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the schedules.")],
    more: options.MoreEngines = None,
    solver: options.Solver = None,
    steps: options.Steps = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Share of full depth's time, such as 0.7; default several."),
    ] = None,
    use: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What schedules may use beside full depth: some of exits,forecasts,spans; "
            "default all that the engine sets can do.",
        ),
    ] = None,
    monotone: Annotated[
        bool, typer.Option("--monotone", help="The depth must not fall as t goes to 0.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Samples at once, where time is measured; default 16.")
    ] = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    set_: options.Conditions = None,
    null: options.Nulls = None,
    shape: options.Shape = None,
    seeds: Annotated[int, typer.Option(help="Samples that schedules are chosen by.")] = 16,
    held_out: Annotated[int, typer.Option(help="Further samples, for the figures.")] = 48,
    seed: options.Seed = 0,
    minutes: Annotated[
        float, typer.Option(help="For trying changes on real samples, in all; more steadies times.")
    ] = 2.0,
    threads: options.Threads = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace schedules in the output folder.")
    ] = False,
) -> None:
    """Find the exit schedules that lose least in a share of full depth's time, by measurement."""
    from eecompile.tune.output import check_output, identity_of, opened_work, write
    from eecompile.tune.problem import checked
    from eecompile.tune.report import TuningSettings
    from eecompile.tune.tables import front_parts
    from eecompile.tune.tuning import tune as tuned

    samples = request_of(seed, guidance, guidance_interval, set_, null, shape)
    check_output(output, force=force)
    folders = [engines, *(more or [])]
    with Sampler.open(*folders, threads=threads) as sampler:
        defaults = sampler.interface.sampling
        settings = TuningSettings(
            solver=solver or defaults.solver,
            steps=defaults.steps if steps is None else steps,
            budgets=tuple(budget or ()),
            batch=min(_BATCH, sampler.engine.max_batch) if batch is None else batch,
            seeds=seeds,
            held_out=held_out,
            use=tuple(part.strip() for part in use.split(",")) if use is not None else (),
            monotone=monotone,
            minutes=minutes,
        )
        checked(sampler, settings, samples)
        identity = identity_of(settings, folders, samples, threads=threads)
        try:
            with opened_work(output, identity) as work, phases() as report:
                made = tuned(
                    sampler, settings, samples, work=work, identity=identity, report=report
                )
                files = write(made, output)
        except KeyboardInterrupt:
            say(f"what was measured is kept in {output}: the same command goes on from there")
            raise
    result(made)
    show(*front_parts(made))
    for path in files:
        say(f"written: {path}")
