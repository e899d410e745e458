"""Quality by ``eecompile evaluate``, with the machine that it was measured on.

    python scripts/evaluate.py shipped
    python scripts/evaluate.py finetuned export/fashion-dit.toml --run runs/finetune

Held-out pictures are the reference; the floor is of as many training pictures. Samples are
kept under out/evaluate, so an interrupted evaluation goes on where it stopped. Other options
go to ``eecompile evaluate``: by default 10,000 samples a schedule, DDIM with 15 steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import msgspec
import typer
from bundles import engine_set
from results import BENCHMARKS, OUT, ROOT, facts, main, run_eecompile
from safetensors import safe_open
from training import DATA

from eecompile import ExitSchedule
from eecompile.compiler import bundle_from_recipe
from eecompile.recipe import load_recipe
from eecompile.store import open_engine_set

WEIGHTS = {"before": "start.safetensors", "after": "weights.safetensors"}
DEFAULTS = ("-n", 10_000, "--solver", "ddim", "--steps", 15, "--work", ROOT / "out" / "evaluate")
Data = Annotated[Path, typer.Option(help="Folder of the IDX files.")]
MORE = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


def evaluated(
    engines: Path, schedules: Sequence[str], data: Path, more: Sequence[str]
) -> dict[str, Any]:
    """What ``eecompile evaluate`` writes of an engine set, with further options."""
    with TemporaryDirectory() as temporary:
        output = Path(temporary) / "evaluation.json"
        run_eecompile(
            *("evaluate", engines, "-o", output, *DEFAULTS),
            *("--reference", data / "t10k-images-idx3-ubyte.gz"),
            *("--floor", data / "train-images-idx3-ubyte.gz", *more),
            *(f"--schedule={name}" for name in schedules),
        )
        made: dict[str, Any] = json.loads(output.read_text())
        return made


@app.command(context_settings=MORE)
def shipped(
    more: typer.Context,
    engines: Path = OUT / "cpu",
    schedules: Annotated[
        list[str] | None, typer.Option(help="Default every exit and every schedule.")
    ] = None,
    data: Data = DATA,
    output: Path = BENCHMARKS / "quality-fashion-dit.json",
) -> None:
    """The shipped network at every exit and schedule."""
    interface = open_engine_set(engines).interface
    names = schedules or [*map(str, interface.exits[:-1]), *interface.schedules]
    made = evaluated(engines, names, data, more.args)
    output.write_text(json.dumps({"machine": facts(), **made}, indent=1) + "\n")


@app.command(context_settings=MORE)
def finetuned(
    more: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="The export recipe that was fine-tuned.")],
    run: Annotated[Path, typer.Option(help="Folder of finetune.py.")] = Path("runs/finetune"),
    data: Data = DATA,
    target: Annotated[str, typer.Option(help="A target of the project, to sample with.")] = "cpu",
    output: Annotated[
        Path | None, typer.Option(help="Default docs/benchmarks/finetune-NAME.json.")
    ] = None,
) -> None:
    """A network before and after fine-tuning, in the same evaluation.

    Both are exported, built, and evaluated at the schedule that was fine-tuned to, at full
    depth, and at every exit alone.
    """
    made = load_recipe(recipe)
    with safe_open(run / WEIGHTS["after"], "pt") as file:
        training = dict(file.metadata() or {})
    schedule = run / f"{training['schedule_name']}.json"
    made_for = msgspec.json.decode(training["schedule"], type=ExitSchedule)
    schedule.write_bytes(made_for.to_json())
    names = [str(schedule), "full", *map(str, made.network.exits[:-1])]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    result = {"machine": facts(), "training": training, "training_log": log}
    for name, weights in WEIGHTS.items():
        bundle_from_recipe(recipe, run / name / "bundle", checkpoint=run / weights)
        engines = engine_set(run / name / "bundle", run / name, target)
        result[name] = evaluated(engines, names, data, more.args)
        row = result[name]["rows"][0]
        print(
            f"{name}: {row['frechet_distance']:.2f} ± {row['error']:.2f} at {row['cost_share']:.0%}"
        )
    place = output or BENCHMARKS / f"finetune-{made.name}.json"
    place.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {place}")


if __name__ == "__main__":
    main(app)
