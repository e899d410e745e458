"""Benchmarks of sampling: schedules, full depth against torch, layouts, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bundles import TARGETS, bundles_of, engine_set
from results import RECIPE, Row, medians, milliseconds

from eecompile.networks.load import load_network
from eecompile.recipe import load_recipe
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler


class TorchEngine(Engine):
    """The torch network behind the runtime's engine protocol: the loop stays the same."""

    precision, max_batch = "fp32", 64

    def __init__(self, network: Any, compile_: bool = False) -> None:
        self.exits = network.exits
        self._predict = torch.compile(network.predict_at) if compile_ else network.predict_at

    def evaluate(
        self, depth: int, x: np.ndarray, t: np.ndarray, conditions: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        tensors = {name: torch.from_numpy(array) for name, array in conditions.items()}
        with torch.inference_mode():
            made = self._predict(depth, torch.from_numpy(x), torch.from_numpy(t), **tensors)
        return [made.numpy()]


def torch_samplers(interface: Any, *, compiled: bool) -> dict[str, Sampler]:
    """Samplers of the shipped network in torch, by name."""
    network = load_network(load_recipe(RECIPE).network, RECIPE.parent)
    engines = {"torch eager": TorchEngine(network)}
    if compiled:
        engines["torch.compile"] = TorchEngine(network, compile_=True)
    return {name: Sampler(engine, interface) for name, engine in engines.items()}


def schedule_speedup(sampler: Sampler, schedule: str, batch: int, steps: int, rounds: int) -> Row:
    """The schedule's speed-up over full depth, against its share of block evaluations."""
    programs = {name: sampler.program("ddim", steps, name) for name in ("full", schedule)}
    actions = {n: partial(sampler.sample, batch, solver=p) for n, p in programs.items()}
    seconds = medians(actions, rounds)
    blocks = [step.chosen.blocks for step in programs[schedule].steps]
    promised = max(sampler.interface.exits) * len(blocks) / sum(blocks)
    speedup = seconds["full"] / seconds[schedule]
    return {
        "batch": batch,
        "schedule": schedule,
        "full_ms_per_step": 1e3 * seconds["full"] / steps,
        "schedule_ms_per_step": 1e3 * seconds[schedule] / steps,
        "promised": promised,
        "speedup": speedup,
        "of_promised": speedup / promised,
    }


def step_row(samplers: Mapping[str, Sampler], batch: int, depth: int, rounds: int) -> Row:
    """Milliseconds a step at a depth, by sampler."""
    actions = {
        name: partial(sampler.sample, batch, solver="ddim", steps=5, schedule=depth)
        for name, sampler in samplers.items()
    }
    return milliseconds(actions, rounds, per=5)


def layout_rows(folders: Mapping[str, Path], rounds: int) -> list[Row]:
    """Latency of both layouts, at every exit."""
    samplers = {name: Sampler.open(folder) for name, folder in folders.items()}
    exits = next(iter(samplers.values())).interface.exits
    return [
        {"batch": batch, "depth": depth} | step_row(samplers, batch, depth, rounds)
        for batch in (1, 16)
        for depth in exits
    ]


def sizes(folders: Mapping[str, Path]) -> Row:
    """Bytes of all exits over bytes of a full-depth-only export and its engine sets."""
    with TemporaryDirectory() as temporary:
        _, deepest = bundles_of(RECIPE, Path(temporary))
        alone = {"bundle": deepest}
        alone |= {n: engine_set(deepest, Path(temporary), target) for n, target in TARGETS.items()}
        return {name: _bytes(folders[name]) / _bytes(folder) for name, folder in alone.items()}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
