"""Train the shipped network: a multi-exit DiT on Fashion-MNIST.

    scripts/train export/fashion-dit.toml --run runs/fashion-dit

All exits are trained together for all timesteps: the loss is the mean squared error
of the velocity (arXiv 2202.00512), averaged over the exits with weights in proportion
to their depth. Matrices inside the blocks are stepped by Muon, the rest by AdamW; the
learning rate warms up, stays, and falls to zero over the last quarter. Every batch is a
function of the seed and the step, so a run that was stopped and resumed sees the same
data, noise and timesteps as one that was not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from results import main
from training import Plan, Trainer, add_options, train

from eecompile import ExitSchedule
from eecompile.networks import DiT
from eecompile.recipe import load_recipe


class AllExits(Trainer):
    """All exits at once, for all timesteps."""

    warmup, everywhere = 200, "exit"


def trained() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="the export recipe whose network is trained")
    parser.set_defaults(time_weights="1")
    add_options(parser, run="runs/fashion-dit", steps=7000, lr=2e-3)
    parser.add_argument("--exits", help="such as 12, for full depth alone; default the recipe's")
    args = parser.parse_args()
    chosen = [int(each) for each in args.exits.split(",")] if args.exits else None
    recipe = load_recipe(args.recipe, exits=chosen)
    torch.manual_seed(args.seed)
    exits = recipe.network.exits
    network = DiT(exits=exits, **recipe.network.options).to(args.device)
    full = ExitSchedule.parse(str(exits[-1]))
    plan = Plan(full, exits, recipe.process.timesteps, args.batch, others=1.0)
    train(AllExits(network, recipe, plan, args), "training", {})


if __name__ == "__main__":
    main(trained)
