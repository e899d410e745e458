"""Train the shipped network: a multi-exit DiT on Fashion-MNIST.

    python scripts/train.py export/fashion-dit.toml --run runs/fashion-dit

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
import torch.nn.functional as F
from torch import Tensor
from training import Run, add_options, attend, epoch_rows, step_draws, train

from eecompile.networks.dit import DiT
from eecompile.programs.process import Process
from eecompile.recipe import load_recipe


class Trainer(Run):
    """All exits at once, for all timesteps."""

    network: DiT

    def __init__(self, network: DiT, process: Process, args: argparse.Namespace) -> None:
        super().__init__(network, args)
        self.alpha_bar = torch.from_numpy(process.alpha_bar())
        self.weights = torch.tensor([float(depth) for depth in network.exits])
        self.weights /= self.weights.sum()
        self.forward = torch.compile(network) if args.compile else network

    def batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy input, timestep, label and velocity, from the seed and the step alone."""
        size, device = self.args.batch, self.args.device
        rows = epoch_rows(len(images), size, self.args.seed, self.step)
        draws = step_draws(self.args.seed, self.step)
        data = images[rows]
        # Stratified timesteps: the same distribution, less variance within a batch.
        uniform = (torch.arange(size) + torch.rand(size, generator=draws)) / size
        timestep = (uniform * len(self.alpha_bar)).long()
        noise = torch.randn(data.shape, generator=draws)
        dropped = torch.rand(size, generator=draws) < self.args.label_dropout
        label = torch.where(dropped, self.network.classes, labels[rows])
        signal = self.alpha_bar[timestep].sqrt().float()[:, None, None, None]
        spread = (1 - self.alpha_bar[timestep]).sqrt().float()[:, None, None, None]
        noisy, velocity = signal * data + spread * noise, signal * noise - spread * data
        return tuple(v.to(device) for v in (noisy, timestep.float(), label, velocity))  # type: ignore[return-value]

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        noisy, timestep, label, velocity = self.batch(images, labels)
        device = torch.device(self.args.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self.args.bfloat16):
            predictions = self.forward(noisy, timestep, label)
        losses = torch.stack([F.mse_loss(p.float(), velocity) for p in predictions])
        shown = losses.detach().cpu().unbind()
        return (losses * self.weights.to(losses.device)).sum(), {
            f"exit {depth}": loss for depth, loss in zip(self.network.exits, shown, strict=True)
        }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="the export recipe whose network is trained")
    add_options(parser, run="runs/fashion-dit", steps=7000, lr=2e-3)
    return parser.parse_args()


def main() -> None:
    args = parse()
    recipe = load_recipe(args.recipe)
    torch.manual_seed(args.seed)
    if args.device == "cpu":
        F.scaled_dot_product_attention = attend  # type: ignore[assignment]
    network = DiT(exits=recipe.network.exits, **recipe.network.options).to(args.device)
    train(Trainer(network, recipe.process, args), "training", {})


if __name__ == "__main__":
    main()
