"""Held-out loss of every exit by timestep: what an exit schedule can rest on.

python scripts/losses.py export/fashion-dit.toml --log runs/fashion-dit/log.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import machine
import torch
from safetensors import safe_open
from training import DATA, load_images

from eecompile.networks.load import load_network
from eecompile.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
SLICES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--log", type=Path, help="the training run's log")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--count", type=int, default=1000, help="held-out images")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "benchmarks" / "training-fashion-dit.json"
    )
    args = parser.parse_args()
    recipe = load_recipe(args.recipe)
    network = load_network(recipe.network, args.recipe.parent)
    images, labels = (part[: args.count] for part in load_images(args.data, "t10k"))
    table = torch.from_numpy(recipe.process.alpha_bar()).float()
    draws = torch.Generator().manual_seed(0)
    exits = recipe.network.exits
    rows = []
    for index in range(SLICES):
        # Timesteps at random within the slice, as many as images.
        span = recipe.process.timesteps / SLICES
        uniform = torch.rand(len(images), generator=draws)
        timestep = ((index + uniform) * span).long()
        alpha_bar = table[timestep][:, None, None, None]
        noise = torch.randn(images.shape, generator=draws)
        noisy = alpha_bar.sqrt() * images + (1 - alpha_bar).sqrt() * noise
        velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * images
        with torch.no_grad():
            predictions = network(x=noisy, t=timestep.float(), label=labels)
        losses = [float((p - velocity).square().mean()) for p in predictions]
        row = {"timesteps": f"{index * span:.0f} to {(index + 1) * span:.0f}"}
        rows.append(row | {f"exit {d}": round(v, 5) for d, v in zip(exits, losses, strict=True)})
        print(rows[-1], flush=True)
    mean = {key: round(sum(r[key] for r in rows) / SLICES, 5) for key in rows[0] if key[0] == "e"}
    with safe_open(args.recipe.parent / recipe.network.checkpoint, "pt") as file:
        training = dict(file.metadata() or {})
    log = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log else []
    result = {
        "machine": machine.facts("torch"),
        "training": training,
        "held_out_images": len(images),
        "velocity_mse": mean,
        "velocity_mse_by_timestep": rows,
        "training_log": log[4::5] or log,
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"mean: {mean}")


if __name__ == "__main__":
    main()
