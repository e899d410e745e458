"""Fine-tune a trained network to an exit schedule, starting from full depth.

    python scripts/finetune.py export/fashion-dit.toml --checkpoint full.safetensors \
        --schedule fast --run runs/finetune

The recipe of ASE (arXiv 2408.05927): the network learns, for each timestep, to predict from
the exit that the schedule names there; the timestep embedder is frozen; what is kept is an
exponential moving average. Only the blocks up to that exit run, so a step costs less than at
full depth. A share of every batch (--others; 0 in the paper) goes through all exits instead,
so that other schedules stay usable. A network that never had exits gets a head for each,
which begins as a copy of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from training import Run, add_options, attend, epoch_rows, step_draws, train

from eecompile.errors import EecompileError, UsageError
from eecompile.networks.base import MultiExitNetwork
from eecompile.networks.checkpoint import checkpoint_digest, state_from_file
from eecompile.networks.load import load_network
from eecompile.programs.process import Process
from eecompile.programs.schedule import ExitSchedule
from eecompile.recipe import ExportRecipe, load_recipe

HEAD, HEADS = "final_layer.", "final_layers."


class Plan:
    """How the rows of every batch are divided between the exits.

    Args:
        schedule: of depths; where it uses the previous output again, nothing is learned.
        exits: of the network.
        timesteps: T.
        batch: rows.
        others: share of the rows that go through all exits, at all timesteps.

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


class FineTuner(Run):
    """Each timestep at the exit that a schedule names for it."""

    warmup = 100

    def __init__(
        self, network: nn.Module, recipe: ExportRecipe, plan: Plan, args: argparse.Namespace
    ) -> None:
        super().__init__(network, args)
        self.plan, self.prediction = plan, recipe.process.prediction
        self.exits, self.null = recipe.network.exits, recipe.conditions["label"].null
        points = [recipe.process.at(time) for time in range(recipe.process.timesteps)]
        self.signal, self.spread, self.given = (
            torch.tensor([getattr(point, name) for point in points], dtype=torch.float32)
            for name in ("alpha", "sigma", "timestep")
        )
        self.time_weights = time_weights(args.time_weights, len(points))
        self.depth_weights = torch.tensor(self.exits) / sum(self.exits)
        predict = split_of(cast("MultiExitNetwork", network))
        self.predict = torch.compile(predict, dynamic=False) if args.compile else predict

    def batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Noisy input, timestep, label, target and weight of each row, in the plan's order."""
        draws = step_draws(self.args.seed, self.step)
        rows = epoch_rows(len(images), self.args.batch, self.args.seed, self.step)
        data, label, time = images[rows], labels[rows], self.plan.timestep(draws)
        noise = torch.randn(data.shape, generator=draws)
        dropped = torch.rand(len(rows), generator=draws) < self.args.label_dropout
        if self.null is not None:
            label = torch.where(dropped, int(self.null), label)
        signal, spread = (table[time][:, None, None, None] for table in (self.signal, self.spread))
        targets = {
            "epsilon": noise,
            "sample": data,
            "v_prediction": signal * noise - spread * data,
            "flow": noise - data,
        }
        target, weight = targets[self.prediction], self.time_weights[time]
        made = (signal * data + spread * noise, self.given[time], label, target, weight)
        return tuple(value.to(self.args.device) for value in made)

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
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
                name = f"all, exit {self.exits[index]}"
                shown[name] = errors[count:].detach().mean().cpu()
            start += count
        return total, shown

    def headline(self, losses: Mapping[str, float]) -> str:
        named = {name: value for name, value in losses.items() if not name.startswith("all")}
        return super().headline(named)


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


def with_heads(state: Mapping[str, Tensor], exits: Sequence[int]) -> dict[str, Tensor]:
    """A checkpoint with a head for every exit.

    One that is missing begins as a copy of the next deeper one; a single head is full depth's.
    """
    known = {int(name.split(".")[1]) for name in state if name.startswith(HEADS)}
    made = {name: value for name, value in state.items() if not name.startswith(HEAD)}
    for depth in exits:
        deeper = min((other for other in known if other >= depth), default=None)
        source = HEAD if not known else f"{HEADS}{deeper}."
        for name, value in state.items():
            if name.startswith(source):
                made[f"{HEADS}{depth}.{name.removeprefix(source)}"] = value.clone()
    return made


def source(recipe: ExportRecipe, folder: Path, args: argparse.Namespace) -> Path:
    """The checkpoint to begin with."""
    return args.checkpoint or folder / str(recipe.network.checkpoint)


def load(recipe: ExportRecipe, folder: Path, args: argparse.Namespace) -> nn.Module:
    """The network to begin with, what is frozen without gradients; ``--run`` keeps its weights."""
    chosen, path = recipe.network, args.run / "start.safetensors"
    if not (args.run / "state.pt").exists():
        state = state_from_file(source(recipe, folder, args), chosen.checkpoint_key)
        if args.heads == "per-exit" and any(name.startswith((HEAD, HEADS)) for name in state):
            state = with_heads(state, chosen.exits)
        args.run.mkdir(parents=True, exist_ok=True)
        save_file({name: value.clone().contiguous() for name, value in state.items()}, path)
    begun = msgspec.structs.replace(chosen, checkpoint=str(path.absolute()), checkpoint_key=None)
    network = cast("nn.Module", load_network(begun, folder))
    frozen = []
    for name, value in network.named_parameters():
        value.requires_grad_(not name.startswith(tuple(args.freeze)))
        frozen += [name] if not value.requires_grad else []
    if args.freeze and not frozen:
        raise UsageError(
            found=f"--freeze {' '.join(args.freeze)}, which no parameter's name begins with",
            expected="the timestep embedder's name",
            remedy="name it, or pass --freeze alone to freeze nothing",
        )
    return network.to(args.device)


def check(recipe: ExportRecipe) -> None:
    """Pass when the recipe is one that this script can train.

    Raises:
        UsageError: it is not.
    """
    process: Process = recipe.process
    problems = {
        f"conditions {list(recipe.conditions)}": list(recipe.conditions) != ["label"],
        f"a state of {list(recipe.state.shape)}": recipe.state.shape != (1, 28, 28),
        f"a process that predicts {process.prediction}": process.prediction == "edm",
        "a process with a learned variance": process.variance == "learned_range",
        "a recipe of ready-made ONNX files": not recipe.network.factory,
    }
    if wrong := [name for name, holds in problems.items() if holds]:
        raise UsageError(
            found=" and ".join(wrong),
            expected="a torch network of labelled pictures of 1x28x28, with a fixed variance",
            remedy="take Plan and FineTuner from this script into one with your data and loss",
        )


def schedule_of(recipe: ExportRecipe, text: str) -> ExitSchedule:
    """The schedule that a name of the recipe, depths or a file stands for."""
    if known := recipe.exit_schedules().get(text):
        return known
    read = ExitSchedule.read(text) if text.endswith(".json") else ExitSchedule.parse(text)
    return read.check(recipe.network.exits)


def _parts(shares: Tensor, total: int) -> tuple[int, ...]:
    """Whole numbers that sum to ``total``, by the largest remainder."""
    whole = shares.floor().long()
    order = (shares - whole).argsort(descending=True, stable=True)
    whole[order[: total - int(whole.sum())]] += 1
    return tuple(whole.tolist())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="the export recipe, with the exits to train")
    parser.add_argument("--checkpoint", type=Path, help="to begin with; default the recipe's")
    parser.add_argument(
        "--schedule", required=True, help="a name, depths such as 12,9,6,3, or a file (.json)"
    )
    parser.add_argument(
        "--others", type=float, default=0.25, help="share of each batch through all exits"
    )
    parser.add_argument(
        "--time-weights", default="1", help="of the loss, over equal slices of time, t = 0 first"
    )
    parser.add_argument(
        "--heads", choices=("per-exit", "keep"), default="per-exit", help="of a DiT"
    )
    parser.add_argument(
        "--freeze", nargs="*", default=["t_embedder", "time_embed"], help="beginnings of names"
    )
    # On a CPU, compiling takes minutes and saves nothing: rows leave between the blocks.
    gpu = torch.cuda.is_available()
    add_options(parser, run="runs/finetune", steps=2000, lr=1e-3, compiled=gpu)
    args = parser.parse_args()
    if not 0 <= args.others <= 1:
        parser.error(f"--others must lie between 0 and 1, not {args.others:g}")
    return args


def main() -> None:
    args = parse()
    recipe = load_recipe(args.recipe)
    check(recipe)
    schedule = schedule_of(recipe, args.schedule)
    torch.manual_seed(args.seed)
    if args.device == "cpu":
        F.scaled_dot_product_attention = attend  # type: ignore[assignment]
    network = load(recipe, args.recipe.parent, args)
    exits, timesteps = recipe.network.exits, recipe.process.timesteps
    plan = Plan(schedule, exits, timesteps, args.batch, args.others)
    facts: dict[str, Any] = {
        "schedule_name": Path(args.schedule).stem,
        "schedule": msgspec.json.encode(schedule).decode(),
        "exits": ",".join(map(str, exits)),
        "others": f"{args.others:g}",
        "time_weights": args.time_weights,
        "heads": args.heads,
        "frozen": " ".join(args.freeze),
        "checkpoint_digest": checkpoint_digest(source(recipe, args.recipe.parent, args)),
    }
    run = FineTuner(network, recipe, plan, args)
    run.identity |= facts
    print(f"each step runs {share(plan, exits):.0%} of what one at full depth would")
    train(run, "fine-tuning", facts)


def share(plan: Plan, exits: Sequence[int]) -> float:
    """Blocks that the rows of a batch run, as a share of all."""
    blocks = sum(c * d for c, d in zip(plan.counts, exits, strict=True)) + plan.every * exits[-1]
    return blocks / (exits[-1] * (sum(plan.counts) + plan.every))


if __name__ == "__main__":
    try:
        main()
    except EecompileError as error:
        sys.exit(f"error: {error}")
