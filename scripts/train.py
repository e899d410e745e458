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
import gzip
import json
import time
from pathlib import Path

import machine
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn

from eecompile.networks.dit import DiT
from eecompile.recipe import load_recipe
from eecompile.runtime.process import Process

DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def load_images(data: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 1, 28, 28] in [-1, 1] and labels int64 [N] of ``train`` or ``t10k``."""
    raw = gzip.decompress((data / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((data / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    images = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1)
    return images, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Trapezoid: linear warm-up, constant, linear fall over the last quarter."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (0.25 * steps))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as two products: on CPUs its bfloat16 gradient is far faster than the fused."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.float().softmax(-1).to(value.dtype) @ value


class Trainer:
    """The network, its averaged weights, and everything that a checkpoint must hold."""

    def __init__(self, network: DiT, process: Process, args: argparse.Namespace) -> None:
        self.network, self.args, self.step, self.seconds = network, args, 0, 0.0
        self.average = {name: value.detach().clone() for name, value in network.named_parameters()}
        matrices, others = [], []
        for name, value in network.named_parameters():
            inner = name.startswith("blocks.") and value.ndim == 2
            (matrices if inner and "adaLN" not in name else others).append(value)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
        ]
        if args.optimizer == "muon":
            muon = torch.optim.Muon(
                matrices, lr=args.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            )
            self.optimizers.append(muon)
        else:
            self.optimizers[0].add_param_group({"params": matrices})
        self.alpha_bar = torch.from_numpy(process.alpha_bar())
        self.weights = torch.tensor([float(depth) for depth in network.exits])
        self.weights /= self.weights.sum()
        self.forward = torch.compile(network) if args.compile else network

    def batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy input, timestep, label and velocity, from the seed and the step alone."""
        size, count, device = self.args.batch, len(images), self.args.device
        per_epoch = count // size
        epoch, index = divmod(self.step, per_epoch)
        order = torch.Generator().manual_seed(self.args.seed * 1_000_003 + epoch)
        rows = torch.randperm(count, generator=order)[index * size : (index + 1) * size]
        draws = torch.Generator().manual_seed((self.args.seed << 32) + self.step)
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

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One optimiser step; returns the loss of each exit, float32 [exits]."""
        started = time.perf_counter()
        noisy, timestep, label, velocity = self.batch(images, labels)
        device = torch.device(self.args.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self.args.bfloat16):
            predictions = self.forward(noisy, timestep, label)
        losses = torch.stack([F.mse_loss(p.float(), velocity) for p in predictions])
        rate = learning_rate(self.step, self.args.steps, self.args.lr)
        (losses * self.weights.to(losses.device)).sum().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(self.args.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages, values = zip(
                *((self.average[n], v) for n, v in self.network.named_parameters()), strict=True
            )
            torch._foreach_lerp_(list(averages), list(values), 1 - decay)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return losses.detach().cpu()

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def export(self, path: Path, facts: dict[str, str]) -> None:
        """Write the averaged weights as float16 safetensors."""
        halves = {name: value.half().contiguous().cpu() for name, value in self.average.items()}
        save_file(halves, path, metadata=facts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="the export recipe whose network is trained")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/fashion-dit"), help="folder of the run"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the IDX files")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--pause-at", type=int, help="stop after this step, to be resumed")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--label-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    args = parse()
    recipe = load_recipe(args.recipe)
    torch.manual_seed(args.seed)
    if args.device == "cpu":
        F.scaled_dot_product_attention = attend  # type: ignore[assignment]
    network = DiT(exits=recipe.network.exits, **recipe.network.options).to(args.device)
    trainer = Trainer(network, recipe.process, args)
    args.run.mkdir(parents=True, exist_ok=True)
    state, log = args.run / "state.pt", args.run / "log.jsonl"
    if state.exists():
        trainer.resume(state)
        print(f"resumed at step {trainer.step}")
    images, labels = load_images(args.data, "train")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=args.steps, completed=trainer.step)
        recent: list[Tensor] = []
        while trainer.step < min(args.steps, args.pause_at or args.steps):
            recent.append(trainer.train_step(images, labels))
            mean = torch.stack(recent[-50:]).mean(0).tolist()
            shown = "  ".join(
                f"exit {d}: {v:.4f}" for d, v in zip(network.exits, mean, strict=True)
            )
            progress.update(task, completed=trainer.step, description=shown)
            if trainer.step % args.save_every == 0 or trainer.step in (args.steps, args.pause_at):
                trainer.save(state)
                with log.open("a") as file:
                    row = {"step": trainer.step, "seconds": round(trainer.seconds, 1)}
                    row |= {
                        f"exit {d}": round(v, 5) for d, v in zip(network.exits, mean, strict=True)
                    }
                    file.write(json.dumps(row) + "\n")
    if trainer.step < args.steps:
        print(f"paused at step {trainer.step}")
        return
    facts = machine.facts()
    metadata = {
        "steps": str(trainer.step),
        "seed": str(args.seed),
        "seconds": f"{trainer.seconds:.0f}",
        "machine": f"{facts['cpu']}, {facts['cores']} cores, trained on {args.device}",
        "torch": torch.__version__,
    }
    trainer.export(args.run / "weights.safetensors", metadata)
    print(f"wrote {args.run / 'weights.safetensors'}")


if __name__ == "__main__":
    main()
