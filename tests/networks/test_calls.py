"""Networks that take and give what the compiler does not ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.hints import too_large_times
from eecompile.errors import RecipeError, TraceError, VerificationError
from eecompile.networks.calls import give_a_tuple, take_whole_timesteps
from eecompile.programs.interface import Interface, State
from eecompile.programs.process import Process
from tests.conftest import Beside

ODD = """
import torch
from torch import nn

class Odd(nn.Module):
    "Looks its timestep up, casts in its forward, and returns a dictionary."

    def __init__(self, exits):
        super().__init__()
        self.exits = tuple(exits)
        self.table = nn.Embedding(1000, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x, t):
        h = x + self.table(t)
        found = {}
        for depth, block in enumerate(self.blocks, 1):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                h = torch.tanh(block(h)).expand(h.shape[0], -1)
            found[f"exit_{depth}"] = h.float()
        return found
"""
RECIPE = """
name = "odd"
[network]
factory = "{module}:Odd"
checkpoint = "odd.pt"
exits = [1, 2]
{more}
[state]
shape = [8]
"""


def written(folder: Path, module: str, more: str = "") -> Path:
    torch.manual_seed(0)
    state = {"table.weight": torch.randn(1000, 8)}
    for index in range(2):
        state[f"blocks.{index}.weight"] = torch.randn(8, 8)
        state[f"blocks.{index}.bias"] = torch.randn(8)
    torch.save(state, folder / "odd.pt")
    path = folder / "odd.toml"
    path.write_text(RECIPE.format(module=module, more=more))
    return path


def test_whole_timesteps_dictionaries_and_autocast_are_exported(
    tmp_path: Path, beside: Beside, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, beside(ODD), 'timestep_dtype = "int64"')
    manifest = bundle_from_recipe(path, tmp_path / "bundle")
    assert max(each.relative_error for each in manifest.exits) < 1e-5  # float32 throughout
    assert "autocast to bfloat16 in the network's forward is left out" in caplog.text
    with torch.autocast("cpu", dtype=torch.bfloat16):  # and works again
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_table_of_timesteps_names_the_key(tmp_path: Path, beside: Beside) -> None:
    path = written(tmp_path, beside(ODD))
    with pytest.raises(TraceError, match=r"network\.timestep_dtype = 'int64'"):
        bundle_from_recipe(path, tmp_path / "bundle")


class Echo(nn.Module):
    def forward(self, x: Tensor, timestep: Any = None, added: Any = None) -> Any:
        return {"early2": timestep, 5: added, "loss": x}


def test_timesteps_are_rounded_wherever_they_are_given() -> None:
    t = torch.tensor([0.4, 998.6])
    network = Echo()
    take_whole_timesteps(network, "timestep")
    for found in (network(t, t), network(t, timestep=t)):
        assert found["early2"].tolist() == [0, 999]
        assert found["early2"].dtype == torch.int64
    nested = Echo()
    take_whole_timesteps(nested, "added.t")
    assert nested(t, timestep=t, added={"t": t, "a": t})[5]["t"].tolist() == [0, 999]


def test_dictionaries_by_depth_become_tuples_and_other_keys_are_named() -> None:
    network = Echo()
    give_a_tuple(network, (2, 5))
    assert network(1, 2, 3) == (2, 3)
    other = Echo()
    give_a_tuple(other, (2, 4))
    with pytest.raises(RecipeError, match=r"keys \['early2', 5, 'loss'\].*exits \[2, 4\]"):
        other(1, 2, 3)


def embedded(scale: float) -> Any:
    """A network of a sinusoidal embedding of t times ``scale``."""
    rates = np.exp(-np.log(1e4) * np.arange(8) / 8).astype(np.float32)
    mix = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)

    def evaluate(inputs: Any) -> Any:
        angles = (inputs["t"] * np.float32(scale))[:, None] * rates
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return {1: [np.tanh(inputs["x"] + waves @ mix)]}

    return evaluate


def interface(**process: Any) -> Interface:
    return Interface(
        name="x",
        exits=(1,),
        state=State(shape=(4,)),
        process=Process(family="flow", prediction="flow", **process),
    )


@pytest.mark.parametrize(
    ("scale", "process", "wrong"),
    [
        (1.0, {}, False),
        (1000.0, {}, True),  # Flux without its time_scale
        (1000.0, {"time_scale": 1e-3}, False),
        (0.0, {}, False),
    ],
)
def test_timesteps_that_are_too_large_are_told(scale: float, process: Any, wrong: bool) -> None:
    found = too_large_times(embedded(scale), interface(**process))
    assert bool(found) == wrong
    assert not wrong or "set process.time_scale = 0.0" in found


WAVES = """
import math
import torch
from torch import nn

class Waves(nn.Module):
    def __init__(self, exits):
        super().__init__()
        self.exits = tuple(exits)
        self.mix = nn.Linear(16, 4)

    def forward(self, x, t):
        rates = torch.exp(-math.log(1e4) * torch.arange(8) / 8)
        angles = (t * 1000)[:, None] * rates
        return (x + self.mix(torch.cat([angles.sin(), angles.cos()], 1)),)
"""


@pytest.mark.parametrize("tolerance", [1e-9, 1.0])
def test_export_suggests_a_time_scale(
    tmp_path: Path, beside: Beside, tolerance: float, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    torch.save(nn.ModuleDict({"mix": nn.Linear(16, 4)}).state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.toml").write_text(
        f"""
name = "waves"
tolerance = {{ absolute = 0.0, relative = {tolerance} }}
network = {{ factory = "{beside(WAVES)}:Waves", checkpoint = "a.pt", exits = [1] }}
process = {{ family = "flow", prediction = "flow" }}
state = {{ shape = [4] }}
"""
    )
    if tolerance < 1e-3:
        with pytest.raises(VerificationError, match=r"set process\.time_scale = 0\.001"):
            bundle_from_recipe(tmp_path / "a.toml", tmp_path / "bundle")
        return
    bundle_from_recipe(tmp_path / "a.toml", tmp_path / "bundle")
    assert "set process.time_scale = 0.001" in caplog.text
