"""What cannot be compiled is refused in one sentence that names the operator and its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eecompile.compiler.trace import OPSET, graph_from_network
from eecompile.errors import TraceError
from eecompile.programs.interface import Condition, Interface, Resizable, State
from eecompile.programs.process import Process

INTERFACE = Interface(name="odd", exits=(1, 2), state=State(shape=(3,)))
HERE = Path(__file__).name


class Odd(nn.Module):
    """A network with something wrong with it."""

    exits = (1, 2)

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(3, 3)
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        first = self.linear(x) + t[:, None]
        second = self.last(first)
        if self.fault == "one output":
            return (first,)
        if self.fault == "shape":
            return first[:, :2], second
        if self.fault == "no tuple":
            return first
        if self.fault == "error":
            raise ValueError("the moon is not full")
        if self.fault == "branch" and bool(first.sum() > 0):
            return second, first
        if self.fault == "loop":
            for _ in range(int(t.max())):
                second = second + 1
        if self.fault == "batch":
            return first.reshape(2, 3), second.reshape(6).reshape(2, 3)
        if self.fault == "nonzero":
            second = second + first[first > 0].sum()
        if self.fault == "slice":
            second = second + x[:, : int(t[0].item())].sum()
        if self.fault == "cond":
            second = torch.cond(t[0] > 5, lambda y: y * 2, lambda y: y * 3, (second,))
        if self.fault == "noise":
            second = second + torch.randn_like(second)
        if self.fault == "operator":
            second = second + torch.linalg.eigvals(first.T @ first).real.sum()
        if self.fault == "unused time":
            return x * 2, self.last(x * 2)
        return first, second


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("one output", r"expected a tuple of 2 predictions"),
        ("shape", r"\(2, 2\)"),
        ("no tuple", "outputs of shapes Tensor"),
        ("error", rf"the moon is not full\), from .*{HERE}, line \d+ \(raise ValueError"),
        ("branch", rf"depends on data: aten\.\S+ reads .*{HERE}, line \d+ \(if self\.fault"),
        ("loop", rf"depends on data: aten\.\S+ reads .*{HERE}, line \d+ \(for _ in range"),
        ("batch", "batch"),
        ("nonzero", rf"operator NonZero in the network, from .*{HERE}, line \d+"),
        ("slice", rf"depends on data: aten\.item reads .*{HERE}, line \d+ \(second = "),
        ("cond", rf"operator If in the network, from .*{HERE}, line \d+: control flow"),
        ("noise", r"operator RandomNormalLike in the network.*: it draws random numbers"),
        ("operator", r"operator aten\.linalg_eig, which ONNX does not have"),
    ],
)
def test_a_network_that_cannot_be_traced_says_why(fault: str, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        graph_from_network(Odd(fault), INTERFACE)  # type: ignore[arg-type]


def test_an_input_that_is_not_used_stays_an_input() -> None:
    model = graph_from_network(Odd("unused time"), INTERFACE)  # type: ignore[arg-type]
    assert [value.name for value in model.graph.inputs] == ["x", "t"]
    assert model.opset_imports == {"": OPSET}


class Wide(nn.Module):
    """Any length, unless its positions are stored for one."""

    exits = (1, 2)

    def __init__(self, stored: bool, learned: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 8, 3, padding=1)
        self.second = nn.Conv1d(8, 8, 3, padding=1)
        self.head = nn.Conv1d(8, 4 if learned else 2, 1)
        self.positions = nn.Parameter(torch.randn(1, 8, 16)) if stored else None

    def forward(self, x: Tensor, t: Tensor, hint: Tensor) -> tuple[Tensor, ...]:
        hidden = torch.tanh(self.first(x)) + t[:, None, None] + hint[:, :, None].mean(1, True)
        if self.positions is not None:
            hidden = hidden + self.positions
        return self.head(hidden), self.head(torch.tanh(self.second(hidden)))


FREE = Interface(
    name="wide",
    exits=(1, 2),
    state=State(shape=(2, 16), resizable=Resizable(axes=(1,), min=8, max=64, multiple=4)),
    conditions={"hint": Condition(dtype="float32", shape=(3,))},
)


def test_an_axis_may_be_free() -> None:
    model = graph_from_network(Wide(stored=False), FREE)
    shapes = [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)]
    assert shapes[0].startswith("[batch,2,")
    assert "16" not in shapes[0]
    assert all(shape == shapes[0] for shape in shapes[3:])


def test_positions_that_are_stored_for_one_size_say_why_another_cannot_be() -> None:
    with pytest.raises(
        TraceError, match=rf"one size only \(Add, from .*{HERE}, line \d+\).*positions"
    ):
        graph_from_network(Wide(stored=True), FREE)


def test_a_learned_variance_is_an_output_of_its_own() -> None:
    interface = Interface(
        name="wide",
        exits=(1, 2),
        state=State(shape=(2, 16)),
        conditions=FREE.conditions,
        process=Process(variance="learned_range"),
    )
    model = graph_from_network(Wide(stored=False, learned=True), interface)
    assert [value.name for value in model.graph.outputs] == [
        "prediction_001",
        "variance_001",
        "prediction_002",
        "variance_002",
    ]
    with pytest.raises(TraceError, match="twice the channels for a learned variance"):
        graph_from_network(Wide(stored=False), interface)


def test_weights_have_the_networks_names() -> None:
    model = graph_from_network(Odd(""), INTERFACE)  # type: ignore[arg-type]
    assert {"linear.weight", "last.bias"} <= set(model.graph.initializers)


class Masked(nn.Module):
    """Attention with a mask that is the same for all queries, and squeezes that do nothing."""

    exits = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(4, 8)

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> tuple[Tensor]:
        query = x.reshape(-1, 2, 6, 4)
        bias = (1 - mask.float()).reshape(-1, 1, 1, 6) * -1e4
        mixed = nn.functional.scaled_dot_product_attention(query, query, query, bias)
        return ((mixed + t[:, None, None, None]).squeeze(1).reshape(-1, 12, 4),)


def test_masks_and_idle_squeezes_run_as_in_torch() -> None:
    import onnx_ir as ir
    import onnxruntime

    interface = Interface(
        name="masked",
        exits=(1,),
        state=State(shape=(12, 4)),
        conditions={"mask": Condition(dtype="int64", shape=(6,), range=(0, 1))},
    )
    network = Masked()
    model = graph_from_network(network, interface)
    data = ir.to_proto(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    x, t = torch.randn(3, 12, 4), torch.rand(3)
    mask = torch.tensor([[1, 1, 0, 0, 1, 0]] * 2 + [[1] * 6])
    (found,) = session.run(None, {"x": x.numpy(), "t": t.numpy(), "mask": mask.numpy()})
    np.testing.assert_allclose(found, network(x, t, mask)[0].numpy(), atol=1e-5)
