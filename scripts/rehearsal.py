"""A GPU that is none: ``rehearsal.py COMMAND ...`` is ``eecompile COMMAND ...`` with one.

Engine sets of ONNX Runtime for CUDA open on the emulated device of the tests, and are evaluated
by ONNX Runtime on the CPU, in the precision of their graphs. All else is what runs on a GPU: memory
that is bound, kernels, graphs of whole trajectories.
"""

from __future__ import annotations

import gzip
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import onnx

from eecompile.compiler.backends import onnxruntime as build
from eecompile.handle import Handle
from eecompile.measure import machine, memory
from eecompile.measure.machine import Gpu
from eecompile.runtime.cuda import device
from eecompile.runtime.engines import device as engines
from eecompile.runtime.engines import onnxruntime_cuda
from tests.runtime.emulated import EmulatedDevice

FEATURES = "features.onnx"
REHEARSES = "EECOMPILE_REHEARSAL" in os.environ


class RehearsedDevice(EmulatedDevice, Handle):
    """The tests' emulated device, for one thread at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = RLock()

    @contextmanager
    def using(self) -> Iterator[None]:
        with self.lock, super().using():
            yield


class RehearsedEngine(onnxruntime_cuda.OnnxRuntimeCudaEngine):
    """ONNX Runtime on the CPU, which works when the device comes to it."""

    place = "cpu"

    def enqueue(self, evaluation: Any) -> None:
        self.device.queue(partial(super().enqueue, evaluation))  # type: ignore[attr-defined]


def rehearse() -> None:
    """From here on, this process has an emulated GPU, if it is one of a rehearsal."""
    if not REHEARSES:
        return
    warnings.filterwarnings("ignore", "overflow encountered")  # FP16 on the host
    cpu = "CPUExecutionProvider"
    devices: list[EmulatedDevice] = []

    def opened() -> EmulatedDevice:
        devices.append(RehearsedDevice())
        return devices[-1]

    changes: dict[str, Any] = {
        "OnnxRuntimeCudaEngine": RehearsedEngine,
        "PROVIDERS": dict.fromkeys(onnxruntime_cuda.PROVIDERS, cpu),
        "_providers": lambda *_: [cpu],
        "gpus": lambda: (Gpu("none", "8.9", 1 << 30, "", ""),),
        "open_device": opened,
        "on_gpus": lambda: sum(a.size for d in devices for a in d.memory.values()) / 2**20,
    }
    for module in (memory, onnxruntime_cuda, build, engines, device):
        for name in changes.keys() & vars(module).keys():
            setattr(module, name, changes[name])


def tests(*arguments: str) -> int:
    """Run the tests marked ``gpu`` on the emulated one, but those of TensorRT-RTX."""
    import pytest

    rehearse()
    machine.gpus = onnxruntime_cuda.gpus  # as the tests import it
    return pytest.main([*arguments, "-k", "not rtx and not compiled_kernels"])


def pictures(folder: Path) -> Path:
    """Fashion-MNIST's files, of noise; and features.onnx, which takes 16 features of a picture."""
    if (folder / FEATURES).is_file():
        return folder
    draws = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, name, shape, most in (
        (part, *kind)
        for part in ("train", "t10k")
        for kind in (("images-idx3", (64, 28, 28), 256), ("labels-idx1", (64,), 10))
    ):
        head = np.array([0x0800 + len(shape), *shape], ">i4").tobytes()
        values = draws.integers(0, most, shape, np.uint8).tobytes()
        (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + values))
    weights = onnx.numpy_helper.from_array(draws.standard_normal((784, 16), np.float32), "w")
    nodes = [
        onnx.helper.make_node("Flatten", ["x"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 1, 28, 28]), ("y", ["n", 16]))
    ]
    graph = onnx.helper.make_graph(nodes, "features", ends[:1], ends[1:], [weights])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), folder / FEATURES)
    return folder


if __name__ == "__main__":
    from eecompile.__main__ import main

    if sys.argv[1] == "pytest":
        sys.exit(tests(*sys.argv[2:]))
    rehearse()
    main()
