"""Faults of networks and of the exporter: worked around, or named with their place."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from eecompile.compiler import convert
from eecompile.compiler.differences import first_difference
from eecompile.compiler.export import bundle_from_recipe, interface_from_recipe
from eecompile.compiler.notices import told_once
from eecompile.compiler.trace import traced_network
from eecompile.compiler.verify import random_inputs
from eecompile.errors import EecompileError, summary
from eecompile.networks.load import load_network
from eecompile.recipe import load_recipe
from eecompile.store.target import Tolerance
from tests.conftest import Beside

MODULE = """
import warnings
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.table = torch.polar(torch.ones(2, 4), torch.rand(2, 4)).split([1, 1])

    def change(self, hidden, t):
        return hidden + torch.sin(t)[:, None]

    def forward(self, x, t, rotary: torch.Tensor | None = None):
        hidden = self.change(x, t)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        return hidden
"""
RECIPE = """
name = "own"
[network]
factory = "{module}:Own"
blocks = "blocks"
checkpoint = "own.pt"
exits = [2]
[network.constants]
rotary = { null = true }
[state]
shape = [8]
[process]
timesteps = 1000
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, beside: Beside) -> Write:
    """Writes a module with a class ``Own``, its weights and a recipe; returns the recipe."""

    def written(source: str) -> Path:
        module = beside(MODULE + source)
        names: dict[str, Any] = {"__name__": "not imported"}
        torch.manual_seed(0)
        exec(MODULE + source, names)
        torch.save(names["Own"]().state_dict(), tmp_path / "own.pt")
        (tmp_path / "recipe.toml").write_text(RECIPE.replace("{module}", module))
        return tmp_path / "recipe.toml"

    return written


ROTARY = """
class Own(Plain):
    def change(self, hidden, t):
        table = torch.cat(self.table, dim=1).flip(0).reshape(1, 8)[:, :4]
        turned = torch.view_as_complex(hidden.reshape(-1, 4, 2)) * table.conj()
        return torch.view_as_real(turned).flatten(1) + t[:, None]
"""


def test_complex_tables_are_computed_before_conversion(write: Write) -> None:
    path = write(ROTARY)
    manifest = bundle_from_recipe(path, path.parent / "bundle")
    assert manifest.exits[0].relative_error < 1e-6


COMPLEX = """
class Own(Plain):
    def change(self, hidden, t):
        first, second = torch.view_as_complex(hidden.reshape(-1, 4, 2)).split([1, 3], dim=1)
        return torch.view_as_real(torch.cat([second, first], dim=1)).flatten(1) + t[:, None]
"""
FROM_MASK = """
class Own(Plain):
    def change(self, hidden, t):
        lengths = (hidden > 0).sum(1).tolist()
        return hidden + sum(torch.arange(n)[-1] for n in set(lengths)) + t[:, None]
"""


@pytest.mark.parametrize(
    ("source", "found"),
    [(COMPLEX, "complex numbers that depend on the inputs"), (FROM_MASK, "depends on data")],
)
def test_what_cannot_be_traced_is_told_with_its_line(source: str, found: str, write: Write) -> None:
    path = write(source)
    with pytest.raises(EecompileError, match="expected") as caught:
        bundle_from_recipe(path, path.parent / "bundle")
    assert found in caught.value.found
    assert ".py, line " in caught.value.found


HALF = """
class Own(Plain):
    def change(self, hidden, t):
        wide = hidden.half() @ torch.ones(8, 8, dtype=torch.half)
        return torch.exp(wide.float()) + t[:, None]
"""


def test_a_graph_that_differs_is_told_by_its_first_operator(write: Write) -> None:
    path = write(HALF)
    recipe = load_recipe(path)
    interface = interface_from_recipe(recipe)
    traced = traced_network(load_network(recipe.network, path.parent), interface)
    point = random_inputs(interface, 2, 500, seed=0)
    assert first_difference(traced.model, traced.program, point, Tolerance(relative=1e-2)) is None
    # What a wrong conversion would do: another operator where torch has an exponential.
    (node,) = (node for node in traced.model.graph if node.op_type == "Exp")
    node.op_type = "Neg"
    found = first_difference(traced.model, traced.program, point, Tolerance(relative=1e-2))
    assert found is not None
    line = MODULE[: MODULE.index("self.change(x, t)")].count("\n") + 1  # in forward
    assert found.operator.startswith("aten.exp, from ")
    assert found.operator.endswith(f", line {line}")
    np.testing.assert_allclose(found.torch, np.exp(-found.graph), rtol=2e-3)  # in half


def test_the_error_names_the_operator_and_a_cause(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("\nclass Own(Plain):\n    pass\n")
    recipe = path.read_text().replace("timesteps = 1000", "timesteps = 1000\ntime_scale = 1e4")
    path.write_text(recipe)
    optimise = convert.optimise

    def badly(model: ir.Model) -> None:
        """Angles are off by their last bit, as another library's may be."""
        optimise(model)
        off = ir.Value(name="off", const_value=ir.tensor(np.float32(1 + 2e-7)))
        model.graph.register_initializer(off)
        for sine in [node for node in model.graph if node.op_type == "Sin"]:
            angle = ir.Node("", "Mul", [sine.inputs[0], off])
            model.graph.insert_before(sine, angle)
            sine.replace_input_with(0, angle.outputs[0])

    monkeypatch.setattr(convert, "optimise", badly)
    with pytest.raises(EecompileError) as caught:
        bundle_from_recipe(path, path.parent / "bundle")
    assert "the first operator that differs is aten.sin, from " in caught.value.found
    assert "time_scale = 0.001" in caught.value.remedy


WARNS = """
class Own(Plain):
    def change(self, hidden, t):
        warnings.warn("an old name", FutureWarning)
        return super().change(hidden, t)
"""


def test_a_warning_is_told_once_and_what_is_left_out_named(write: Write) -> None:
    path = write(WARNS)
    path.write_text(path.read_text().replace("rotary = { null = true }\n", ""))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        bundle_from_recipe(path, path.parent / "bundle")
    texts = [str(warning.message) for warning in told]
    assert texts.count("an old name") == 1
    (about,) = (text for text in texts if "optional" in text)
    assert about.startswith("Own is exported without its optional rotary: ")


def test_a_line_of_a_log_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.once")
    with told_once():
        for number in (1, 1, 2):
            logger.warning("line %d", number)
    logger.warning("line %d", 1)
    assert [record.getMessage() for record in caplog.records] == ["line 1", "line 2", "line 1"]


def test_an_error_of_several_lines_is_told_by_what_they_say() -> None:
    error = TypeError("Attention()\n\n  takes no mask of two axes\nmore")
    assert summary(error) == "TypeError: Attention() takes no mask of two axes"
    assert summary(ValueError("one line that says it all\nanother")) == (
        "ValueError: one line that says it all"
    )
    assert summary(KeyError()) == "KeyError"
