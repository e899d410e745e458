"""Networks as people write them: exported, built and sampled, or refused in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.errors import EecompileError, VerificationError
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_bundle
from tests.conftest import TARGETS, Beside

MODULE = """
import torch
from torch import Tensor, nn
from torch.nn import functional as F

class Chain(nn.Module):
    \"\"\"A stem, three blocks, a head.\"\"\"

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 4)
        self.labels = nn.Embedding(4, 4)
        self.blocks = nn.ModuleList(self.block() for _ in range(3))
        self.head = nn.Linear(4, 8)

    def block(self):
        return nn.Linear(4, 4)

    def embed(self, x, t, label):
        return self.stem(x) + self.labels(label) + t[:, None] * 1e-3

    def forward(self, x, t, label):
        hidden = self.embed(x, t, label)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        return self.head(hidden)
"""

RECIPE = """
name = "own"
[network]
factory = "{module}:Own"
blocks = "blocks"
checkpoint = "own.pt"
exits = [1, 2, 3]
[network.arguments]
[state]
shape = [8]
[conditions.label]
dtype = "int64"
range = [0, 2]
default = "cycle"
null = 3
[sampling]
steps = 3
guidance = 2.0
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, beside: Beside) -> Write:
    """Writes a module, its network's weights and a recipe; returns the recipe."""

    def written(source: str, *changes: tuple[str, str], weights: bool = True) -> Path:
        module = beside(MODULE + source)
        recipe = RECIPE.replace("{module}", module)
        for old, new in changes:
            assert old in recipe
            recipe = recipe.replace(old, new)
        (tmp_path / "recipe.toml").write_text(recipe)
        torch.save({}, tmp_path / "own.pt")
        if weights:
            torch.manual_seed(0)
            names: dict[str, Any] = {"__name__": "not imported"}
            exec(MODULE + source, names)  # the export is to be the first that imports it
            torch.save(names["Own"]().state_dict(), tmp_path / "own.pt")
        return tmp_path / "recipe.toml"

    return written


def samples(recipe: Path) -> None:
    """Export, build and sample."""
    bundle, engines = recipe.parent / "bundle", recipe.parent / "engines"
    bundle_from_recipe(recipe, bundle)
    engine_set_from_bundle(bundle, TARGETS["chained"], engines)
    with Sampler.open(engines) as sampler:
        for depth in sampler.interface.exits:
            shape = sampler.interface.state.shape
            assert sampler.sample(2, schedule=depth).shape == (2, *shape)


NAMES = """
class Own(Chain):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.randn(4))
        self.t = nn.Parameter(torch.randn(4))
        self.label = nn.Parameter(torch.randn(4, 4))
        self.prediction_001 = nn.Parameter(torch.randn(4))

    def embed(self, x, t, label):
        known = self.label[label] + self.x + self.prediction_001
        return self.stem(x) + t[:, None] * self.t * 1e-3 + known
"""
IN_PLACE = """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden):
        hidden += torch.tanh(self.linear(hidden))
        return hidden

class Own(Chain):
    def block(self):
        return Block()

    def forward(self, x, t, label):
        hidden = self.embed(x, t, label)
        for block in self.blocks:
            hidden = block(hidden)
            hidden.tanh_()
        return self.head(hidden)
"""
ONE_HEAD = """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden):
        rows = hidden[:, :, None] * self.linear(hidden)[:, None, :]
        return F.scaled_dot_product_attention(rows, rows, value=rows).mean(2)

class Own(Chain):
    def block(self):
        return Block()
"""
IMPORTS_LATER = """
class Own(Chain):
    def embed(self, x, t, label):
        import beside_the_recipe
        return super().embed(x, t, label) * beside_the_recipe.SCALE
"""


@pytest.mark.parametrize("source", [NAMES, IN_PLACE, ONE_HEAD], ids=["names", "in place", "head"])
def test_blocks_as_people_write_them(write: Write, source: str) -> None:
    samples(write(source))


def test_a_forward_may_import_what_lies_beside_the_recipe(write: Write, tmp_path: Path) -> None:
    (tmp_path / "beside_the_recipe.py").write_text("SCALE = 0.5")
    samples(write(IMPORTS_LATER))
    sys.modules.pop("beside_the_recipe")


def test_a_file_named_like_a_package_beside_the_recipe_does_no_harm(
    write: Write, tmp_path: Path
) -> None:
    recipe = write("class Own(Chain): pass")
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    bundle_from_recipe(recipe, tmp_path / "bundle")
    assert hasattr(sys.modules["numpy"], "ndarray")


def test_a_multi_exit_network_may_name_its_inputs_as_it_likes(write: Write) -> None:
    source = """
class Own(Chain):
    exits = (1, 2, 3)

    def __init__(self, exits=()):
        super().__init__()

    def forward(self, sample, timestep, added):
        hidden, made = self.embed(sample, timestep, added["kind"]), []
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
            made.append(self.head(hidden))
        return tuple(made)
"""
    names = '[network.arguments]\nx = "sample"\nt = "timestep"\nlabel = "added.kind"\n'
    samples(write(source, ('blocks = "blocks"\n', ""), ("[network.arguments]\n", names)))


def test_a_free_axis_may_be_one_multiple_long_by_default(write: Write) -> None:
    source = """
class Own(Chain):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 2, 1)

    def block(self):
        return nn.Conv1d(4, 4, 1)

    def embed(self, x, t, label):
        return self.stem(x) + (self.labels(label) + t[:, None] * 1e-3)[:, :, None]
"""
    resizable = "shape = [2, 8]\nresizable = {axes = [1], min = 8, max = 64, multiple = 8}"
    samples(write(source, ("shape = [8]", resizable)))


FIRST_ROWS = {
    "t": "super().embed(x, t[:1].expand_as(t), label)",
    "label": "self.stem(x) + self.labels(label[0])",
    "x": "super().embed(x, t, label) + torch.tanh(self.stem(x))[:1]",
    "ids": "super().embed(x, t, label) + torch.cos(ids[0])",
}


@pytest.mark.parametrize("name", FIRST_ROWS)
def test_what_reads_the_first_sample_of_a_batch_is_refused_by_name(
    write: Write, tmp_path: Path, name: str
) -> None:
    source = f"""
class Own(Chain):
    def embed(self, x, t, label, ids):
        return {FIRST_ROWS[name]}

    def forward(self, x, t, label, ids):
        hidden = self.embed(x, t, label, ids)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        return self.head(hidden)
"""
    ids = '[conditions.ids]\ndtype = "float32"\nshape = [4]\ndefault = 0\n[sampling]'
    recipe = write(source, ("[sampling]", ids))
    with pytest.raises(VerificationError, match=rf"at exit 1, on their {name}, by \d"):
        bundle_from_recipe(recipe, tmp_path / "bundle")


EXITS = "import sys\nsys.exit(0)"
REFUSED = {
    "module exits": (EXITS, "failing (SystemExit: 0)"),
    "factory exits": (
        "class Own(Chain):\n    def __init__(self):\n        raise SystemExit(0)",
        "Own failing (SystemExit: 0)",
    ),
    "forward exits": (
        "class Own(Chain):\n    def forward(self, x, t, label): raise SystemExit(0)",
        "a network that fails on",
    ),
    "blocks are not called": (
        """
class Own(Chain):
    def forward(self, x, t, label):
        hidden = self.embed(x, t, label)
        for block in self.blocks:
            hidden = hidden + F.linear(hidden, block.weight, block.bias)
        return self.head(hidden)
""",
        "0 of the blocks running where 3 should",
    ),
    "samples depend on one another": (
        """
class Own(Chain):
    def embed(self, x, t, label):
        hidden = super().embed(x, t, label)
        return hidden - hidden.mean(0)
""",
        "samples that depend on others in their batch at exit 1, on their x, t, label",
    ),
    "depends on data": (
        """
class Own(Chain):
    def forward(self, x, t, label):
        hidden = self.embed(x, t, label)
        for block in self.blocks:
            if hidden.sum() < 1e9:
                hidden = hidden + torch.tanh(block(hidden))
        return self.head(hidden)
""",
        "a graph that depends on data",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_says_why(
    write: Write, tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source, words = REFUSED[case]
    made = case not in ("module exits", "factory exits")
    recipe = write(source, weights=made)
    with pytest.raises(EecompileError) as caught:
        bundle_from_recipe(recipe, tmp_path / "out" / "bundle")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr().err == "", "torch prints its graphs"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("null = 3", "null = 4"), "index out of range"),
        (("range = [0, 2]", "range = [0, 4]"), "index out of range"),
    ],
)
def test_values_that_the_network_does_not_know_are_found(
    write: Write, tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    with pytest.raises(EecompileError, match=words):
        bundle_from_recipe(write("class Own(Chain): pass", change), tmp_path / "bundle")
    with pytest.raises(EecompileError, match="no manifest"):
        open_bundle(tmp_path / "bundle")
