"""What the training scripts share: data, optimisers, averaged weights, a loop that resumes.

Every batch is a function of the seed and the step, and a checkpoint holds all else that the
next step reads, so a run that was stopped and resumed ends where one that was not does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from results import facts
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn

from eecompile import ExitSchedule, Process, UsageError
from eecompile.evaluate.data import open_array
from eecompile.networks import MultiExitNetwork
from eecompile.recipe import ExportRecipe
from eecompile.store.files import written

DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def load_images(data: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 1, 28, 28] in [-1, 1] and labels int64 [N] of ``train`` or ``t10k``.

    Raises:
        UsageError: the files are not there.
    """
    if not data.is_dir():
        raise UsageError(
            found=f"no folder {data}",
            expected="Fashion-MNIST's four files there, such as train-images-idx3-ubyte.gz",
            remedy="install Debian's package dataset-fashion-mnist (apt-get install), or give "
            "the folder with --data",
        )
    pixels = open_array(data / f"{part}-images-idx3-ubyte.gz")[:, None].astype(np.float32)
    labels = open_array(data / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
    return torch.from_numpy(pixels / 127.5 - 1), torch.from_numpy(labels)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Trapezoid: linear warm-up, constant, linear fall over the last quarter."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (0.25 * steps))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as two products: on CPUs its bfloat16 gradient is far faster than the fused."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.float().softmax(-1).to(value.dtype) @ value


def epoch_rows(count: int, size: int, seed: int, step: int) -> Tensor:
    """The images of a step's batch, int64 [size]: each image once an epoch, in random order."""
    epoch, index = divmod(step, count // size)
    order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=order)[index * size : (index + 1) * size]


def optimizers_of(network: nn.Module, kind: str, rate: float) -> list[torch.optim.Optimizer]:
    """AdamW; with ``muon``, the matrices inside the blocks are stepped by Muon instead."""
    matrices, others = [], []
    for name, value in network.named_parameters():
        if value.requires_grad:
            inner = name.startswith("blocks.") and value.ndim == 2
            (matrices if inner and "adaLN" not in name else others).append(value)
    adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    if kind == "muon":
        muon = torch.optim.Muon(
            matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        return [adamw, muon]
    adamw.add_param_group({"params": matrices})
    return [adamw]


# With another value of these, a resumed run would not be the one that was begun.
_FIXED = ("batch", "seed", "lr", "ema", "label_dropout", "optimizer", "bfloat16")


class Plan:
    """How the rows of every batch are divided between the exits.

    Where the schedule uses the previous output again, nothing is learned. A share of the rows,
    ``others``, goes through all exits, at all timesteps.

    Attributes:
        counts: rows that leave at each exit, as the network's ``predict_split`` takes them.
        every: rows that go through all exits.
        shares: of the schedule's timesteps, float32 [exits].

    Raises:
        UsageError: there are fewer rows than parts.
    """

    def __init__(
        self,
        schedule: ExitSchedule,
        exits: Sequence[int],
        timesteps: int,
        batch: int,
        others: float,
    ) -> None:
        depths = torch.tensor([schedule.choice_at(t, timesteps).blocks for t in range(timesteps)])
        self.all_times = torch.arange(timesteps)
        self.times = [self.all_times[depths == depth] for depth in exits]
        sizes = torch.tensor([float(len(times)) for times in self.times])
        self.every = round(others * batch)
        self.shares = sizes / sizes.sum()
        self.counts = _parts(self.shares * (batch - self.every), batch - self.every)
        empty = [c == 0 and s > 0 for c, s in zip(self.counts, self.shares, strict=True)]
        if any(empty) and others < 1:
            raise UsageError(
                found=f"a batch of {batch}, of which {self.every} go through all exits",
                expected="at least one row for each depth of the schedule",
                remedy="raise --batch, or lower --others",
            )

    def timestep(self, draws: torch.Generator) -> Tensor:
        """A timestep a row, int64 [batch], evenly spread over those of its part."""
        parts = [*zip(self.counts, self.times, strict=True), (self.every, self.all_times)]
        rows = []
        for count, times in parts:
            uniform = (torch.arange(count) + torch.rand(count, generator=draws)) / max(count, 1)
            rows.append(times[(uniform * len(times)).long()])
        return torch.cat(rows)


class Noising:
    """What a network is given, and what it is to predict, by the process of a recipe."""

    def __init__(self, process: Process) -> None:
        self.prediction = process.prediction
        points = [process.at(time) for time in range(process.timesteps)]
        self.signal, self.spread, self.given = (
            torch.tensor([getattr(point, name) for point in points], dtype=torch.float32)
            for name in ("alpha", "sigma", "timestep")
        )

    def __call__(self, data: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Noisy input, timestep as the network takes it, and target.

        Args:
            data: float32 [B, ...].
            time: moment of the process, int64 [B].
            noise: standard normal, as ``data``.
        """
        shape = (-1, *[1] * (data.ndim - 1))
        signal, spread = self.signal[time].view(shape), self.spread[time].view(shape)
        targets = {
            "epsilon": noise,
            "sample": data,
            "v_prediction": signal * noise - spread * data,
            "flow": noise - data,
        }
        return signal * data + spread * noise, self.given[time], targets[self.prediction]


class Trainer:
    """A network in training: its averaged weights, and everything that a checkpoint must hold.

    Attributes:
        average: exponential moving averages of its parameters, by name.
        step: optimiser steps done.
        seconds: time that they took, over all sittings.
        warmup: steps until the learning rate is at its peak.
        everywhere: begins the names of losses over all timesteps.
        identity: settings with which alone the run may be resumed.
    """

    warmup, everywhere = 100, "all, exit"

    def __init__(
        self, network: nn.Module, recipe: ExportRecipe, plan: Plan, args: argparse.Namespace
    ) -> None:
        self.network, self.args, self.step, self.seconds = network, args, 0, 0.0
        self.average = {name: value.detach().clone() for name, value in network.named_parameters()}
        self.optimizers = optimizers_of(network, args.optimizer, args.lr)
        self.identity = {name: str(getattr(args, name)) for name in _FIXED}
        self.plan, self.noising = plan, Noising(recipe.process)
        self.exits, self.null = recipe.network.exits, recipe.conditions["label"].null
        self.time_weights = time_weights(args.time_weights, recipe.process.timesteps)
        self.depth_weights = torch.tensor(self.exits) / sum(self.exits)
        predict = split_of(cast("MultiExitNetwork", network))
        self.predict = torch.compile(predict, dynamic=False) if args.compile else predict

    def batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Noisy input, timestep, label, target and weight of each row, in the plan's order."""
        draws = torch.Generator().manual_seed((self.args.seed << 32) + self.step)
        rows = epoch_rows(len(images), self.args.batch, self.args.seed, self.step)
        data, label, time = images[rows], labels[rows], self.plan.timestep(draws)
        noise = torch.randn(data.shape, generator=draws)
        dropped = torch.rand(len(rows), generator=draws) < self.args.label_dropout
        if self.null is not None:
            label = torch.where(dropped, int(self.null), label)
        noisy, given, target = self.noising(data, time, noise)
        made = (noisy, given, label, target, self.time_weights[time])
        return tuple(value.to(self.args.device) for value in made)

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What this step minimises, and the figures that the log shows."""
        noisy, timestep, label, target, weight = self.batch(images, labels)
        counts, every, shares = self.plan.counts, self.plan.every, self.plan.shares
        device = torch.device(self.args.device).type
        with torch.autocast(device, torch.bfloat16, enabled=self.args.bfloat16):
            predictions = self.predict(counts, noisy, timestep, label)
        total, shown, start = torch.zeros((), device=noisy.device), {}, 0
        part, last = every / len(noisy), len(noisy) - every
        for index, (prediction, count) in enumerate(zip(predictions, counts, strict=True)):
            rows = torch.cat([target[start : start + count], target[last:]])
            errors = (prediction.float() - rows).square().flatten(1).mean(1)
            if count:
                scheduled = (errors[:count] * weight[start : start + count]).mean()
                total = total + (1 - part) * shares[index].item() * scheduled
                shown[f"exit {self.exits[index]}"] = errors[:count].detach().mean().cpu()
            if every:
                rest = (errors[count:] * weight[last:]).mean()
                total = total + part * self.depth_weights[index].item() * rest
                name = f"{self.everywhere} {self.exits[index]}"
                shown[name] = errors[count:].detach().mean().cpu()
            start += count
        return total, shown

    def train_step(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """One optimiser step; returns the losses for the log."""
        started = time.perf_counter()
        total, shown = self.losses(images, labels)
        total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        rate = learning_rate(self.step, self.args.steps, self.args.lr, self.warmup)
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
        figures = {name: float(value) for name, value in shown.items()}
        self.seconds += time.perf_counter() - started
        return figures

    def headline(self, losses: Mapping[str, float]) -> str:
        """The losses as the progress bar shows them: where they are scheduled, if they are."""
        named = {name: value for name, value in losses.items() if not name.startswith("all")}
        return "  ".join(f"{name}: {value:.4f}" for name, value in named.items())

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "identity": self.identity,
        }
        with written(path) as partial:
            torch.save(state, partial)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        before, now = state.get("identity", self.identity), self.identity
        if other := [name for name in now if before.get(name) != now[name]]:
            raise UsageError(
                found=f"a run in {path.parent} with another {' and '.join(other)}",
                expected="the settings that it was begun with",
                remedy="choose another --run, or remove that folder",
            )
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def export(self, path: Path, facts: Mapping[str, str]) -> None:
        """Write the averaged weights as float16 safetensors."""
        halves = {name: value.half().contiguous().cpu() for name, value in self.average.items()}
        with written(path) as partial:
            save_file(halves, partial, metadata=dict(facts))


def split_of(network: MultiExitNetwork) -> Callable[..., tuple[Tensor, ...]]:
    """``predict_split`` of a network, made from its forward pass where it has none.

    The latter runs every row at full depth: the same predictions, at more cost.
    """
    if hasattr(network, "predict_split"):
        return cast("Callable[..., tuple[Tensor, ...]]", network.predict_split)

    def predict(counts: Sequence[int], x: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        chosen, start, last = [], 0, sum(counts)
        for prediction, count in zip(network(x, t, label=label), counts, strict=True):
            chosen.append(torch.cat([prediction[start : start + count], prediction[last:]]))
            start += count
        return tuple(chosen)

    return predict


def time_weights(text: str, timesteps: int) -> Tensor:
    """Weight of the loss at each timestep, float32 [T], 1 on average.

    Args:
        text: numbers over equal slices of time, t = 0 (data) first, such as ``2,1,1,1``.
        timesteps: T.

    Raises:
        UsageError: they are no weights.
    """
    try:
        slices = torch.tensor([float(number) for number in text.split(",")])
    except ValueError:
        slices = torch.zeros(1)
    if not (torch.isfinite(slices).all() and (slices >= 0).all() and slices.sum() > 0):
        raise UsageError(
            found=f"time weights {text!r}",
            expected="numbers of 0 or more, such as 2,1,1,1, not all of them 0",
            remedy="give a weight for each equal slice of time, t = 0 first",
        )
    weights = slices[torch.arange(timesteps) * len(slices) // timesteps]
    return weights / weights.mean()


def _parts(shares: Tensor, total: int) -> tuple[int, ...]:
    """Whole numbers that sum to ``total``, by the largest remainder."""
    whole = shares.floor().long()
    order = (shares - whole).argsort(descending=True, stable=True)
    whole[order[: total - int(whole.sum())]] += 1
    return tuple(whole.tolist())


def train(run: Trainer, what: str, facts: Mapping[str, str]) -> bool:
    """Train to the last step, or to ``--pause-at``; resumes what ``--run`` holds.

    Writes ``state.pt``, ``log.jsonl`` and, at the end, ``weights.safetensors`` with ``facts``.

    Returns:
        Whether the run is finished.
    """
    args = run.args
    if args.device == "cpu":
        F.scaled_dot_product_attention = attend  # type: ignore[assignment]
    args.run.mkdir(parents=True, exist_ok=True)
    state, log = args.run / "state.pt", args.run / "log.jsonl"
    if state.exists():
        run.resume(state)
        print(f"resumed at step {run.step}")
    images, labels = load_images(args.data, "train")
    end = min(args.steps, args.pause_at or args.steps)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as progress:
        task = progress.add_task(what, total=args.steps, completed=run.step)
        recent: list[dict[str, float]] = []
        while run.step < end:
            recent = [*recent[-49:], run.train_step(images, labels)]
            means = _means(recent)
            progress.update(task, completed=run.step, description=run.headline(means))
            if run.step % args.save_every == 0 or run.step == end:
                run.save(state)
                row = {"step": run.step, "seconds": round(run.seconds, 1)}
                row |= {name: round(value, 5) for name, value in means.items()}
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    if run.step < args.steps:
        print(f"paused at step {run.step}")
        return False
    run.export(args.run / "weights.safetensors", {**_metadata(run), **facts})
    print(f"wrote {args.run / 'weights.safetensors'}")
    return True


def add_options(
    parser: argparse.ArgumentParser, *, run: str, steps: int, lr: float, compiled: bool = True
) -> None:
    """The options that every training script has, with its own defaults."""
    parser.add_argument("--run", type=Path, default=Path(run), help="folder of the run")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the IDX files")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--pause-at", type=int, help="stop after this step, to be resumed")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=lr, help="peak learning rate")
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights")
    parser.add_argument("--label-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=compiled)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: fmean(row[name] for row in rows if name in row) for name in names}


def _metadata(run: Trainer) -> dict[str, str]:
    public = facts()
    return {
        "steps": str(run.step),
        "seed": str(run.args.seed),
        "seconds": f"{run.seconds:.0f}",
        "machine": f"{public['cpu']}, {public['cores']} cores, trained on {run.args.device}",
        "torch": torch.__version__,
    }
