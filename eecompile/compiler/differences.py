"""Where a graph begins to differ from the network that it was traced from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node

from eecompile.arrays import AnyArray, Array, Inputs
from eecompile.compiler.graph.operators import network_line
from eecompile.compiler.sessions import run_session, session_from_graph
from eecompile.compiler.trace import traced_network
from eecompile.compiler.verify import extreme_inputs, verification_points
from eecompile.errors import EecompileError
from eecompile.interrupt import check
from eecompile.networks.base import MultiExitNetwork
from eecompile.programs.interface import Interface
from eecompile.store.target import Tolerance

_LARGE_ANGLE = 2000.0  # radians, of which float32 holds four digits after the point
_FEW = 20.0  # what a network that takes t from 0 to 1 multiplies may exceed
_ANGLES = ("sin", "cos")
_MASKED = ("softmax", "scaled_dot_product")
_HALF = (torch.float16, torch.bfloat16)


def located(
    error: EecompileError,
    network: MultiExitNetwork | None,
    interface: Interface,
    tolerance: Tolerance,
) -> EecompileError:
    """The error with the first operator at fault, where one is found."""
    if network is None:
        return error
    traced = traced_network(network, interface)
    for point in (*verification_points(interface), *extreme_inputs(interface).values()):
        try:
            difference = first_difference(traced.model, traced.program, point, tolerance)
        except Exception:  # what fails on this point is what the error is about
            check()
            return error
        if difference is not None:
            return type(error)(
                found=f"{error.found}; {difference}",
                expected=error.expected,
                remedy=difference.cause or error.remedy,
            )
    return error


class Difference(NamedTuple):
    """The first operator whose results in torch and in the graph differ.

    Attributes:
        operator: its name, and the line of the network's code where that is known.
        torch: the value in torch where they differ most.
        graph: the value in the graph there.
        cause: what may be wrong, in the imperative; None where that cannot be told.
    """

    operator: str
    torch: float
    graph: float
    cause: str | None

    def __str__(self) -> str:
        return (
            f"the first operator that differs is {self.operator}: {self.torch:.6g} in torch, "
            f"{self.graph:.6g} in the graph"
        )


def first_difference(
    model: ir.Model,
    program: torch.export.ExportedProgram,
    point: Inputs,
    tolerance: Tolerance,
) -> Difference | None:
    """Compare every value that the graph has kept, in the order in which torch computes them.

    Args:
        model: of :func:`.trace.graph_from_network`; it is changed.
        program: what the model was converted from, whose nodes have the names of its values.
        point: inputs of both.
        tolerance: as of a network's outputs, for each value.
    """
    found = _graph_values(model, {node.name for node in program.graph.nodes}, point)
    comparison = _Comparison(program, found, tolerance)
    try:
        with torch.no_grad():
            comparison.run(*_arguments(program, point))
    except _Found as difference:
        return difference.difference
    return None


def _graph_values(model: ir.Model, names: set[str], point: Inputs) -> dict[str, AnyArray]:
    """The values of those names, where the graph has any, and where they are floating point."""
    kept = [
        value
        for node in model.graph
        for value in node.outputs
        if value.name in names and value.dtype is not None and value.dtype.is_floating_point()
    ]
    outputs = set(model.graph.outputs)
    model.graph.outputs.extend(value for value in kept if value not in outputs)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "values.onnx"
        ir.save(model, path, external_data="values.data")
        session = session_from_graph(path)
        values = [str(value.name) for value in kept]
        return dict(zip(values, run_session(session, point, values), strict=True))


def _arguments(program: torch.export.ExportedProgram, point: Inputs) -> list[Any]:
    """What the program's placeholders take, in their order."""
    held, given = {**program.state_dict, **program.constants}, iter(point.values())
    return [
        torch.from_numpy(np.asarray(next(given)))
        if spec.kind == InputKind.USER_INPUT
        else held[str(spec.target)]
        for spec in program.graph_signature.input_specs
    ]


class _Found(Exception):  # noqa: N818  # it ends a search
    def __init__(self, difference: Difference) -> None:
        super().__init__()
        self.difference = difference


class _Comparison(Interpreter):
    """Runs a program in torch, and stops where a value differs from the graph's."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        values: Mapping[str, AnyArray],
        tolerance: Tolerance,
    ) -> None:
        super().__init__(program.graph_module)
        self._values, self._tolerance = values, tolerance

    def run_node(self, n: Node) -> Any:
        """Run one operator, and compare its result."""
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.name in self._values:
            right = torch.view_as_real(result) if result.is_complex() else result
            self._compare(n, right.float().numpy(), self._values[n.name].astype(np.float32))
        return result

    def _compare(self, node: Node, right: Array, found: Array) -> None:
        if right.shape != found.shape or not right.size:
            return
        same = (right == found) | (np.isnan(right) & np.isnan(found))
        apart = np.nan_to_num(
            np.abs(right - found, where=~same, out=np.zeros_like(right)), nan=np.inf
        )
        size = float(np.abs(right, where=np.isfinite(right), out=np.zeros_like(right)).max())
        if float(apart.max()) <= self._tolerance.absolute + self._tolerance.relative * size:
            return
        place = np.unravel_index(int(apart.argmax()), apart.shape)
        name = re.sub(r"\.default$", "", str(node.target))
        operator = f"{name}{network_line(str(node.meta.get('stack_trace', '')))}"
        cause = self._cause(node, name)
        raise _Found(Difference(operator, float(right[place]), float(found[place]), cause))

    def _cause(self, node: Node, name: str) -> str | None:
        inputs = [self.env.get(parent) for parent in node.all_input_nodes]
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        largest = max((float(v.abs().max()) for v in tensors if v.is_floating_point()), default=0.0)
        if any(value.dtype in _HALF for value in tensors):
            return (
                "the network computes in half precision there, as under autocast: export it in "
                "float32, and name the precision in the target"
            )
        if any(word in name for word in _ANGLES) and largest > _LARGE_ANGLE:
            return (
                f"it takes angles up to {largest:.3g}: where the network takes times from 0 to 1, "
                "set process.time_scale = 0.001; or narrow the conditions' range"
            )
        if any(word in name for word in _MASKED):
            return (
                "look at attention masks: rows that mask everything, or a mask of 0 and 1 that is "
                "added, not taken as booleans (network.dtypes)"
            )
        return None
