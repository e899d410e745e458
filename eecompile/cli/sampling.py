"""The commands ``sample`` and ``program``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from eecompile.cli import options
from eecompile.cli.console import extra, last_state, result, say, show, warned
from eecompile.cli.files import MEDIA, check_file, check_samples, write_decoded, write_samples
from eecompile.cli.inspecting import planner_of
from eecompile.cli.values import program_of, request_of, schedule_of
from eecompile.errors import UsageError
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program
from eecompile.programs.solvers import SOLVERS
from eecompile.runtime.companions import checked_tile
from eecompile.runtime.sampler import Sampler
from eecompile.store.files import written

_USUAL = 16  # samples


def sample(
    engines: options.Engines,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="A labelled grid (.png) or the array (.npy); decoded: pictures (.png), a video "
            "(.gif, .mp4), a waveform (.wav), text (.txt) or the array (.npy).",
        ),
    ],
    n: Annotated[
        int | None,
        typer.Option("-n", help="Number of samples; default 16, or one for each prompt."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to sample, where the network has an encoder; several in turn."),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(help="What guidance leads away from; default the recipe's, or nothing."),
    ] = None,
    latents: Annotated[
        bool, typer.Option("--latents", help="Samples as they are, not decoded.")
    ] = False,
    tile: Annotated[
        int | None,
        typer.Option(
            min=4,
            help="Decode in overlapping tiles of so many latents a side, where whole samples do "
            "not fit into memory.",
        ),
    ] = None,
    solver: options.Solver = None,
    program: Annotated[
        Path | None,
        typer.Option(help="A program's JSON, as of 'eecompile program', instead of a solver."),
    ] = None,
    steps: options.Steps = None,
    schedule: options.Schedule = None,
    seed: options.Seed = 0,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    set_: options.Conditions = None,
    null: options.Nulls = None,
    shape: options.Shape = None,
    more: options.MoreEngines = None,
    threads: options.Threads = None,
) -> None:
    """Sample with the built engines; what is left out takes the recipe's default."""
    count = (len(prompt) if prompt else _USUAL) if n is None else n
    asked = request_of(seed, guidance, guidance_interval, set_, null, shape, n=count)
    check_file(output, ".png", ".npy", *MEDIA)
    with Sampler.open(engines, *(more or []), threads=threads) as sampler, warned():
        interface = sampler.interface
        decoder = None if latents else interface.decoder
        check_samples(output, decoder, interface.state.shape, count)
        if tile is not None:
            checked_tile(interface, tile)
        request = sampler.prompted(asked, prompt, negative).part(interface, 0, count)
        sampler.check(request)
        given = solver if program is None else program_of(program, solver)
        chosen = sampler.program(given, steps, schedule_of(schedule, interface))
        conditions: dict[str, Any] = dict(request.conditions)
        results = sampler.steps(
            count,
            solver=chosen,
            seed=seed,
            guidance=request.guidance,
            guidance_interval=request.guidance_interval,
            nulls=request.nulls,
            shape=request.shape,
            **conditions,
        )
        began = time.perf_counter()
        state = last_state(results, len(chosen.steps))
        made = sampler.decode(state, tile) if decoder else state
        texts = sampler.texts(made) if decoder and decoder.kind == "text" else []
        seconds = time.perf_counter() - began
    name = program.name if program else schedule or interface.default_schedule(solver, steps)
    if decoder:
        write_decoded(output, made, decoder, texts)
    else:
        title = f"{interface.name}, {chosen.solver}, {len(chosen.steps)} steps, {name}, seed {seed}"
        write_samples(output, made, interface, conditions, title)
    facts = {"output": str(output), "n": count, "shape": made.shape[1:], "seed": seed}
    schedule_ = {"schedule": str(name), "solver": chosen.solver, "steps": len(chosen.steps)}
    result(facts | schedule_ | {"seconds": seconds})
    say(f"{count} samples: {output}")


def program(
    scheduler: Annotated[
        str,
        typer.Argument(help="A scheduler_config.json of diffusers; with --for also a solver."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The program, a .json file.")],
    steps: Annotated[
        int | None, typer.Option(help="Number of steps; with --for by default the recipe's.")
    ] = None,
    for_: Annotated[
        Path | None,
        typer.Option(
            "--for", metavar="PATH", help="Bundle or engine set of the network that it is for."
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="With --for: the exit schedule; without, sampling chooses one."),
    ] = None,
) -> None:
    """Compile a diffusers scheduler, or a solver, to a program that any engine set can run."""
    from eecompile.show.programs import program_facts

    check_file(output, ".json")
    native = _is_solver(scheduler)
    if for_ is None:
        if native or schedule is not None or steps is None:
            given = f"solver {scheduler}" if native else f"--schedule {schedule}"
            raise UsageError(
                found="no --steps and no --for" if steps is None else f"{given} without --for",
                expected="the bundle or engine set of the network that the program is for",
                remedy="add --for PATH, or give a scheduler_config.json and --steps",
            )
        interface, made = None, _compiled(Path(scheduler), steps, None)
    else:
        planner = planner_of(for_)
        interface = planner.interface
        open_ = scheduler if native else _compiled(Path(scheduler), steps, interface)
        count = steps if native else None
        made = planner.program(open_, count, schedule_of(schedule, interface))
    with written(output) as partial:
        partial.write_bytes(made.to_json())
    result(made.to_json())
    show(program_facts(made, interface))
    say(f"program: {output}")


def _is_solver(text: str) -> bool:
    """Whether it names a solver, and not the file of a scheduler."""
    if Path(text).exists():
        return False
    if text.partition(":")[0] not in SOLVERS:
        raise UsageError(
            found=f"no file {text}, and no solver of that name",
            expected=f"a scheduler_config.json, or one of {', '.join(SOLVERS)}",
            remedy="check the path or the name",
        )
    return True


def _compiled(config: Path, steps: int | None, interface: Interface | None) -> Program:
    """The program of a scheduler that a file describes; its depths are open."""
    with extra("diffusers"):
        from eecompile.compiler.schedulers.config import scheduler_from_config
        from eecompile.compiler.schedulers.program import program_from_scheduler

        scheduler = scheduler_from_config(config)
    if interface is None:
        return program_from_scheduler(scheduler, steps)
    count = interface.sampling.steps if steps is None else steps
    return program_from_scheduler(scheduler, count, process=interface.process)
