"""A recipe's factory is found and called, or its fault is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eecompile.errors import RecipeError
from eecompile.networks.load import load_network
from tests.conftest import Beside
from tests.networks.test_dit import TINY
from tests.networks.test_load import assert_same, recipe, state_of

MODULE = """
from torch import nn
from eecompile.errors import RecipeError

class Network(nn.Module):
    def __init__(self, exits=(), width=3, claimed="exits"):
        super().__init__()
        self.linear = nn.Linear(width, width)
        if claimed == "exits":
            self.exits = exits
        elif claimed:
            self.exits = (1, 2)

def make(exits, width):
    return Network(exits, width)

def fails(exits):
    raise OSError("no such device\\nand more")

def refuses(exits):
    raise RecipeError(found="a", expected="b", remedy="c")

def nothing(exits):
    return None

class NoModule:
    def __init__(self, exits):
        self.exits = exits

constant = 3
"""


@pytest.fixture(autouse=True)
def _checkpoint(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pt")  # is looked for before the factory is called


@pytest.mark.parametrize("name", ["Network", "make"])
def test_a_factory_beside_the_recipe_is_found(tmp_path: Path, beside: Beside, name: str) -> None:
    factory = f"{beside(MODULE)}:{name}"
    given = {"linear.weight": torch.randn(5, 5), "linear.bias": torch.randn(5)}
    torch.save(given, tmp_path / "a.pt")
    path = list(sys.path)
    network = load_network(recipe(factory=factory, options={"width": 5}), tmp_path)
    assert sys.path == path, "the folder stays on the path no longer than needed"
    assert_same(state_of(network), given)
    assert network.exits == (1, 2, 4)


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("fails", {}, "fails failing (OSError: no such device and more)"),
        ("make", {}, "make failing (TypeError: make() missing 1 required positional argument"),
        ("make", {"hight": 1}, "unexpected keyword argument 'hight'"),
        ("nothing", {}, "a NoneType from "),
        ("NoModule", {}, "a NoModule whose exits are [1, 2, 4] from "),
        ("Network", {"claimed": ""}, "a Network from "),
        ("Network", {"claimed": "others"}, "a Network whose exits are [1, 2] from "),
        ("constant", {}, "constant', a int"),
        ("missing", {}, "has no attribute 'missing'"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said(
    tmp_path: Path, beside: Beside, name: str, options: dict[str, Any], found: str
) -> None:
    factory = f"{beside(MODULE)}:{name}"
    torch.save({"linear.bias": torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(RecipeError) as caught:
        load_network(recipe(factory=factory, options=options), tmp_path)
    assert found in caught.value.found
    assert f"{factory.partition(':')[0]}:{name}" in caught.value.found
    assert "\n" not in str(caught.value)


def test_a_module_whose_exits_are_wrong_is_told_which_are_right(
    tmp_path: Path, beside: Beside
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_network(
            recipe(factory=f"{beside(MODULE)}:Network", options={"claimed": "others"}), tmp_path
        )
    assert caught.value.expected == "a torch module whose attribute exits is (1, 2, 4)"
    assert "network.blocks" in caught.value.remedy


def test_an_error_of_the_factorys_own_passes_unchanged(tmp_path: Path, beside: Beside) -> None:
    with pytest.raises(RecipeError, match=r"^found a; expected b; c\.$"):
        load_network(recipe(factory=f"{beside(MODULE)}:refuses", options={}), tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('no licence')", "failing (RuntimeError: no licence)"),
        ("1 / 0", "failing (ZeroDivisionError: division by zero)"),
        ("def make(:\n    pass", "failing (SyntaxError: "),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("from torch import no_such_name", "cannot import name 'no_such_name'"),
    ],
    ids=["raises", "divides", "syntax", "package", "name"],
)
def test_a_module_that_fails_on_import_says_so(
    tmp_path: Path, beside: Beside, source: str, words: str
) -> None:
    factory = f"{beside(source)}:make"
    path = list(sys.path)
    with pytest.raises(RecipeError) as caught:
        load_network(recipe(factory=factory), tmp_path)
    assert words in caught.value.found
    assert repr(factory) in caught.value.found
    assert sys.path == path


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("eecompile.networks.dit:DIT", "DIT"),
        ("no.such.module:DiT", "No module named 'no'"),
        ("DiT", "'DiT'"),
        ("eecompile.networks.dit", "'eecompile.networks.dit'"),
        ("eecompile.networks.dit:", "'eecompile.networks.dit:'"),
        (":DiT", "':DiT'"),
        ("eecompile.networks.dit:DiT.missing", "DiT.missing"),
    ],
)
def test_a_factory_that_cannot_be_found_is_refused(
    tmp_path: Path, factory: str, words: str
) -> None:
    with pytest.raises(RecipeError, match=r"expected package\.module:callable") as caught:
        load_network(recipe(factory=factory), tmp_path)
    assert words in caught.value.found
    assert "put the module beside the recipe" in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factory": "torch.nn:Linear", "exits": (1,), "options": {}}, "torch.nn:Linear failing"),
        ({"options": TINY | {"heads": 3}}, "divisible"),
        ({"options": {**TINY, "hight": 1}}, "'hight'"),
        ({"exits": (1, 2)}, "from 1 to 4"),
        ({"exits": (1, 9)}, "from 1 to 4"),
    ],
)
def test_a_wrong_network_section_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        load_network(recipe(**changes), tmp_path)
