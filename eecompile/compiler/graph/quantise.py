"""Quantise a graph: pairs of QuantizeLinear and DequantizeLinear before what computes with weights.

The pairs say what a backend may compute in fewer bits; ONNX Runtime, OpenVINO and TensorRT-RTX
all read them. They are placed once, in the graph of all exits joined, before that graph is cut: a
weight that exits share is quantised once. Run without any optimisation, the graph computes in
floating point exactly what the fewer bits can say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from eecompile.arrays import Array
from eecompile.errors import BackendError
from eecompile.store.target import QuantisedKind

SWITCHES = "quantised"
"""Name of the input of a graph with switches: bool [operators]."""
_OPSET = 21  # the first with 4 bits, and with scales by block
_E4M3 = 448.0  # the largest number of FP8 (E4M3), arXiv 2209.05433
_NO_VNNI = 63  # the largest weight of 7 bits
_UNNAMED = re.compile(r"(val|v|n|scalar_tensor_default|_to_copy)_?\d*(#\d+)?$")
Range = tuple[float, float]


class Scheme(msgspec.Struct, frozen=True):
    """What values and weights become.

    Attributes:
        values: type of what operators read: uint8 with a zero point, int8 and FP8 without; None
            leaves it as it is.
        weights: type of the weights; they have no zero point.
        top: largest number that a weight becomes.
        block: weights with a scale of their own; 0 for an output channel's.
    """

    values: ir.DataType | None
    weights: ir.DataType
    top: float
    block: int = 0

    @property
    def name(self) -> str:
        """Short: U8S8, S8S8, E4M3, S8 or S4 by block; fewer bits of weights are told."""
        short = {"UINT8": "U8", "INT8": "S8", "INT4": "S4", "FLOAT8E4M3FN": "E4M3"}
        weights = "S7" if self.top == _NO_VNNI else short[self.weights.name]
        if self.values is None:
            return f"{weights}, block {self.block}"
        return (
            weights
            if self.values == self.weights == ir.DataType.FLOAT8E4M3FN
            else (short[self.values.name] + weights)
        )


def scheme_for(kind: QuantisedKind, block: int, *, cpu: bool, vnni: bool) -> Scheme:
    """The scheme of a target's kind.

    Without VNNI, processors add two products of 8 bits in 16, so that weights of 8 would
    saturate: they get 7. Where values have a zero point, a GPU's libraries take none.
    """
    types = ir.DataType
    if kind == "fp8":
        return Scheme(types.FLOAT8E4M3FN, types.FLOAT8E4M3FN, _E4M3)
    if kind == "int8-weights":
        return Scheme(None, types.INT8, 127, block)
    if kind == "int4-weights":
        return Scheme(None, types.INT4, 7, block)
    if cpu:
        return Scheme(types.UINT8, types.INT8, 127 if vnni else _NO_VNNI)
    return Scheme(types.INT8, types.INT8, 127)


class Operator(NamedTuple):
    """What can be quantised: a product of values with weights.

    Attributes:
        name: that of its weights or its bias, as the network calls them; distinct.
        node: in the graph.
        cost: multiplications for one sample, as far as shapes say.
    """

    name: str
    node: ir.Node
    cost: int


def operators(graph: ir.Graph, scheme: Scheme) -> tuple[list[Operator], list[str]]:
    """What of a graph can be quantised, in order; and the names of products that cannot.

    A product can be if its weights are a matrix, or a convolution's kernel; with scales by
    block, if it is a matrix whose length is a multiple of the block.
    """
    found, refused = [], []
    taken: dict[str, int] = {}
    for node in graph:
        if node.domain or node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
            continue
        weight = node.inputs[1]
        if weight is None or not weight.is_initializer() or node.inputs[0].is_initializer():  # type: ignore[union-attr]
            continue
        name = _name(node)
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name}#{taken[name]}"
        if _fits(node, weight, scheme):
            found.append(Operator(name, node, _cost(node, weight)))
        else:
            refused.append(name)
    return found, refused


def _fits(node: ir.Node, weight: ir.Value, scheme: Scheme) -> bool:
    tensor = weight.const_value
    assert tensor is not None
    if not tensor.dtype.is_floating_point() or node.op_type == "ConvTranspose":
        return False
    if node.op_type == "Conv":
        return not scheme.block and scheme.weights == ir.DataType.INT8
    if node.op_type == "Gemm":
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        if any(a.value != plain.get(a.name, a.value) for a in node.attributes.values()):
            return False
    rows, columns = _matrix_shape(node, tensor) if len(tensor.shape) == 2 else (0, 0)
    return rows > 1 and columns > 1 and (not scheme.block or rows % scheme.block == 0)


def _matrix_shape(node: ir.Node, tensor: ir.TensorProtocol) -> tuple[int, int]:
    first, second = (int(length) for length in tensor.shape.numpy())
    return (second, first) if _transposed(node) else (first, second)


def _transposed(node: ir.Node) -> bool:
    attribute = node.attributes.get("transB")
    return attribute is not None and bool(attribute.as_int())


def _cost(node: ir.Node, weight: ir.Value) -> int:
    """Multiplications for a sample: the weights, for each place of what comes out."""
    shape = list(node.outputs[0].shape or ())
    places = shape[2:] if node.op_type == "Conv" else shape[1:-1]
    assert weight.const_value is not None
    return weight.const_value.size * math.prod(n for n in places if isinstance(n, int))


def _name(node: ir.Node) -> str:
    """What the network calls an operator: its weights, or the bias that is added to it."""
    uses = (use.node for use in node.outputs[0].uses())
    readers = [reader for reader in uses if reader.graph is node.graph]  # not merged ones
    added = [reader for reader in readers if reader.op_type == "Add"] if len(readers) == 1 else []
    values = [value for each in (node, *added) for value in each.inputs]
    names = [value.name for value in values if value is not None and value.is_initializer()]
    telling = [name for name in names if name and not _UNNAMED.match(name)]
    if not telling:
        return f"{node.op_type} {node.name}"
    return re.sub(r"\.(weight|bias)(#\d+)?$", "", telling[0])


def named(found: Sequence[Operator], patterns: Sequence[str]) -> set[str]:
    """The names of the operators in which a pattern is found, or in their kind, such as Conv.

    Raises:
        BackendError: a pattern matches none.
    """
    names: set[str] = set()
    for pattern in patterns:
        matching = {
            each.name for each in found if re.search(pattern, f"{each.node.op_type} {each.name}")
        }
        if not matching:
            raise BackendError(
                found=f"keep = {pattern!r} in the target's [quantise], which matches no operator",
                expected=f"part of the name of one that can be quantised, such as {found[0].name!r}"
                if found
                else "operators that can be quantised",
                remedy="fix or remove it; 'eecompile inspect' of an engine set lists the names",
            )
        names |= matching
    return names


def quantise(
    model: ir.Model,
    scheme: Scheme,
    ranges: Mapping[str, Range],
    kept: Collection[str] = (),
    *,
    switches: bool = False,
) -> None:
    """Quantise all operators of a graph but those that are kept. In place.

    Args:
        model: of all exits.
        scheme: types, and blocks.
        ranges: smallest and largest number of what operators read, by its name in the graph.
        kept: names of operators that stay as they are.
        switches: whether the graph gets an input of a truth value for each of its operators,
            kept or not: an operator computes quantised where its value is true.

    Raises:
        BackendError: the graph's opset has no such types.
    """
    graph = model.graph
    if (opset := graph.opset_imports.get("", 1)) < _OPSET:
        raise BackendError(
            found=f"graphs of opset {opset}, to be quantised",
            expected=f"opset {_OPSET} or newer",
            remedy="export the network's files again with a newer opset",
        )
    found, _ = operators(graph, scheme)
    place = _Placer(model, scheme, ranges)
    if switches:
        given = ir.Value(
            name=SWITCHES, shape=ir.Shape([len(found)]), type=ir.TensorType(ir.DataType.BOOL)
        )
        graph.inputs.append(given)
        place.switches = given
    for index, operator in enumerate(found):
        if operator.name not in kept:
            place.around(operator.node, index)
    unused = [name for name, value in graph.initializers.items() if not value.uses()]
    for name in unused:
        if not graph.initializers[name].is_graph_output():
            del graph.initializers[name]


class _Placer:
    """Places the pairs of one graph, and whatever they read."""

    def __init__(self, model: ir.Model, scheme: Scheme, ranges: Mapping[str, Range]) -> None:
        self._graph, self._scheme, self._ranges = model.graph, scheme, ranges
        self._read: dict[ir.Value, ir.Value] = {}
        self._turned: dict[ir.Value, ir.Value] = {}
        self._weights: dict[tuple[ir.Value, bool], ir.Value] = {}
        self.switches: ir.Value | None = None

    def around(self, node: ir.Node, index: int) -> None:
        """Have a node compute with what its operands are, quantised."""
        node = self._as_matmul(node) if node.op_type == "Gemm" else node
        value, weight = node.inputs[0], node.inputs[1]
        assert value is not None
        assert weight is not None
        if self._scheme.values is not None:
            if value not in self._read:
                self._read[value] = self._quantised_value(node, value)
            node.replace_input_with(0, self._chosen(node, index, value, self._read[value]))
        key = weight, node.op_type == "Conv"
        if key not in self._weights:
            self._weights[key] = self._quantised_weight(node, weight)
        node.replace_input_with(1, self._chosen(node, index, weight, self._weights[key]))

    def _as_matmul(self, node: ir.Node) -> ir.Node:
        """A Gemm as a product and a sum, which is how backends take weights by block."""
        value, weight, *rest = node.inputs
        assert weight is not None
        assert weight.const_value is not None
        if _transposed(node):
            if weight not in self._turned:
                turned = np.ascontiguousarray(weight.const_value.numpy().T)
                self._turned[weight] = self._weight(
                    f"{weight.name}.T", turned, weight.const_value.dtype
                )
            weight = self._turned[weight]
        product = self._insert(node, "MatMul", [value, weight], node.outputs[0])
        last = product
        if rest and rest[0] is not None:
            last = self._insert(node, "Add", [product.outputs[0], rest[0]], node.outputs[0])
        last.metadata_props.update(node.metadata_props)
        name = node.outputs[0].name
        ir.convenience.replace_all_uses_with(
            node.outputs[0], last.outputs[0], replace_graph_outputs=True
        )
        self._graph.remove(node, safe=True)
        last.outputs[0].name = name
        return product

    def _quantised_value(self, node: ir.Node, value: ir.Value) -> ir.Value:
        kind = self._scheme.values
        assert kind is not None
        assert value.dtype is not None
        assert value.name
        low, high = self._ranges[value.name]
        low, high = min(low, 0.0), max(high, 0.0)
        spread, levels = high - low, 255.0
        if kind != ir.DataType.UINT8:
            spread = max(-low, high)
            levels = _E4M3 if kind == ir.DataType.FLOAT8E4M3FN else 127.0
        scale = _scales(np.array(spread / levels, np.float32), value.dtype)
        zero = np.rint(-low / scale) if kind == ir.DataType.UINT8 else np.zeros(())
        reads = [
            self._weight(f"{value.name}.scale", scale, value.dtype),
            self._weight(f"{value.name}.zero", zero, kind),
        ]
        first = self._insert(node, "QuantizeLinear", [value, *reads], value)
        first.outputs[0].type = ir.TensorType(kind)
        return self._insert(node, "DequantizeLinear", [first.outputs[0], *reads], value).outputs[0]

    def _quantised_weight(self, node: ir.Node, weight: ir.Value) -> ir.Value:
        tensor = weight.const_value
        assert tensor is not None
        axis = 0 if node.op_type == "Conv" else 1
        numbers = tensor.numpy().astype(np.float32)
        codes, scales = weight_codes(numbers, self._scheme, axis, tensor.dtype)
        attributes = [ir.AttrInt64("axis", 0 if self._scheme.block else axis)]
        if self._scheme.block:
            attributes.append(ir.AttrInt64("block_size", self._scheme.block))
        reads = [
            self._weight(f"{weight.name}.{self._scheme.weights.name}", codes, self._scheme.weights),
            self._weight(f"{weight.name}.scales", scales, tensor.dtype),
        ]
        if self._scheme.values is not None:  # OpenVINO reads no FP8 without one
            zeros = np.zeros(scales.shape, np.float32)
            reads.append(self._weight(f"{weight.name}.zeros", zeros, self._scheme.weights))
        return self._insert(node, "DequantizeLinear", reads, weight, attributes).outputs[0]

    def _chosen(self, node: ir.Node, index: int, plain: ir.Value, other: ir.Value) -> ir.Value:
        """The quantised operand; with switches, whichever the operator's switch says."""
        if self.switches is None:
            return other
        where = self._weight(f"{SWITCHES}.{index}", np.array(index), ir.DataType.INT64)
        switch = self._insert(node, "Gather", [self.switches, where], self.switches).outputs[0]
        switch.shape = ir.Shape([])
        return self._insert(node, "Where", [switch, other, plain], plain).outputs[0]

    def _insert(
        self,
        before: ir.Node,
        operator: str,
        reads: Sequence[ir.Value | None],
        like: ir.Value,
        attributes: Sequence[ir.Attr] = (),
    ) -> ir.Node:
        node = ir.Node("", operator, reads, attributes)
        node.outputs[0].type, node.outputs[0].shape = like.type, like.shape
        self._graph.insert_before(before, node)
        return node

    def _weight(self, name: str, numbers: NDArray[Any], kind: ir.DataType) -> ir.Value:
        if name in self._graph.initializers:
            name = f"{name}#{len(self._graph.initializers)}"
        tensor = ir.tensor(numbers.astype(kind.numpy()), dtype=kind, name=name)
        value = ir.Value(
            name=name,
            const_value=tensor,
            type=ir.TensorType(kind),
            shape=ir.Shape(numbers.shape),
        )
        self._graph.register_initializer(value)
        return value


def weight_codes(
    numbers: Array, scheme: Scheme, axis: int, kind: ir.DataType = ir.DataType.FLOAT
) -> tuple[Array, Array]:
    """What weights become, as floats, and their scales: [channels], or [rows / block, columns].

    Args:
        numbers: the weights, float32; [rows, columns] where there are blocks, along the rows.
        scheme: of the target.
        axis: of the output channels.
        kind: type of the scales.
    """
    if scheme.block:
        rows, columns = numbers.shape
        parts = numbers.reshape(rows // scheme.block, scheme.block, columns)
        scales = _scales(np.abs(parts).max(1) / scheme.top, kind)
        codes = (parts / scales[:, None]).reshape(rows, columns)
    else:
        others = tuple(index for index in range(numbers.ndim) if index != axis)
        scales = _scales(np.abs(numbers).max(others) / scheme.top, kind)
        codes = numbers / scales.reshape([-1 if i == axis else 1 for i in range(numbers.ndim)])
    if scheme.weights == ir.DataType.FLOAT8E4M3FN:
        return codes, scales
    return np.clip(np.rint(codes), -scheme.top, scheme.top), scales


def _scales(wanted: Array, kind: ir.DataType) -> Array:
    """Scales that a type holds with all its digits; 1 where everything is 0."""
    smallest = float(ml_dtypes.finfo(kind.numpy()).tiny)  # type: ignore[no-untyped-call]
    scales: Array = np.where(wanted > 0, np.maximum(wanted, smallest), 1.0)
    return scales.astype(kind.numpy()).astype(np.float32)


def values_read(found: Sequence[Operator]) -> Iterator[ir.Value]:
    """What operators read, each once: whose ranges are needed."""
    yield from dict.fromkeys(each.node.inputs[0] for each in found if each.node.inputs[0])
