"""BF16 by rounding: against torch, which computes in BF16 itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper

from eecompile.compiler.graph.emulation import emulate_bfloat16
from eecompile.compiler.graph.precision import first_non_finite
from eecompile.compiler.sessions import run_session, session_from_graph


def test_every_result_is_rounded_as_in_torch(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    weight, x = (draws.standard_normal((16, 16)).astype(np.float32) for _ in range(2))
    narrow = TensorProto.BFLOAT16
    small = torch.from_numpy(weight).bfloat16()
    raw = small.view(torch.int16).numpy().tobytes()
    stored = helper.make_tensor("w", narrow, [16, 16], raw, raw=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=narrow),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"]),
        helper.make_node("Add", ["c", "a"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16, 16])],
        [stored],
        value_info=[helper.make_tensor_value_info(n, narrow, [16, 16]) for n in "abcd"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    shown = ir.from_proto(model)
    emulate_bfloat16(shown)
    ir.save(shown, tmp_path / "shown.onnx")
    session = session_from_graph(tmp_path / "shown.onnx")
    (found,) = run_session(session, {"x": x}, ["y"])
    rounded = torch.from_numpy(x).bfloat16()
    expected = (torch.tanh(rounded @ small) + rounded).float().numpy()
    plain = np.tanh(x @ weight) + x
    assert np.abs(found - expected).max() <= 2**-6  # one unit in the last place, near 4
    assert np.mean(found == expected) > 0.98
    assert np.mean(found == plain) < 0.02


def test_the_first_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "one"], ["a"]),
        helper.make_node("Mul", ["a", "huge"], ["b"]),
        helper.make_node("Mul", ["b", "huge"], ["c"]),
        helper.make_node("Sub", ["c", "c"], ["y"]),
    ]
    values = {"one": 1.0, "huge": 1e30}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.float32(value), name) for name, value in values.items()],
        value_info=[helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "abc"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "g.onnx")
    point = {"x": np.ones(2, np.float32)}
    found = first_non_finite(tmp_path / "g.onnx", [point], tmp_path)
    assert found == "the output of Mul of weight 'huge' (tensor 'c')"
