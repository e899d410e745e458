"""The commands that compile, ``export`` and ``build``, and ``sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eecompile.cli import options
from eecompile.cli.console import extra, phases, result, say, show, warned
from eecompile.cli.values import numbers_of
from eecompile.errors import UsageError
from eecompile.store.bundle import open_bundle
from eecompile.store.shipped import shipped
from eecompile.system import check_torch


def export(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Export recipe: a file, or a name that 'eecompile recipes' lists; or the folder "
            "of a diffusers pipeline, or hub:ORG/NAME for one in the Hugging Face cache: its "
            "recipe is written."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Bundle; default out/NETWORK/bundle.")
    ] = None,
    exits: Annotated[
        str | None, typer.Option(help="Depths to export instead of the recipe's, such as 3,6,12.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint to load instead of the recipe's.")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--recipe", help="For a pipeline: where its recipe is written; default NAME.toml."
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="For a pipeline: variant of its weights, such as fp16.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Export a trained network: one ONNX graph per exit, every weight stored once."""
    from eecompile.recipe import load_recipe
    from eecompile.show.bundles import companions_table, exits_table

    is_folder = recipe.is_dir() and str(recipe) not in shipped("export")
    if is_folder or str(recipe).startswith("hub:"):
        with extra("diffusers"), extra("export"):
            from eecompile.compiler.snapshots.recipe import write_recipe

            recipe = write_recipe(str(recipe), write, variant, force=force)
        say(f"recipe: {recipe}")
    elif write or variant:
        raise UsageError(
            found="--recipe or --variant for a recipe",
            expected="the folder of a pipeline, or hub:ORG/NAME",
            remedy="leave the option out",
        )
    folder = output or Path("out") / load_recipe(recipe).name / "bundle"
    with phases() as report, warned():
        check_torch()
        report("importing torch")
        with extra("export"):
            from eecompile.compiler.export import bundle_from_recipe
        manifest = bundle_from_recipe(
            recipe,
            folder,
            exits=None if exits is None else numbers_of("--exits", exits),
            checkpoint=checkpoint,
            force=force,
            report=report,
        )
    result(manifest)
    show(exits_table(manifest), *companions_table(manifest))
    left_out = set(load_recipe(recipe).exit_schedules()) - set(manifest.interface.schedules)
    if left_out:
        say(f"schedules left out, which need other exits: {', '.join(sorted(left_out))}")
    say(f"bundle: {folder}")


def build(
    bundle: options.Bundle,
    target: Annotated[
        Path | None,
        typer.Option(
            "--target",
            help="A file, or a name that 'eecompile targets' lists; default ONNX Runtime on the "
            "CPU.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Engine set; default out/NETWORK/TARGET.")
    ] = None,
    force: options.Force = False,
    sign: Annotated[
        Path | None,
        typer.Option("--sign", metavar="KEY", help="Sign the engine set; see eecompile sign."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be built and why; write nothing.")
    ] = False,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            help="For a target with [quantise]: measure each operator alone, by timestep.",
        ),
    ] = False,
) -> None:
    """Build the engines of a bundle for a target, and verify them."""
    from eecompile.show.bundles import engine_parts, planned_parts
    from eecompile.store.target import DEFAULT_TARGET, load_target, measuring_sensitivity

    chosen = DEFAULT_TARGET if target is None else load_target(target)
    if sensitivity:
        chosen = measuring_sensitivity(chosen)
    folder = output or Path("out") / open_bundle(bundle).interface.name / chosen.name
    with phases() as report:
        with extra("build"):
            from eecompile.compiler.build import engine_set_from_bundle, planned_build
        if dry_run:
            planned = planned_build(bundle, chosen, folder, force=force, report=report)
        else:
            built = engine_set_from_bundle(
                bundle, chosen, folder, force=force, sign=sign, report=report
            )
    if dry_run:
        result({"reasons": planned.reasons, "segments": planned.segments})
        show(*planned_parts(planned.reasons, planned.segments))
        return
    result(built.manifest)
    if not built.up_to_date:
        show(*engine_parts(built.manifest))
    say(f"engine set{', up to date' if built.up_to_date else ''}: {folder}")


def sign(
    folder: Annotated[Path, typer.Argument(help="A bundle or an engine set.")],
    key: Annotated[
        Path,
        typer.Option(
            metavar="KEY", help="Ed25519 private key: PEM, or OpenSSH's without a passphrase."
        ),
    ],
) -> None:
    """Sign a bundle or an engine set, so that its users can tell who made it."""
    from eecompile.store.signing import sign_folder

    written = sign_folder(folder, key)
    result({"path": str(folder), "written": written})
    say(f"signed{'' if written else ', as before'}: {folder}")
