"""Pictures, and a small feature network, made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]


def garments(count: int, seed: int) -> Array:
    """Bright rectangles of chance sizes and places, float32 [count, 1, 28, 28] in [-1, 1]."""
    draws = np.random.default_rng(seed)
    made = np.full((count, 1, 28, 28), -1, np.float32)
    for picture in made[:, 0]:
        top, left, height, width = draws.integers((2, 2, 6, 6), (10, 10, 16, 16))
        picture[top : top + height, left : left + width] = draws.uniform(0, 1)
    return made


def noise(count: int, seed: int) -> Array:
    """Nothing but noise, shaped as :func:`garments`."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 1, 28, 28)).astype(np.float32)


def feature_network(path: Path, shape: tuple[int | str, ...] = ("n", 1, 28, 28)) -> Path:
    """A convolution of large stride and a ReLU, averaged over the picture by the reader."""
    kernel = np.random.default_rng(0).normal(size=(12, shape[1], 7, 7)).astype(np.float32) / 7
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["c"], strides=[7, 7]),
            helper.make_node("Relu", ["c"], ["features"]),
        ],
        "features",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    return save(graph, path)


def function(path: Path, kind: str, shape: tuple[int | str, ...], **attributes: int) -> Path:
    """A graph of one operator."""
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"], **attributes)],
        kind,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    return save(graph, path)


def save(graph: onnx.GraphProto, path: Path) -> Path:
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def quiet(phase: str, done: int = 0, total: int = 0) -> None:
    """A report that nobody reads."""


def idx(values: NDArray[np.uint8]) -> bytes:
    """An IDX file, as MNIST's pictures and labels are stored."""
    shape = np.array(values.shape, ">u4").tobytes()
    return bytes((0, 0, 8, values.ndim)) + shape + values.tobytes()
