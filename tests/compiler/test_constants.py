"""Constants keep their values in export, however close to 0 or 1 they are."""

from __future__ import annotations

from collections import Counter
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from eecompile.compiler import export as export_module
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.progress import silent
from eecompile.compiler.sessions import evaluate_joined, session_from_graph
from eecompile.compiler.trace import graph_from_network
from eecompile.compiler.verify import compare_extremes, extreme_inputs
from eecompile.errors import EecompileError, NonFiniteError, VerificationError
from eecompile.programs.interface import Interface, State
from eecompile.runtime.sampler import Sampler
from eecompile.store.target import Tolerance
from tests.conftest import TARGETS, Beside

FORMS = (1, 2, 3, 4)
INTERFACE = Interface(name="normed", exits=FORMS, state=State(shape=(4, 8)))


class Normed(nn.Module):
    """A norm of the state with a small constant in it, in another form at every exit."""

    exits = FORMS

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        square = x.pow(2).mean(-1, keepdim=True)
        return (
            x * torch.rsqrt(square + self.eps) * self.scale + t[:, None, None],
            x / (self.eps + square.sqrt()),
            x / (square.sqrt() - -self.eps),
            torch.nn.functional.rms_norm(x, (8,), self.scale, self.eps),
        )


@pytest.mark.parametrize("eps", [1e-8, 1e-15])
def test_a_norm_of_little_is_torchs(tmp_path: Path, eps: float) -> None:
    network: Any = Normed(eps)
    ir.save(graph_from_network(network, INTERFACE), tmp_path / "graph.onnx")
    evaluate = evaluate_joined(session_from_graph(tmp_path / "graph.onnx"), INTERFACE)
    x, t = torch.randn(3, 4, 8), torch.zeros(3)
    for size in (0.0, 1e-12, 1e-7, 1e-4, 1.0, 1e6):
        with torch.no_grad():
            expected = network(x * size, t)
        found = evaluate({"x": (x * size).numpy(), "t": t.numpy()})
        for form, right in zip(FORMS, expected, strict=True):
            np.testing.assert_allclose(found[form][0], right, rtol=1e-5, err_msg=f"{form}, {size}")


def test_only_what_is_exactly_neutral_is_dropped() -> None:
    class Idle(nn.Module):
        exits = (1,)

        def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
            for neutral in (torch.tensor(0.0), torch.tensor(-0.0), torch.tensor(1e-20)):
                x = neutral + (x - neutral)
            for neutral in (torch.tensor(1.0), torch.tensor(1.0 + 2**-23)):
                x = neutral * (x / neutral)
            return (x + t[:, None, None],)

    network: Any = Idle()
    interface = Interface(name="idle", exits=(1,), state=State(shape=(4, 8)))
    model = graph_from_network(network, interface)
    counts = Counter(node.op_type for node in model.graph)
    assert counts == {"Unsqueeze": 1, "Add": 2, "Sub": 1, "Mul": 1, "Div": 1}


def test_constants_that_are_written_to_are_computed_by_the_graph(tmp_path: Path) -> None:
    class Written(nn.Module):
        exits = (1,)

        def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
            table = torch.arange(8.0).square()
            table[:4].add_(1)
            table += torch.arange(8.0).sin()
            return (x * table + t[:, None, None],)

    network: Any = Written()
    interface = Interface(name="written", exits=(1,), state=State(shape=(4, 8)))
    ir.save(graph_from_network(network, interface), tmp_path / "graph.onnx")
    evaluate = evaluate_joined(session_from_graph(tmp_path / "graph.onnx"), interface)
    x, t = torch.randn(3, 4, 8), torch.ones(3)
    found = evaluate({"x": x.numpy(), "t": t.numpy()})
    np.testing.assert_allclose(found[1][0], network(x, t)[0], rtol=1e-5)


def test_verification_sees_where_a_norms_epsilon_matters(tmp_path: Path) -> None:
    network: Any = Normed(0.0)
    model = graph_from_network(network, INTERFACE)
    reference = export_module._evaluate_network(network, INTERFACE)
    source = export_module._Source(model, reference, reference, "torch")
    export_module._write_graphs(tmp_path, model, INTERFACE)
    export_module._verify(tmp_path, source, INTERFACE, Tolerance(), silent)  # torch has NaN itself
    network.eps = 1e-15  # the graph no longer is this network, for inputs near zero
    with pytest.raises(EecompileError, match=r"exit 1 .*, zero inputs"):
        export_module._verify(tmp_path, source, INTERFACE, Tolerance(), silent)


MODULE = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x, t, text):
        text = text / (text.norm(dim=1, keepdim=True) + 1e-8)
        hidden = self.stem(x) + text
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
exits = [1, 2]
[network.arguments]
[state]
shape = [8]
[conditions.text]
dtype = "float32"
shape = [8]
[sampling]
solver = "ddim"
steps = 2
"""


@pytest.mark.parametrize("layout", TARGETS)
def test_a_null_embedding_of_zeros_samples(tmp_path: Path, beside: Beside, layout: str) -> None:
    exported(tmp_path, beside, MODULE)
    engine_set_from_bundle(tmp_path / "bundle", TARGETS[layout], tmp_path / "engines")
    with Sampler.open(tmp_path / "engines") as sampler:
        text = np.ones(8, np.float32)
        guided = sampler.sample(2, text=text, nulls={"text": 0 * text}, guidance=2.0)
        weak = sampler.sample(2, text=text, nulls={"text": 1e-30 * text}, guidance=2.0)
    np.testing.assert_allclose(guided, weak, atol=1e-6)


def exported(tmp_path: Path, beside: Beside, module: str) -> Path:
    """A bundle of the module's network, with random weights."""
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("{module}", beside(module)))
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "not imported"}
    exec(module, names)
    torch.save(names["Own"]().state_dict(), tmp_path / "own.pt")
    bundle_from_recipe(tmp_path / "recipe.toml", tmp_path / "bundle")
    return tmp_path / "bundle"


def test_extremes_are_compared_where_the_reference_is_finite() -> None:
    points = extreme_inputs(INTERFACE)

    def outputs(*values: float) -> Any:
        made = chain(values, repeat(values[-1]))
        return lambda point: {4: [np.full_like(point["x"], next(made))]}

    tolerance = Tolerance(absolute=0.1, relative=1e-3)
    right, nan = (1.0, 1.0, np.inf), float("nan")
    found = compare_extremes(points, outputs(*right), outputs(nan, 1.3, nan), tolerance, "it")
    assert [type(error) for error in found] == [NonFiniteError, VerificationError]
    assert ["zero inputs" in found[0].found, "tiny inputs" in found[1].found] == [True, True]
    assert not compare_extremes(points, outputs(*right), outputs(*right), tolerance, "it")
    large = compare_extremes(points, outputs(1, 1, 1), outputs(1, 1, 1.15), tolerance, "it")
    assert not large  # a hundred times the relative tolerance
    assert compare_extremes(points, outputs(1, 1, 1), outputs(1, 1, 1.3), tolerance, "it")


def test_large_inputs_may_be_off_by_what_rounding_does_to_the_reference() -> None:
    """A function that makes a million of each last digit."""
    points = {"large": extreme_inputs(INTERFACE)["large"]}
    tolerance = Tolerance(absolute=1e-3, relative=0)

    def output(off: float) -> Any:
        def predict(point: Any) -> Any:
            ulps = np.float32(1e6) * (point["x"] - points["large"]["x"])
            return {4: [ulps + np.float32(off)]}

        return predict

    moved = 1e6 * float(np.spacing(np.abs(points["large"]["x"])).max())
    assert not compare_extremes(points, output(0), output(20 * moved), tolerance, "it")
    assert compare_extremes(points, output(0), output(40 * moved), tolerance, "it")
    zero = {"zero": points["large"]}
    assert compare_extremes(zero, output(0), output(20 * moved), tolerance, "it")
