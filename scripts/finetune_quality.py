"""A network before and after fine-tuning, in the same evaluation.

    python scripts/finetune_quality.py export/fashion-dit.toml --run runs/finetune

Both are exported, built for the CPU, and evaluated at the schedule that was fine-tuned to, at
full depth, and at every exit alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import machine
from evaluate import BENCHMARKS, ROOT, add_options, evaluated, options
from safetensors import safe_open

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.errors import EecompileError
from eecompile.programs.schedule import ExitSchedule
from eecompile.recipe import load_recipe
from eecompile.store.target import load_target

WEIGHTS = {"before": "start.safetensors", "after": "weights.safetensors"}
TARGET = ROOT / "engines" / "cpu.toml"


def facts_of(path: Path) -> dict[str, str]:
    """What a training script wrote beside the weights."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def engines_of(recipe: Path, weights: Path, folder: Path) -> Path:
    """The engine set of a checkpoint, built unless it is there."""
    bundle_from_recipe(recipe, folder / "bundle", checkpoint=weights)
    engine_set_from_bundle(folder / "bundle", load_target(TARGET), folder / "cpu")
    return folder / "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="the export recipe that was fine-tuned")
    parser.add_argument("--run", type=Path, default=Path("runs/finetune"), help="of finetune.py")
    add_options(parser)
    parser.add_argument("--output", type=Path, help="default docs/benchmarks/finetune-NAME.json")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    facts = facts_of(args.run / WEIGHTS["after"])
    schedule = args.run / f"{facts['schedule_name']}.json"
    schedule.write_bytes(ExitSchedule(**json.loads(facts["schedule"])).to_json())
    names = [str(schedule), "full", *map(str, recipe.network.exits[:-1])]
    found: dict[str, Any] = {}
    for name, file in WEIGHTS.items():
        engines = engines_of(args.recipe, args.run / file, args.run / name)
        found[name] = evaluated(engines, names, args.data, *options(args))
    log = [json.loads(line) for line in (args.run / "log.jsonl").read_text().splitlines()]
    result = {
        "machine": machine.facts("onnxruntime", "torch", "torchmetrics", "numpy"),
        "training": facts,
        "training_log": log,
        **found,
    }
    output = args.output or BENCHMARKS / f"finetune-{recipe.name}.json"
    output.write_text(json.dumps(result, indent=1) + "\n")
    for name, evaluation in found.items():
        row = evaluation["rows"][0]
        print(f"{name}: {row['distance']:.2f} ± {row['error']:.2f} at {row['cost']:.0%}")
    print(f"wrote {output}")


if __name__ == "__main__":
    try:
        main()
    except EecompileError as error:
        sys.exit(f"error: {error}")
