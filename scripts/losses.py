"""Held-out loss of every exit by timestep: what an exit schedule can rest on.

python scripts/losses.py export/fashion-dit.toml --log runs/fashion-dit/log.jsonl
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from results import BENCHMARKS, facts, main
from safetensors import safe_open
from training import DATA, Noising, load_images

from eecompile.networks import load_network
from eecompile.recipe import load_recipe

SLICES = 20


def losses(
    recipe: Path,
    log: Annotated[Path | None, typer.Option(help="The training run's log.")] = None,
    data: Path = DATA,
    count: Annotated[int, typer.Option(help="Held-out images.")] = 1000,
    output: Path = BENCHMARKS / "training-fashion-dit.json",
) -> None:
    """Held-out loss of every exit by timestep."""
    made = load_recipe(recipe)
    network, noising = load_network(made.network, recipe.parent), Noising(made.process)
    images, labels = (part[:count] for part in load_images(data, "t10k"))
    draws = torch.Generator().manual_seed(0)
    rows = []
    for index in range(SLICES):
        # Timesteps at random within the slice, as many as images.
        span = made.process.timesteps / SLICES
        time = ((index + torch.rand(len(images), generator=draws)) * span).long()
        noise = torch.randn(images.shape, generator=draws)
        noisy, timestep, target = noising(images, time, noise)
        with torch.no_grad():
            predictions = network(x=noisy, t=timestep, label=labels)
        row: dict[str, str | float] = {
            "timesteps": f"{index * span:.0f} to {(index + 1) * span:.0f}"
        }
        for depth, prediction in zip(made.network.exits, predictions, strict=True):
            row[f"exit {depth}"] = round(float((prediction - target).square().mean()), 5)
        rows.append(row)
        print(row, flush=True)
    mean = {key: round(sum(r[key] for r in rows) / SLICES, 5) for key in rows[0] if key[0] == "e"}
    with safe_open(recipe.parent / made.network.checkpoint, "pt") as file:
        training = dict(file.metadata() or {})
    logged = [json.loads(line) for line in log.read_text().splitlines()] if log else []
    result = {
        "machine": facts(),
        "training": training,
        "held_out_images": len(images),
        "velocity_mse": mean,
        "velocity_mse_by_timestep": rows,
        "training_log": logged[4::5] or logged,
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"mean: {mean}")


if __name__ == "__main__":
    main(lambda: typer.run(losses))
