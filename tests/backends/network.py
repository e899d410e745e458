"""A small network as ready-made ONNX files, and the same in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

EXITS = (1, 2, 3)
WIDTH = 512  # so that weights are most of an engine set
CLASSES = 10
RECIPE = f"""
name = "small"
[network]
files = ["exit-1.onnx", "exit-2.onnx", "exit-3.onnx"]
exits = {list(EXITS)}
costs = {list(EXITS)}
[state]
shape = [{WIDTH}]
[conditions.label]
dtype = "int64"
range = [0, {CLASSES - 1}]
default = "cycle"
[schedules]
mixed = [3, 1]
[sampling]
schedule = "mixed"
steps = 4
"""

_draws = np.random.default_rng(0)
BLOCKS = [
    (_draws.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32) for _ in EXITS
]
LABELS = _draws.standard_normal((CLASSES, WIDTH)).astype(np.float32)
_SCALE = np.float32(1e-3)


def predict(
    depth: int, x: NDArray[np.float32], t: NDArray[np.float32], label: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What the network gives at a depth."""
    hidden = x + LABELS[label]
    for block in BLOCKS[:depth]:
        hidden = np.tanh(hidden @ block)
    return hidden + t[:, None] * _SCALE


def write(folder: Path) -> Path:
    """Write the recipe and the files; returns the recipe."""
    for depth in EXITS:
        onnx.save(_exit(depth), folder / f"exit-{depth}.onnx")
    path = folder / "recipe.toml"
    path.write_text(RECIPE)
    return path


def _exit(depth: int) -> onnx.ModelProto:
    constants = {"labels": LABELS, "one": np.array([1]), "scale": _SCALE}
    nodes = [
        helper.make_node("Gather", ["labels", "label"], ["named"]),
        helper.make_node("Add", ["x", "named"], ["hidden0"]),
        helper.make_node("Unsqueeze", ["t", "one"], ["column"]),
        helper.make_node("Mul", ["column", "scale"], ["time"]),
    ]
    for index, block in enumerate(BLOCKS[:depth]):
        constants[f"block{index}"] = block
        nodes += [
            helper.make_node("MatMul", [f"hidden{index}", f"block{index}"], [f"product{index}"]),
            helper.make_node("Tanh", [f"product{index}"], [f"hidden{index + 1}"]),
        ]
    nodes.append(helper.make_node("Add", [f"hidden{depth}", "time"], ["output"]))
    state, batch = ["batch", WIDTH], ["batch"]
    graph = helper.make_graph(
        nodes,
        "exit",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, state),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, batch),
            helper.make_tensor_value_info("label", TensorProto.INT64, batch),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, state)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
