"""The fine-tuning script, on data made here: what it trains, leaves alone and writes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from eecompile.errors import UsageError
from eecompile.networks.dit import DiT
from eecompile.networks.load import load_network
from eecompile.programs.choice import Exit, Forecast
from eecompile.programs.schedule import ExitSchedule
from eecompile.recipe import ExportRecipe, load_recipe
from tests.conftest import RECIPE, ROOT
from tests.scripts.test_train import data, train

__all__ = ["data"]
EXITS = (1, 2, 4)


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import finetune

    yield finetune
    for name in ("finetune", "training"):
        sys.modules.pop(name, None)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of a tiny network with exits 1, 2 and 4."""
    text = RECIPE.read_text().partition("[schedules]")[0]
    for old, new in (
        ("width = 128", "width = 16"),
        ("depth = 12", "depth = 4"),
        ("exits = [3, 6, 9, 12]", f"exits = {list(EXITS)}"),
        ("eecompile_fashion_dit:fashion-dit.safetensors", "full.safetensors"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "tiny.toml"
    path.write_text(text + "[schedules]\nfast = [4, 2, 1, 1]\n")
    return path


@pytest.fixture
def full(recipe: Path) -> Path:
    """A network of full depth alone, as one that never had exits is stored."""
    torch.manual_seed(0)
    network = DiT(exits=(4,), **load_recipe(recipe).network.options)
    for parameter in network.parameters():  # adaLN-Zero starts at zero: nothing would move
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(network.state_dict(), recipe.parent / "full.safetensors")
    return recipe.parent / "full.safetensors"


def arguments(**changes: Any) -> argparse.Namespace:
    settings = {
        "checkpoint": None, "heads": "per-exit", "freeze": ["t_embedder"], "device": "cpu",
        "batch": 24, "others": 0.0, "optimizer": "adamw", "lr": 1e-2, "compile": False,
        "bfloat16": False, "seed": 0, "label_dropout": 0.1, "ema": 0.999, "steps": 100,
        "time_weights": "1",
    }  # fmt: skip
    return argparse.Namespace(**{**settings, **changes})


def tuner(finetune: Any, path: Path, schedule: str, run: Path, **changes: Any) -> Any:
    recipe, args = load_recipe(path), arguments(run=run, **changes)
    network = finetune.load(recipe, path.parent, args)
    chosen = finetune.schedule_of(recipe, schedule)
    plan = finetune.Plan(chosen, recipe.network.exits, 1000, args.batch, args.others)
    return finetune.Trainer(network, recipe, plan, args)


def pictures() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.rand(48, 1, 28, 28, generator=draws) * 2 - 1, torch.arange(48) % 10


def state_of(run: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.network.named_parameters()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_blocks_up_to_the_exit_are_trained(
    finetune: Any, recipe: Path, full: Path, tmp_path: Path
) -> None:
    run = tuner(finetune, recipe, "2", tmp_path / "run")
    before = state_of(run)
    run.train_step(*pictures())
    changed = {
        name.partition(".")[0] + "." + name.split(".")[1] for name in moved(before, state_of(run))
    }
    assert {"blocks.0", "blocks.1", "final_layers.2"} <= changed
    assert not changed & {"blocks.2", "blocks.3", "final_layers.1", "final_layers.4"}


def test_every_timestep_trains_the_exit_that_the_schedule_names(
    finetune: Any, recipe: Path, full: Path, tmp_path: Path
) -> None:
    run = tuner(finetune, recipe, "fast", tmp_path / "run", batch=24)
    noisy, timestep, *_ = run.batch(*pictures())
    assert run.plan.counts == (12, 6, 6)
    schedule = load_recipe(recipe).exit_schedules()["fast"]
    depths = [schedule.choice_at(float(t), 1000).blocks for t in timestep]
    assert depths == [1] * 12 + [2] * 6 + [4] * 6
    assert len(noisy) == 24
    # The deepest block hears of early timesteps only.
    seen: list[Tensor] = []
    handle = run.network.blocks[3].register_forward_hook(lambda *a: seen.append(a[2]))
    run.train_step(*pictures())
    handle.remove()
    assert [len(tokens) for tokens in seen] == [6]


def test_no_exit_is_trained_where_the_previous_output_is_used_again(
    finetune: Any, recipe: Path, full: Path, tmp_path: Path
) -> None:
    path = tmp_path / "found.json"
    path.write_bytes(ExitSchedule((Exit(4), Forecast(), Exit(2)), (0.25, 0.5)).to_json())
    run = tuner(finetune, recipe, str(path), tmp_path / "run")
    _, timestep, *_ = run.batch(*pictures())
    assert run.plan.counts == (0, 16, 8)
    assert not ((timestep >= 250) & (timestep < 500)).any()


def test_splitting_a_batch_predicts_what_the_whole_network_does(
    finetune: Any, recipe: Path, full: Path, tmp_path: Path
) -> None:
    run = tuner(finetune, recipe, "fast", tmp_path / "run", others=0.25)
    noisy, timestep, label, *_ = run.batch(*pictures())
    counts = run.plan.counts
    assert sum(counts) == 18
    found = run.network.predict_split(counts, noisy, timestep, label)

    class Plain(torch.nn.Module):
        """The same network, of which only the forward pass is known."""

        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Any:
            return run.network(x, t, label)

    expected = sys.modules["training"].split_of(Plain())(counts, noisy, timestep, label)
    for one, other, count in zip(found, expected, counts, strict=True):
        assert len(one) == count + 6
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_share_of_each_batch_keeps_all_exits_usable(
    finetune: Any, recipe: Path, full: Path, tmp_path: Path
) -> None:
    run = tuner(finetune, recipe, "1", tmp_path / "run", others=0.5)
    before = state_of(run)
    figures = run.train_step(*pictures())
    assert set(figures) == {"exit 1", "all, exit 1", "all, exit 2", "all, exit 4"}
    assert any(name.startswith("blocks.3") for name in moved(before, state_of(run)))
    everything = tuner(finetune, recipe, "1", tmp_path / "run", others=1.0)
    assert set(everything.train_step(*pictures())) == {f"all, exit {depth}" for depth in EXITS}


def test_the_timestep_embedder_and_its_average_stay(
    finetune: Any, recipe: Path, full: Path, tmp_path: Path
) -> None:
    run = tuner(finetune, recipe, "fast", tmp_path / "run", others=0.25)
    before = state_of(run)
    for _ in range(3):
        run.train_step(*pictures())
    changed = moved(before, state_of(run))
    frozen = {name for name in before if name.startswith("t_embedder")}
    assert frozen
    assert not frozen & changed
    assert set(before) - frozen == changed
    assert {name for name in before if torch.equal(before[name], run.average[name])} == frozen
    with pytest.raises(UsageError, match="--freeze nothing_like_it"):
        tuner(finetune, recipe, "fast", tmp_path / "run", freeze=["nothing_like_it"])


def test_heads_begin_as_copies_of_full_depths(
    finetune: Any, recipe: Path, full: Path, tmp_path: Path
) -> None:
    stored = load_file(full)
    network = finetune.load(load_recipe(recipe), recipe.parent, arguments(run=tmp_path / "run"))
    for depth in EXITS:
        for name, value in network.final_layers[str(depth)].state_dict().items():
            torch.testing.assert_close(value, stored[f"final_layer.{name}"], atol=0, rtol=0)
    shared = finetune.load(
        load_recipe(recipe), recipe.parent, arguments(run=tmp_path / "run", heads="keep")
    )
    assert not shared.final_layers
    given = pictures()[0][:3], torch.tensor([0.0, 400.0, 999.0]), torch.tensor([0, 5, 10])
    for one, other in zip(network(*given), shared(*given), strict=True):
        torch.testing.assert_close(one, other)
    some = {"final_layers.2.a": torch.ones(1), "final_layers.4.a": torch.zeros(1)}
    heads = finetune.with_heads(some, (1, 2, 3, 4))
    assert [float(heads[f"final_layers.{depth}.a"]) for depth in (1, 2, 3, 4)] == [1, 1, 0, 0]


def test_time_weights_scale_the_loss_of_their_slices(
    finetune: Any, recipe: Path, full: Path, tmp_path: Path
) -> None:
    time_weights = sys.modules["training"].time_weights
    weights = time_weights("3,1", 1000)
    torch.testing.assert_close(weights[[0, 499, 500, 999]], torch.tensor([1.5, 1.5, 0.5, 0.5]))
    early = tuner(finetune, recipe, "4,1", tmp_path / "run", time_weights="1,0")
    before = state_of(early)
    early.train_step(*pictures())  # exit 1 runs at late timesteps only
    changed = moved(before, state_of(early))
    assert any(name.startswith("blocks.3") for name in changed)
    assert not any(name.startswith("final_layers.1") for name in changed)
    for wrong in ("", "1,x", "-1,2", "0,0", "nan"):
        with pytest.raises(UsageError, match="time weights"):
            time_weights(wrong, 1000)


def test_the_loss_is_the_mean_over_the_schedules_time(
    finetune: Any, recipe: Path, full: Path, tmp_path: Path
) -> None:
    run = tuner(finetune, recipe, "fast", tmp_path / "run", others=0.25, batch=40)
    total, shown = run.losses(*pictures())
    depths = torch.tensor([1.0, 2.0, 4.0]) / 7
    own = sum(share * shown[f"exit {d}"] for share, d in zip((0.5, 0.25, 0.25), EXITS, strict=True))
    rest = sum(w * shown[f"all, exit {d}"] for w, d in zip(depths, EXITS, strict=True))
    assert total.item() == pytest.approx(float(0.75 * own + 0.25 * rest), rel=1e-5)


@pytest.mark.slow
def test_losses_fall(finetune: Any, recipe: Path, full: Path, tmp_path: Path) -> None:
    run = tuner(finetune, recipe, "fast", tmp_path / "run", others=0.25)
    first = run.train_step(*pictures())
    for _ in range(60):
        last = run.train_step(*pictures())
    assert all(last[name] < first[name] for name in first)


def test_recipes_that_it_cannot_train_are_refused(finetune: Any, recipe: Path, full: Path) -> None:
    made: ExportRecipe = load_recipe(recipe)
    finetune.check(made)
    learned = msgspec.structs.replace(made.process, variance="learned_range")
    with pytest.raises(UsageError, match="learned variance"):
        finetune.check(msgspec.structs.replace(made, process=learned))
    with pytest.raises(UsageError, match=r"conditions \[\].*28x28"):
        finetune.check(msgspec.structs.replace(made, conditions={}))
    with pytest.raises(UsageError, match="at least one row"):
        finetune.Plan(ExitSchedule((4, 2, 1), (0.01, 0.5)), EXITS, 1000, 8, 0.5)


def script(recipe: Path, run: Path, data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "finetune.py"), str(recipe)]
    command += ["--schedule", "fast", "--run", str(run), "--data", str(data), "--steps", "6"]
    command += ["--batch", "16", "--no-compile", "--device", "cpu", "--seed", "3", *more]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # the network is tiny
    return subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    recipe: Path, full: Path, tmp_path: Path, data: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = script(recipe, whole, data)
    assert first.returncode == 0, first.stderr
    assert "each step runs 62% of what one at full depth would" in first.stdout
    assert "paused" in script(recipe, parts, data, "--pause-at", "4").stdout
    other = script(recipe, parts, data, "--others", "0.5", "--lr", "0.1")
    assert other.returncode == 1
    assert "error: found a run in" in other.stderr
    assert "another lr and others" in other.stderr
    assert "Traceback" not in other.stderr
    assert "resumed at step 4" in script(recipe, parts, data).stdout
    expected, found = (load_file(run / "weights.safetensors") for run in (whole, parts))
    assert {value.dtype for value in expected.values()} == {torch.float16}
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    assert {"exit 1", "exit 4", "all, exit 2"} < set(rows[-1])
    with safe_open(whole / "weights.safetensors", "pt") as file:
        facts = file.metadata()
    schedule = msgspec.json.decode(facts["schedule"], type=ExitSchedule)
    assert schedule == ExitSchedule.from_slices([4, 2, 1, 1])
    assert facts["steps"] == "6"
    assert len(facts["checkpoint_digest"]) == 64


@pytest.mark.slow
def test_what_it_writes_exports(recipe: Path, full: Path, tmp_path: Path, data: Path) -> None:
    from eecompile.compiler.export import bundle_from_recipe

    done = script(recipe, tmp_path / "run", data)
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "run" / "weights.safetensors"
    made = load_recipe(recipe).network
    network = load_network(msgspec.structs.replace(made, checkpoint=str(weights)), tmp_path)
    assert network.exits == EXITS
    manifest = bundle_from_recipe(recipe, tmp_path / "bundle", checkpoint=weights)
    assert manifest.interface.exits == EXITS


@pytest.mark.slow
def test_the_how_to_begins_with_a_network_of_full_depth(
    recipe: Path, tmp_path: Path, data: Path
) -> None:
    """``scripts/train --exits`` makes what ``scripts/finetune`` starts from."""
    train(tmp_path / "full", recipe, data, "--exits", "4")
    made = tmp_path / "full" / "weights.safetensors"
    assert not any(name.startswith("final_layers.") for name in load_file(made))
    made.rename(recipe.parent / "full.safetensors")
    done = script(recipe, tmp_path / "run", data)
    assert done.returncode == 0, done.stderr
    assert any(
        name.startswith("final_layers.1.")
        for name in load_file(tmp_path / "run" / "weights.safetensors")
    )
