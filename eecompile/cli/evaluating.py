"""The command ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eecompile.cli import options
from eecompile.cli.console import extra, phases, result, say, show
from eecompile.cli.files import check_file
from eecompile.cli.values import program_of, request_of, schedules_of
from eecompile.errors import UsageError
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.store.bundle import open_engine_set
from eecompile.store.files import form_bytes, written
from eecompile.system import check_torch

if TYPE_CHECKING:
    from eecompile.evaluate.evaluation import Options

_ADDRESSES = 1700 << 20  # bytes without which a small evaluation fails

Named = list[tuple[str, ExitSchedule | str | Program]]


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
    program: Annotated[
        list[Path] | None,
        typer.Option(help="A program's JSON, as of 'eecompile program'; a further row."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of samples a row.")] = 10_000,
    samples: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Ready samples, .npy or .npz; a further row."),
    ] = None,
    reference_n: Annotated[
        int | None,
        typer.Option(help="Real samples that are looked at, for a trial; default all."),
    ] = None,
    floor: Annotated[
        Path | None,
        typer.Option(help="More real data, for the floor; default two halves of the reference."),
    ] = None,
    solver: options.Solver = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    set_: options.Conditions = None,
    null: options.Nulls = None,
    shape: options.Shape = None,
    seed: options.Seed = 0,
    batch: Annotated[int, typer.Option(help="Samples made, and kept, at a time.")] = 256,
    features: Annotated[
        Path | None,
        typer.Option(metavar="NET.onnx", help="Feature network; default EfficientNet-Lite0."),
    ] = None,
    decoder: Annotated[
        Path | None,
        typer.Option(metavar="NET.onnx", help="Makes pictures of samples, such as latents."),
    ] = None,
    more: options.MoreEngines = None,
    threads: options.Threads = None,
    work: Annotated[
        Path, typer.Option(help="Folder that keeps samples and features, to go on with.")
    ] = Path("out/evaluate"),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write JSON.")] = None,
) -> None:
    """Quality of samples beside real data: Frechet distance, precision and recall."""
    if output is not None:
        check_file(output, ".json")
    request = request_of(seed, guidance, guidance_interval, set_, null, shape, n=n)
    check_torch(_ADDRESSES)
    with extra("evaluate"):
        from eecompile.evaluate import evaluation
        from eecompile.evaluate.tables import evaluation_parts
    sets = [*([] if engines is None else [engines]), *(more or [])]
    settings = evaluation.Options(
        reference=reference,
        request=request,
        batch=batch,
        work=work,
        features=features,
        decoder=decoder,
        reference_n=reference_n,
        floor=floor,
        samples=tuple(samples or ()),
        solver=solver,
        steps=steps,
        threads=threads,
    )
    with phases() as report, extra("evaluate"):
        named = _named(schedule, program, sets, settings)
        made = evaluation.evaluate(sets, named, settings, report)
    result(made)
    show(*evaluation_parts(made))
    if output is not None:
        with written(output) as partial:
            partial.write_bytes(form_bytes(made))
        say(f"figures: {output}")


def _named(
    schedules: list[str] | None, programs: list[Path] | None, sets: list[Path], settings: Options
) -> Named:
    """Rows of samples that are made, with their names; the recipe's schedule if none is given."""
    if not sets and (schedules or programs):
        raise UsageError(
            found="--schedule or --program without an engine set",
            expected="them only for samples that are made here",
            remedy="name an engine set, or drop them",
        )
    named: Named = []
    if sets and (schedules or not programs):
        interface = open_engine_set(sets[0]).interface
        default = interface.default_schedule(settings.solver, settings.steps)
        named += schedules_of(schedules or [default], interface)
    return named + [(path.stem, program_of(path, None)) for path in programs or []]
