"""The command line: thin, one function a command."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
from rich.text import Text

import eecompile
from eecompile.bundle import BundleManifest, EngineManifest, open_bundle, open_engine_set, peek
from eecompile.errors import BackendError, EecompileError, UsageError
from eecompile.interrupt import check
from eecompile.runtime.fake import FakeEngine
from eecompile.runtime.interface import Interface
from eecompile.runtime.program import Program
from eecompile.runtime.sampler import Sampler, StepResult
from eecompile.runtime.schedule import ExitSchedule
from eecompile.runtime.solvers import SOLVERS

__all__ = ["main"]

app = typer.Typer(
    help="Compile multi-exit diffusion networks to engines, and sample with an exit schedule.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt
_REGRESSED = 3  # exit status of compare where the baseline was better
out = Console()
err = Console(stderr=True)

Force = Annotated[
    bool, typer.Option("--force", help="Replace any bundle or engine set at the output.")
]


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


@app.command()
def export(
    recipe: Annotated[Path, typer.Argument(help="Export recipe, such as export/fashion-dit.toml.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Bundle; default out/NETWORK/bundle.")
    ] = None,
    exits: Annotated[
        str | None, typer.Option(help="Depths to export instead of the recipe's, such as 3,6,12.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint to load instead of the recipe's.")
    ] = None,
    force: Force = False,
) -> None:
    """Export a trained network: one ONNX graph per exit, every weight stored once."""
    from eecompile.recipe import load_recipe
    from eecompile.report import exits_table

    folder = output or Path("out") / load_recipe(recipe).name / "bundle"
    with _phases() as report:
        report("importing torch")
        with _extra("export"):
            from eecompile.compiler.export import bundle_from_recipe
        manifest = bundle_from_recipe(
            recipe,
            folder,
            exits=None if exits is None else _numbers("--exits", exits),
            checkpoint=checkpoint,
            force=force,
            report=report,
        )
    out.print(exits_table(manifest))
    left_out = set(load_recipe(recipe).exit_schedules()) - set(manifest.interface.schedules)
    if left_out:
        _say(f"schedules left out, which need other exits: {', '.join(sorted(left_out))}")
    _say(f"bundle: {folder}")


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle that 'eecompile export' wrote.")],
    target: Annotated[
        Path | None,
        typer.Option(
            "--target", help="Target, such as engines/cpu.toml; default ONNX Runtime on the CPU."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Engine set; default out/NETWORK/TARGET.")
    ] = None,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be built and why; write nothing.")
    ] = False,
) -> None:
    """Build the engines of a bundle for a target, and verify them."""
    from eecompile.recipe import DEFAULT_TARGET, load_target
    from eecompile.report import engine_report, planned_report

    chosen = DEFAULT_TARGET if target is None else load_target(target)
    folder = output or Path("out") / open_bundle(bundle).interface.name / chosen.name
    with _phases() as report:
        with _extra("build"):
            from eecompile.compiler.build import engine_set_from_bundle, planned_build
        if dry_run:
            planned = planned_build(bundle, chosen, folder, force=force, report=report)
        else:
            built = engine_set_from_bundle(bundle, chosen, folder, force=force, report=report)
    if dry_run:
        out.print(planned_report(planned.reasons, planned.segments))
        return
    if not built.up_to_date:
        out.print(engine_report(built.manifest))
    _say(f"engine set{', up to date' if built.up_to_date else ''}: {folder}")


@app.command()
def sample(
    engines: Annotated[Path, typer.Argument(help="Engine set that 'eecompile build' wrote.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A labelled grid (.png) or the array (.npy).")
    ],
    n: Annotated[int, typer.Option("-n", help="Number of samples.")] = 16,
    solver: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(SOLVERS)}; with options ddim:eta=0.5,grid=karras."),
    ] = None,
    program: Annotated[
        Path | None,
        typer.Option(help="A program's JSON, as of 'eecompile program', instead of a solver."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps, 1 to T.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="A name, a depth, depths (12,9,6,3), 12:0.2,6:0.5,3 (fractions of T), or "
            "a schedule's file (.json)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same samples.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="Times t between which guidance acts."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A condition: a number, a list, or @FILE.npy."
        ),
    ] = None,
    null: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help='For guidance: what stands for "no condition"; as --set.'
        ),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of a sample, such as 4,96,64, if it may vary.")
    ] = None,
    more: Annotated[
        list[Path] | None,
        typer.Option(
            "--engines", help="A further engine set of the same network, that the schedule names."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; 0 for all cores.")] = None,
) -> None:
    """Sample with the built engines; what is left out takes the recipe's default."""
    conditions, nulls = _conditions("--set", set_ or []), _conditions("--null", null or [])
    _check_output(output)
    with Sampler.open(engines, *(more or []), threads=threads) as sampler:
        interface = sampler.interface
        if output.suffix == ".png":
            from eecompile.pictures import check_pictures

            check_pictures(interface.state.shape)
        interface.check_conditions(conditions)
        given = solver if program is None else _program(program, solver)
        chosen = sampler.program(given, steps, _schedule(schedule, interface))
        results = sampler.steps(
            n,
            solver=chosen,
            seed=seed,
            guidance=guidance,
            guidance_interval=_interval(guidance_interval),
            nulls=nulls,
            shape=None if shape is None else _numbers("--shape", shape),
            **conditions,
        )
        state = _last(results, len(chosen.steps))
    name = program.name if program else schedule or interface.sampling.schedule
    title = f"{interface.name}, {chosen.solver}, {len(chosen.steps)} steps, {name}, seed {seed}"
    _write(output, state, interface, conditions, title)
    _say(f"{n} samples: {output}")


@app.command()
def compare(
    bundle: Annotated[Path, typer.Argument(help="Bundle that 'eecompile export' wrote.")],
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
        typer.Option(
            help="One that must be there: onnxruntime, openvino, torch.compile, tensorrt, "
            "tensorrt-rtx."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,16",
    rounds: Annotated[
        int | None, typer.Option(help="How often each figure is measured; default by time.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="Solver of whole samplings, as for sample.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of whole samplings.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of whole samplings.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale of whole samplings; 1 is none.")
    ] = None,
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
    with _extra("compare"):
        from eecompile.compare import comparison as comparing
        from eecompile.compare import gate
        from eecompile.compare.checks import checked_bundle
        from eecompile.compare.report import read_report
        from eecompile.compare.script import check_script, write_script
        from eecompile.compare.tables import comparison_tables
    comparing.check_output(output)
    older = None if baseline is None else read_report(baseline)
    if older is not None:
        gate.check_network(older, checked_bundle(bundle).interface.name)
    slowdown = gate.fraction("5%" if max_slowdown is None else max_slowdown)
    limit = 1e-3 if max_error is None else max_error
    gate.check_limits(slowdown, limit)
    if script is not None:
        check_script(script)
    sizes, named = _numbers("--batch", batch), peer or []
    with _phases() as report:
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
            seed=seed,
            guidance=guidance,
            schedules=schedule,
            report=report,
        )
    out.print(comparison_tables(made.report))
    for path in comparing.write(made, output):
        _say(f"report: {path}")
    if script is not None:
        write_script(script, bundle, engines or [], torch)
        _say(f"script: {script}")
    if older is None:
        return
    found = gate.regressions(made.report, older, max_slowdown=slowdown, max_error=limit)
    for text in found:
        err.print("[bold red]regressed:[/]", _text(text), highlight=False, soft_wrap=True)
    if found:
        raise typer.Exit(_REGRESSED)
    others = gate.unjudged(made.report, older)
    left = f"; {others} of its times were not measured now" if others else ""
    _say(f"nothing regressed against {baseline}{left}")


@app.command()
def tune(
    engines: Annotated[Path, typer.Argument(help="Engine set that 'eecompile build' wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the schedules.")],
    more: Annotated[
        list[Path] | None,
        typer.Option("--engines", help="A further engine set of the same network to choose from."),
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="As for sample; default the recipe's, as for --steps.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps.")] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Share of full depth's time, such as 0.7; default several."),
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="May also use the previous output again.")
    ] = False,
    monotone: Annotated[
        bool, typer.Option("--monotone", help="The depth must not fall as t goes to 0.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Samples at once, where time is measured; default 16.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A condition; samples take a list's values in turn."
        ),
    ] = None,
    null: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="As for sample.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Samples that schedules are chosen by.")] = 16,
    held_out: Annotated[int, typer.Option(help="Further samples, for the figures.")] = 48,
    seed: Annotated[int, typer.Option(help="Of the samples' noise.")] = 0,
    minutes: Annotated[
        float, typer.Option(help="For trying changes on real samples, in all; more steadies times.")
    ] = 2.0,
    threads: Annotated[int | None, typer.Option(help="Threads; 0 for all cores.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace schedules in the output folder.")
    ] = False,
) -> None:
    """Find the exit schedules that lose least in a share of full depth's time, by measurement."""
    from eecompile.tune.output import check_output, identity_of, opened_work, write
    from eecompile.tune.problem import checked
    from eecompile.tune.report import Settings
    from eecompile.tune.tables import front_tables
    from eecompile.tune.tuning import tune as tuned

    conditions, nulls = _conditions("--set", set_ or []), _conditions("--null", null or [])
    check_output(output, force=force)
    folders = [engines, *(more or [])]
    with Sampler.open(*folders, threads=threads) as sampler:
        defaults = sampler.interface.sampling
        sampler.interface.check_conditions(conditions)
        settings = Settings(
            solver=solver or defaults.solver,
            steps=defaults.steps if steps is None else steps,
            budgets=tuple(budget or ()),
            batch=min(16, sampler.engine.max_batch) if batch is None else batch,
            guidance=defaults.guidance if guidance is None else guidance,
            seeds=seeds,
            held_out=held_out,
            seed=seed,
            reuse=reuse,
            monotone=monotone,
            minutes=minutes,
        )
        checked(sampler, settings)
        identity = identity_of(settings, folders, conditions, nulls, threads=threads)
        try:
            with opened_work(output, identity) as work, _phases() as report:
                made = tuned(
                    sampler,
                    settings,
                    conditions=conditions,
                    nulls=nulls,
                    work=work,
                    identity=identity,
                    report=report,
                )
                written = write(made, output)
        except KeyboardInterrupt:
            _say(f"what was measured is kept in {output}: the same command goes on from there")
            raise
    out.print(front_tables(made))
    for path in written:
        _say(f"written: {path}")


@app.command()
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
        typer.Option(help="With --for: the exit schedule; without, sampling chooses the depths."),
    ] = None,
) -> None:
    """Compile a diffusers scheduler, or a solver, to a program that any engine set can run."""
    from eecompile.report import program_facts

    _check_json(output)
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
        planner = _planner(for_)
        interface = planner.interface
        open_ = scheduler if native else _compiled(Path(scheduler), steps, interface)
        count = steps if native else None
        made = planner.program(open_, count, _schedule(schedule, interface))
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.write_bytes(made.to_json())
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    out.print(program_facts(made, interface))
    _say(f"program: {output}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, an engine set, or a program's JSON.")],
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    program: Annotated[
        bool, typer.Option("--program", help="Show the program that sampling would run.")
    ] = False,
    solver: Annotated[str | None, typer.Option(help="With --program: the solver.")] = None,
    steps: Annotated[int | None, typer.Option(help="With --program: number of steps.")] = None,
    schedule: Annotated[str | None, typer.Option(help="With --program: the exit schedule.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Show every step of a program.")] = False,
) -> None:
    """Show a bundle, an engine set (exits, sizes, sharing, schedules, errors) or a program."""
    from eecompile.report import bundle_report, engine_report, program_report

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
        planner = _planner(path) if program else None
        interface = None if planner is None else planner.interface
        if planner is None:
            shown = _program(path, None)
        else:
            shown = planner.program(solver, steps, _schedule(schedule, planner.interface))
        if json:
            sys.stdout.buffer.write(shown.to_json() + b"\n")
        else:
            out.print(program_report(shown, interface, whole=all_))
        return
    manifest = _manifest(path)
    if json:
        sys.stdout.buffer.write(
            msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        )
    elif isinstance(manifest, BundleManifest):
        out.print(bundle_report(manifest))
    else:
        out.print(engine_report(manifest))


@app.command()
def evaluate(
    reference: Annotated[
        Path,
        typer.Option(help="Real data: a folder of pictures, .npy, .npz, or an IDX file (.gz)."),
    ],
    engines: Annotated[
        Path | None, typer.Argument(help="Engine set; none where there are --samples.")
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(help="An exit schedule, as for sample; one a row; default the recipe's."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of samples a row.")] = 10_000,
    samples: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Ready samples, .npy or .npz; a further row."),
    ] = None,
    floor: Annotated[
        Path | None,
        typer.Option(help="More real data, for the floor; default two halves of the reference."),
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Solver, as for sample.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A condition, as for sample."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same samples.")] = 0,
    batch: Annotated[int, typer.Option(help="Samples made, and kept, at a time.")] = 256,
    features: Annotated[
        Path | None,
        typer.Option(metavar="NET.onnx", help="Feature network; default EfficientNet-Lite0."),
    ] = None,
    decoder: Annotated[
        Path | None,
        typer.Option(metavar="NET.onnx", help="Makes pictures of samples, such as latents."),
    ] = None,
    more: Annotated[
        list[Path] | None,
        typer.Option(
            "--engines", help="A further engine set of the same network, that a schedule names."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; 0 for all cores.")] = None,
    work: Annotated[
        Path, typer.Option(help="Folder that keeps samples and features, to go on with.")
    ] = Path("out/evaluate"),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write JSON.")] = None,
) -> None:
    """Quality of samples beside real data: Frechet distance, precision and recall."""
    if output is not None:
        _check_json(output)
    conditions = _conditions("--set", set_ or [])
    with _extra("evaluate"):
        from eecompile.evaluate import evaluation
        from eecompile.evaluate.samples import Draw
        from eecompile.evaluate.tables import evaluation_tables
    sets = [*([] if engines is None else [engines]), *(more or [])]
    draw = Draw(count=n, seed=seed, guidance=guidance, conditions=conditions, batch=batch)
    options = evaluation.Options(
        reference=reference,
        draw=draw,
        work=work,
        features=features,
        decoder=decoder,
        floor=floor,
        samples=tuple(samples or ()),
        solver=solver,
        steps=steps,
        threads=threads,
    )
    with _phases() as report, _extra("evaluate"):
        named = _schedules(schedule, open_engine_set(sets[0]).interface) if sets else []
        made = evaluation.evaluate(sets, named, options, report)
    out.print(evaluation_tables(made))
    if output is not None:
        partial = output.with_name(f".{output.name}.partial")
        try:
            partial.write_bytes(made.to_json())
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
        _say(f"figures: {output}")


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show what can build and run on this machine, why the rest cannot, and what to install."""
    from eecompile.doctor import examine
    from eecompile.report import doctor_report

    with _phases() as progress:
        progress("asking every backend")
        report = examine()
    if json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    else:
        out.print(doctor_report(report))
    if not report.usable:
        raise BackendError(
            found="no backend that can run here",
            expected="at least one",
            remedy=report.backends[0].runs.remedy,
        )


def main() -> NoReturn:
    """Run the command line; errors are printed as a sentence, with exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # terminals that lack a character show "?"
            stream.reconfigure(errors="replace")
    try:
        status = app(standalone_mode=False)
    except EecompileError as error:
        _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except (OSError, MemoryError) as error:
        _fail(_of_the_system(error))
    except Exception as error:
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
    err.print("[bold red]error:[/]", _text(str(error)), highlight=False, soft_wrap=True)
    sys.exit(1)


def _of_the_system(error: OSError | MemoryError) -> EecompileError:
    """What the operating system refused, as a sentence."""
    if isinstance(error, MemoryError):
        return EecompileError(
            found="too little memory" + (f" ({error})" if str(error) else ""),
            expected="room for the network and its batch",
            remedy="ask for fewer samples at a time, or use a larger machine",
        )
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    where = f" at {error.filename}" if error.filename else ""
    return EecompileError(
        found=f"{(error.strerror or str(error)).lower()}{where}",
        expected="room for what is written" if full else "a place that can be read and written",
        remedy="free some space, or choose another place"
        if full
        else "check the path and its permissions",
    )


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Turns a missing package into a sentence that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = "cpu" if error.name == "onnxruntime" else name
        raise BackendError(
            found=f"no package {error.name}",
            expected=f"the packages of eecompile's extra {extra!r}",
            remedy=f"pip install 'eecompile[{extra}]'",
        ) from error


@contextmanager
def _phases() -> Iterator[Any]:
    """A bar that names the phase and its steps; off a terminal, a line a phase."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = ""
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("")

        def report(phase: str, done: int = 0, total: int = 0) -> None:
            nonlocal shown
            check()
            if phase != shown and not err.is_terminal:
                err.print(phase, highlight=False, markup=False, soft_wrap=True)
            shown = phase
            progress.update(task, description=escape(phase), completed=done, total=total or None)

        yield report


def _last(results: Iterator[StepResult], total: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The state after the last step; a bar shows the depth in use."""
    with _progress() as progress:
        task = progress.add_task("", total=total)
        for result in results:
            check()
            label = f"t = {result.timestep:g}, depth {result.depth}"
            progress.update(task, advance=1, description=label)
    return result.state


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    last, quiet = TimeRemainingColumn(), not err.is_terminal
    return Progress(*columns, last, console=err, transient=True, disable=quiet)


def _rounds(given: int | None) -> int:
    if given is not None and given < 1:
        raise UsageError(
            found=f"--rounds {given}", expected="1 or more", remedy="leave it out to choose by time"
        )
    return given or 0


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            found=f"{option} {text}",
            expected="whole numbers separated by commas",
            remedy=f"for example {option} 3,6,12",
        ) from error


def _program(path: Path, solver: str | None) -> Program:
    if solver is not None:
        raise UsageError(
            found=f"--solver {solver} beside --program",
            expected="one of them: a program is a solver and its steps",
            remedy="drop either",
        )
    return Program.from_json(path.read_bytes())


def _interval(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, _, high = text.partition(",")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise UsageError(
            found=f"--guidance-interval {text}",
            expected="two times, LOW,HIGH",
            remedy="for example --guidance-interval 100,800",
        ) from error


def _manifest(path: Path) -> BundleManifest | EngineManifest:
    return open_bundle(path) if peek(path) == "bundle" else open_engine_set(path)


def _planner(path: Path) -> Sampler:
    """Makes programs for the network of a bundle or an engine set; it cannot evaluate it."""
    interface = _manifest(path).interface
    return Sampler(FakeEngine(interface.exits, lambda depth, x, t, conditions: x), interface)


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
    with _extra("schedulers"):
        from eecompile.compiler.scheduler import program_from_scheduler
        from eecompile.compiler.scheduler_config import scheduler_from_config

        scheduler = scheduler_from_config(config)
    if interface is None:
        return program_from_scheduler(scheduler, steps)
    count = interface.sampling.steps if steps is None else steps
    return program_from_scheduler(scheduler, count, process=interface.process)


def _check_json(output: Path) -> None:
    if output.suffix != ".json" or not output.parent.is_dir() or output.is_dir():
        raise UsageError(
            found=f"output {output}",
            expected="a name that ends in .json, in a folder that exists",
            remedy="rename it, create the folder, or choose another place",
        )


def _schedule(text: str | None, interface: Interface) -> ExitSchedule | str | None:
    if text is None or text in interface.schedules:
        return text
    if text.replace("_", "").replace("-", "").isalpha():
        return text  # a name, and unknown: the sampler says which are known
    return ExitSchedule.parse(text)


def _schedules(
    texts: list[str] | None, interface: Interface
) -> list[tuple[str, ExitSchedule | str]]:
    """Exit schedules with their names in tables."""
    given = list(dict.fromkeys(texts or [interface.sampling.schedule]))
    names = [Path(text).stem if text.endswith(".json") else text for text in given]
    return [(n, _schedule(t, interface) or t) for n, t in zip(names, given, strict=True)]


def _conditions(option: str, settings: list[str]) -> dict[str, Any]:
    conditions = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name in conditions:
            raise UsageError(
                found=f"{option} {name}=... twice",
                expected="one value a condition",
                remedy="give a list for values that differ by sample",
            )
        try:
            if text.startswith("@"):
                conditions[name] = np.load(text[1:], allow_pickle=False)
            else:
                conditions[name] = msgspec.json.decode(text, type=float | int | list[Any])
        except (msgspec.DecodeError, OSError, ValueError, EOFError, RecursionError) as error:
            raise UsageError(
                found=f"{option} {setting}",
                expected="NAME=VALUE, where VALUE is a number, a JSON list of numbers, or "
                "@FILE.npy",
                remedy=f"for example {option} label=3",
            ) from error
    return conditions


def _check_output(output: Path) -> None:
    if output.suffix not in (".png", ".npy"):
        raise UsageError(
            found=f"output {output}",
            expected="a name that ends in .png or .npy",
            remedy="rename it",
        )
    if not output.parent.is_dir() or output.is_dir():
        raise UsageError(
            found=f"output {output}",
            expected="a file in a folder that exists",
            remedy="create the folder, or choose another place",
        )


def _write(
    output: Path,
    states: np.ndarray[Any, np.dtype[np.float32]],
    interface: Interface,
    conditions: dict[str, Any],
    title: str,
) -> None:
    """Write the samples whole or not at all."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        if output.suffix == ".npy":
            with partial.open("wb") as file:
                np.save(file, states)
        else:
            from eecompile.pictures import save_grid

            labels, columns = _labels(interface, conditions, len(states))
            bounds = interface.state.range or (float(states.min()), float(states.max()) + 1e-6)
            save_grid(states, bounds, partial, title=title, labels=labels, columns=columns)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _labels(interface: Interface, conditions: dict[str, Any], count: int) -> tuple[list[str], int]:
    """A name for each sample, from the first condition that has names; and the columns."""
    for name, spec in interface.conditions.items():
        if spec.names and spec.range and not spec.shape:
            values = spec.values(name, conditions.get(name), range(count))
            low = int(spec.range[0])
            words = [spec.names[int(value) - low] for value in values.tolist()]
            cycles = spec.default == "cycle" and name not in conditions
            return words, len(spec.names) if cycles and count >= len(spec.names) else 0
    return [], 0


def _say(text: str) -> None:
    out.print(text, highlight=False, soft_wrap=True, markup=False)


def _text(text: str) -> Text:
    """As it is: names and paths may hold what rich takes for markup."""
    return Text(text)
