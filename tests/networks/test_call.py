"""What networks are called with: inputs under their names, constants, and what is left out."""

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
from eecompile.networks.call import Call, constants_from_recipe, give_a_tuple, left_out
from eecompile.networks.truncated import Truncated
from eecompile.programs.interface import Interface, State
from eecompile.programs.process import Process
from eecompile.recipe import load_recipe
from tests.conftest import RECIPE, Beside


def find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if module != "torch":
        raise RecipeError(found=f"network.factory = {name!r}", expected="x", remedy="y")
    return getattr(torch, attribute)


STATED: dict[str, Any] = {
    "frames": 16,
    "scale": [0.32, 32, 32],
    "kind": "video",
    "added": {"sizes": [1, 2], "nothing": {"null": True}},
    "ids": {"tensor": [[0, 1], [2, 3]], "dtype": "int64"},
    "grid": {
        "call": "torch:cartesian_prod",
        "arguments": [
            {"call": "torch:arange", "arguments": [2]},
            {"tensor": [5], "dtype": "int64"},
        ],
    },
    "twos": {
        "call": "torch:full",
        "arguments": [[1, 2], 2.0],
        "options": {"dtype": {"null": True}},
    },
}


def test_constants_are_what_they_state() -> None:
    found = Call({}, constants_from_recipe(STATED, find))()
    assert found["frames"] == 16
    assert found["scale"] == [0.32, 32, 32]
    assert found["added"] == {"sizes": [1, 2], "nothing": None}
    torch.testing.assert_close(found["ids"], torch.tensor([[0, 1], [2, 3]]))
    torch.testing.assert_close(found["grid"], torch.tensor([[0, 5], [1, 5]]))
    torch.testing.assert_close(found["twos"], torch.tensor([[2.0, 2.0]]))


def test_inputs_lie_where_the_network_has_them() -> None:
    arguments = {"x": "sample", "size": "added.size", "cosine": "table.1", "sine": "table.0"}
    call = Call(arguments, {"added": {"kind": "a"}, "last": True}, {"mask": "bool"})
    given = {name: torch.tensor([index]) for index, name in enumerate([*arguments, "mask"])}
    found = call(**given)
    assert set(found) == {"sample", "added", "table", "last", "mask"}
    assert found["added"] == {"kind": "a", "size": given["size"]}
    assert found["table"] == (given["sine"], given["cosine"])
    assert found["mask"].dtype == torch.bool
    found["added"].clear()  # a network may
    assert set(call(**given)["added"]) == {"kind", "size"}


def test_constants_follow_the_module_and_are_no_weights() -> None:
    call = Call({}, {"ids": torch.ones(2), "more": [torch.zeros(1)]})
    assert [name for name, _ in call.named_buffers()] == ["constant_0", "constant_1"]
    assert not call.state_dict()
    assert call.double()()["ids"].dtype == torch.float64


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ({"tensor": [[1], [1, 2]], "dtype": "int64"}, "cannot be made"),
        ({"call": "torch:arange", "arguments": ["x"]}, "cannot be made"),
        ({"call": "nowhere:arange"}, "the call of constant 'value' = 'nowhere:arange'"),
    ],
)
def test_a_constant_that_cannot_be_made_is_named(stated: Any, found: str) -> None:
    with pytest.raises(RecipeError, match="value") as caught:
        constants_from_recipe({"value": stated}, find)
    assert found in caught.value.found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ids = { tensor = [1] }", "a tensor of dtype None"),
        ("ids = { tensor = ['a'], dtype = 'int64' }", "a tensor of something else than numbers"),
        ("ids = { null = false }", "null = False"),
        ("ids = { call = 1 }", "call = 1"),
        ("ids = { call = 'a:b', dtype = 'int64' }", "a table with the keys ['call', 'dtype']"),
        ("ids = [[{ day = 2020-01-01 }]]", "network.constants.ids[0][0].day with a date"),
        ("x = 1", "network.constants for ['x'], which are inputs"),
    ],
)
def test_a_constant_of_another_form_is_refused(line: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    head, options, rest = RECIPE.read_text().partition("[network.options]")
    path.write_text(f"{head}[network.constants]\n{line}\n{options}{rest}")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert found in str(caught.value)


class Joint(nn.Module):
    """Two kinds of blocks, as in AuraFlow: of pairs, then of what they are joined to."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(Pair() for _ in range(2))
        self.middle = nn.Linear(4, 4)
        self.singles = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))

    def forward(
        self, x: Tensor, t: Tensor, rotary: Tensor | None = None, scale: float = 1.0
    ) -> Any:
        text, image = x[:, :1] + t[:, None, None], x
        for pair in self.pairs:
            text, image = pair(text, image=image)
        joined = torch.cat([text, image], dim=1)
        joined = self.middle(joined)
        for single in self.singles:
            joined = single(joined)
        return joined[:, 1:] * scale


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return text + self.inner(image).mean(1, keepdim=True), image + torch.sin(self.inner(image))


def expected(network: Joint, x: Tensor, t: Tensor, depth: int) -> Tensor:
    """By hand: blocks beyond the depth do nothing."""
    text, image = x[:, :1] + t[:, None, None], x
    for pair in list(network.pairs)[:depth]:
        text, image = pair(text, image)
    joined = torch.cat([text, image], dim=1)
    if depth > 2:
        joined = network.middle(joined)
    for single in list(network.singles)[: max(depth - 3, 0)]:
        joined = single(joined)
    return joined[:, 1:] * 3


@pytest.mark.parametrize("exits", [(1, 2, 3, 4, 5), (2,), (4, 5)])
@torch.no_grad()
def test_several_lists_are_one_order_of_blocks(exits: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network, x, t = Joint().eval(), torch.randn(2, 3, 4), torch.tensor([1.0, 2.0])
    right = {depth: expected(network, x, t, depth) for depth in exits}
    call = Call({}, {"scale": 3})
    blocks = ("pairs", "middle", "singles")
    found = Truncated(network, exits=(*exits[:-1], 5), blocks=blocks, call=call).eval()
    found.exits = exits  # as where one exit alone is wanted
    for depth, prediction in zip(exits, found(x=x, t=t), strict=True):
        torch.testing.assert_close(prediction, right[depth])


class Narrowing(nn.Module):
    """A U-Net's blocks: of other shapes each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 2), nn.Linear(2, 4)])
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x) + t[:, None]


def test_an_exit_where_shapes_change_is_refused_with_the_remedy() -> None:
    found = Truncated(Narrowing(), exits=(1, 2), blocks="blocks", call=Call({})).eval()
    with pytest.raises(RecipeError, match="name the deepest exit alone") as caught:
        found(x=torch.ones(2, 4), t=torch.ones(2))
    assert caught.value.found.startswith("exit 1 failing where full depth runs")
    found.exits = (2,)
    assert found(x=torch.ones(2, 4), t=torch.ones(2))[0].shape == (2, 4)


def test_optional_tensors_that_are_left_out_are_listed() -> None:
    assert left_out(Joint(), {"x": 1, "t": 1}) == ["rotary"]
    assert left_out(Joint(), {"x": 1, "t": 1, "rotary": None}) == []


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
ODD_RECIPE = """
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
    path.write_text(ODD_RECIPE.format(module=module, more=more))
    return path


def test_whole_timesteps_dictionaries_and_autocast_are_exported(
    tmp_path: Path, beside: Beside, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, beside(ODD), 'dtypes = { t = "int64" }')
    manifest = bundle_from_recipe(path, tmp_path / "bundle")
    assert max(each.relative_error for each in manifest.exits) < 1e-5  # float32 throughout
    assert "autocast to bfloat16 in the network's forward is left out" in caplog.text
    with torch.autocast("cpu", dtype=torch.bfloat16):  # and works again
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_table_of_timesteps_names_the_key(tmp_path: Path, beside: Beside) -> None:
    path = written(tmp_path, beside(ODD))
    with pytest.raises(TraceError, match=r"network\.dtypes\.t = 'int64'"):
        bundle_from_recipe(path, tmp_path / "bundle")


class Echo(nn.Module):
    def forward(self, x: Tensor, timestep: Any = None, added: Any = None) -> Any:
        return {"early2": timestep, 5: added, "loss": x}


def test_timesteps_are_rounded_wherever_they_are_given() -> None:
    t = torch.tensor([0.4, 998.6])
    for name in ("timestep", "added.t"):
        given = Call({"t": name}, dtypes={"t": "int64"})(x=t, t=t)
        found = given["timestep"] if name == "timestep" else given["added"]["t"]
        assert found.tolist() == [0, 999]
        assert found.dtype == torch.int64
        assert given["x"].tolist() == t.tolist()


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
