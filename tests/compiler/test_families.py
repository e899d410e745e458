"""Flow and EDM networks from recipe to samples, against diffusers around the torch network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.programs.solvers import SOLVERS
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.trajectory.noise import normal_noise
from tests.conftest import TARGETS, Beside

MODULE = """
import torch
from torch import nn

class Own(nn.Module):
    exits = (1, 2)

    def __init__(self, exits):
        super().__init__()
        self.exits = tuple(exits)
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 8)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x, t):
        hidden, made = self.stem(x) + torch.sin(t)[:, None], []
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
            made.append(self.head(hidden))
        return tuple(made)
"""
RECIPE = """
name = "own"
[network]
factory = "{module}:Own"
checkpoint = "own.pt"
exits = [1, 2]
[process]
{process}
[state]
shape = [8]
[schedules]
mixed = [2, 1]
[sampling]
solver = "{solver}"
steps = 12
schedule = "mixed"
"""
CASES: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "flow": (
        'family = "flow"\nprediction = "flow"\nshift = 3.0',
        "flow-euler",
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    ),
    "edm": (
        'family = "edm"\nprediction = "edm"\nsigma_min = 0.002\nsigma_max = 80.0',
        "euler",
        lambda: EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5),
    ),
}


@pytest.mark.parametrize("family", list(CASES))
def test_a_network_of_another_family_is_sampled_as_by_diffusers(
    family: str, tmp_path: Path, beside: Beside
) -> None:
    process, solver, make = CASES[family]
    module = beside(MODULE)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(module=module, process=process, solver=solver))
    sys.path.insert(0, str(tmp_path))
    try:
        torch.manual_seed(0)
        network = getattr(__import__(module), "Own")((1, 2)).eval()  # noqa: B009
    finally:
        sys.path.remove(str(tmp_path))
    torch.save(network.state_dict(), tmp_path / "own.pt")
    bundle_from_recipe(recipe, tmp_path / "bundle")
    engine_set_from_bundle(tmp_path / "bundle", TARGETS["chained"], tmp_path / "engines")
    scheduler = make()
    with Sampler.open(tmp_path / "engines") as sampler:
        grid = "karras" if family == "edm" else "trailing"
        named = sampler.sample(3, seed=4)
        program = sampler.program(partial(SOLVERS[solver], grid=grid), 12)  # type: ignore[call-arg]
        found = sampler.sample(3, seed=4, solver=program)
    if family == "flow":
        np.testing.assert_array_equal(named, found)
        sigmas = np.linspace(1, 1 / 12, 12)
        scheduler.set_timesteps(sigmas=sigmas)
    else:
        scheduler.set_timesteps(12)
    state = torch.from_numpy(normal_noise(4, range(3), 0, (8,))) * float(program.initial)
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(state, t) if family == "edm" else state
        depth = program.steps[index].chosen.blocks
        with torch.no_grad():
            output = network(x, torch.full((3,), float(t)))[depth - 1]
        state = scheduler.step(output, t, state).prev_sample
    assert {step.chosen.blocks for step in program.steps} == {1, 2}
    scale = float(state.abs().max())
    np.testing.assert_allclose(found, state.numpy(), atol=2e-4 * scale)
