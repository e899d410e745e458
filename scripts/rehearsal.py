"""A GPU that is none: ``rehearsal.py COMMAND ...`` is ``eecompile COMMAND ...`` with one.

Engine sets of ONNX Runtime for CUDA open on the emulated device of the tests, and are evaluated
by ONNX Runtime on the CPU, in the precision of their graphs. All else is what runs on a GPU: memory
that is bound, kernels, graphs of whole trajectories.
"""

from __future__ import annotations

import os
import warnings
from functools import partial
from typing import Any

from tests.runtime.emulated import EmulatedDevice

from eecompile.measure import memory
from eecompile.measure.machine import Gpu
from eecompile.runtime.engines import device, onnxruntime_cuda

REHEARSES = "EECOMPILE_REHEARSAL" in os.environ


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
    changes: dict[str, Any] = {
        "OnnxRuntimeCudaEngine": RehearsedEngine,
        "PROVIDERS": dict.fromkeys(onnxruntime_cuda.PROVIDERS, cpu),
        "_providers": lambda *_: [cpu],
        "gpus": lambda: [Gpu("none", "8.9", 1 << 30, "", "")],
    }
    for name, value in changes.items():
        setattr(onnxruntime_cuda, name, value)
    devices: list[EmulatedDevice] = []

    def opened() -> EmulatedDevice:
        devices.append(EmulatedDevice())
        return devices[-1]

    device.open_device = opened  # type: ignore[assignment]
    memory.on_gpus = lambda: sum(a.size for d in devices for a in d.memory.values()) / 2**20


if __name__ == "__main__":
    from eecompile.__main__ import main

    rehearse()
    main()
