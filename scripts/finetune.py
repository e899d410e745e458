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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from results import main
from safetensors.torch import save_file
from torch import Tensor, nn
from training import Plan, Trainer, add_options, train

from eecompile import ExitSchedule, Process, UsageError
from eecompile.networks import load_network
from eecompile.networks.checkpoint import state_from_file
from eecompile.recipe import ExportRecipe, load_recipe
from eecompile.store.bundle import sha256

HEAD, HEADS = "final_layer.", "final_layers."


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
            remedy="take Plan and Trainer from training.py into one with your data and loss",
        )


def schedule_of(recipe: ExportRecipe, text: str) -> ExitSchedule:
    """The schedule that a name of the recipe, depths or a file stands for."""
    known = recipe.exit_schedules().get(text)
    return known or ExitSchedule.parse(text).check(recipe.network.exits)


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


def finetuned() -> None:
    args = parse()
    recipe = load_recipe(args.recipe)
    check(recipe)
    schedule = schedule_of(recipe, args.schedule)
    torch.manual_seed(args.seed)
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
        "checkpoint_digest": sha256(source(recipe, args.recipe.parent, args)),
    }
    run = Trainer(network, recipe, plan, args)
    run.identity |= facts
    print(f"each step runs {share(plan, exits):.0%} of what one at full depth would")
    train(run, "fine-tuning", facts)


def share(plan: Plan, exits: Sequence[int]) -> float:
    """Blocks that the rows of a batch run, as a share of all."""
    blocks = sum(c * d for c, d in zip(plan.counts, exits, strict=True)) + plan.every * exits[-1]
    return blocks / (exits[-1] * (sum(plan.counts) + plan.every))


if __name__ == "__main__":
    main(finetuned)
