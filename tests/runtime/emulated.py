"""A GPU that is none: the host's memory, and kernels.cu in NumPy or compiled for the host."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eecompile.programs.interface import Interface
from eecompile.runtime.cuda import device as module
from eecompile.runtime.cuda.device import KERNELS, out_of_memory
from eecompile.runtime.engines.device import DeviceEngine
from eecompile.runtime.protocol import Engine
from eecompile.runtime.trajectory.device import DeviceEvaluation
from eecompile.runtime.trajectory.plan import BoundEvaluation

Array = NDArray[np.float32]
SOURCE = Path(module.__file__).with_name("kernels.cu")
TYPES: dict[str, type] = {"Index": np.int64, "int": np.int32, "float": np.float32}
SHIM = """
#include <cmath>
using std::isfinite;
#define __global__
#define __device__
#define _Pragma(x)
struct Place { unsigned x; };
static Place blockIdx, threadIdx, blockDim, gridDim;
extern "C" void place(unsigned b, unsigned bs, unsigned t, unsigned ts)
{ blockIdx.x = b; gridDim.x = bs; threadIdx.x = t; blockDim.x = ts; }
static void atomicMin(int* at, int value) { if (value < *at) *at = value; }
"""


def parameters() -> dict[str, list[type]]:
    """Types of each kernel's parameters, as it is launched; ``int`` stands for a pointer."""
    text = re.sub(r"//.*", "", SOURCE.read_text())
    found = {}
    for name, listed in re.findall(r"__global__ void (\w+)\(([^)]*)\)", text):
        kinds = (" ".join(each.split()) for each in listed.split(","))
        found[name] = [int if "*" in kind else TYPES[kind.split()[0]] for kind in kinds]
    return found


def compiled(folder: Path) -> ctypes.CDLL:
    """kernels.cu as functions of the host."""
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(SHIM + SOURCE.read_text())
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


HALVES: tuple[type, ...] = (np.float32, np.float16, np.uint16)  # the last for bfloat16


def wide(array: NDArray[Any]) -> Array:
    """As float32; uint16 are bfloat16."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def bfloat16(array: Array) -> NDArray[np.uint16]:
    """Rounded to the nearest, halfway to even, as the upper half of a float32."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


class EmulatedGraph:
    def __init__(self, device: EmulatedDevice, work: list[Callable[[], None]]) -> None:
        self.device, self.work, self.closed = device, work, False

    def launch(self) -> None:
        assert not self.closed
        self.device.graphs += 1
        self.device.queued += self.work

    def close(self) -> None:
        self.closed = True


class EmulatedDevice:
    """Queues work, and does it only when it must; every access is checked."""

    name = "Emulated"
    compute_capability = "8.9"
    handle = 42
    ordinal = 0

    def __init__(self, library: ctypes.CDLL | None = None, limit: int = 1 << 30) -> None:
        self.library, self.limit = library, limit
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.queued: list[Callable[[], None]] = []
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs = self.depth = 0
        self.launched: list[str] = []
        self.closed = False
        self.fails_to_capture = False
        self.kinds = parameters()

    @contextmanager
    def using(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def queue(self, work: Callable[[], None]) -> None:
        assert self.depth, "the device is used without using()"
        (self.queued if self.capturing is None else self.capturing).append(work)

    def view(self, address: int, count: int, dtype: type = np.float32) -> NDArray[Any]:
        size = count * np.dtype(dtype).itemsize
        for base, array in self.memory.items():
            if base <= address and address + size <= base + array.size:
                piece = array[address - base :][:size]
                return piece.view(dtype)
        raise AssertionError(f"{size} bytes at {address} are not allocated")

    def allocate(self, size: int) -> int:
        assert self.depth
        used = sum(array.size for array in self.memory.values())
        if used + size > self.limit:
            raise out_of_memory(size, self.limit - used, self.limit)
        room = np.full(size + 256, 0xFF, np.uint8)  # NaN, until it is written
        start = -room.ctypes.data % 256
        array = room[start : start + size]
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def release(self, address: int) -> None:
        assert self.depth
        self.synchronize()
        self.memory.pop(address, None)

    def upload(self, address: int, array: NDArray[np.generic]) -> None:
        assert self.capturing is None
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
        self.queue(lambda: self._write(address, data))

    def _write(self, address: int, data: NDArray[np.uint8]) -> None:
        self.view(address, data.size, np.uint8)[:] = data

    def download(self, address: int, array: NDArray[np.generic]) -> None:
        assert self.capturing is None
        assert array.flags.c_contiguous
        self.synchronize()
        flat = array.reshape(-1).view(np.uint8)
        flat[:] = self.view(address, flat.size, np.uint8)

    def copy(self, target: int, source: int, size: int) -> None:
        self.queue(lambda: self._write(target, self.view(source, size, np.uint8).copy()))

    def synchronize(self) -> None:
        assert self.depth
        assert self.capturing is None
        while self.queued:
            self.queued.pop(0)()

    def launch(self, kernel: str, size: int, *arguments: int | np.generic) -> None:
        assert kernel in KERNELS
        assert size > 0
        assert [type(each) for each in arguments] == self.kinds[kernel], kernel
        self.launched.append(kernel)
        if self.library is None:
            self.queue(lambda: getattr(self, f"_{kernel}")(*arguments))
        else:
            self.queue(lambda: self._native(kernel, size, arguments))

    def _native(self, kernel: str, size: int, arguments: Sequence[Any]) -> None:
        assert self.library is not None
        wide = {int: ctypes.c_void_p, np.int64: ctypes.c_longlong}
        wide |= {np.int32: ctypes.c_int, np.float32: ctypes.c_float}
        function = getattr(self.library, kernel)
        function.argtypes = [wide[kind] for kind in self.kinds[kernel]]
        function.restype = None
        blocks, threads = 2, 3  # of which each takes many elements
        for block in range(blocks):
            for thread in range(threads):
                self.library.place(block, blocks, thread, threads)
                function(*(a if type(a) is int else a.item() for a in arguments))

    def _combine(self, out: int, base: int, n: int, twin: int, twins: int, *rest: Any) -> None:
        clip, low, high, terms, *pairs = rest
        total = self.view(pairs[0], n) * pairs[1]
        if base:
            total = self.view(base, n) + total
        for at in range(1, terms):
            total = total + self.view(pairs[2 * at], n) * pairs[2 * at + 1]
        if clip:
            total = np.clip(total, low, high)
        self.view(out, n)[:] = total
        if twins:
            self.view(twin, twins)[:] = total[:twins]

    def _blend(self, out: int, n: int, types: int, terms: int, *pairs: Any) -> None:
        kinds = [HALVES[types >> 2 * index & 3] for index in range(5)]
        total = np.float32(0)
        into = self.view(out, n, kinds[0])
        with np.errstate(all="ignore"):  # as on a GPU
            for at in range(terms):
                term = wide(self.view(pairs[2 * at], n, kinds[at + 1])) * pairs[2 * at + 1]
                total = total + term if at else term
            into[:] = bfloat16(total) if kinds[0] is np.uint16 else total

    def _fill(self, out: int, n: int, value: np.float32) -> None:
        self.view(out, n)[:] = value

    def _guide(self, given: int, without: int, scales: int, n: int, row: int, part: int) -> None:
        one, other = (self.view(at, n).reshape(-1, row)[:, :part] for at in (given, without))
        one[:] = (one - other) * self.view(scales, n // row)[:, None] + other

    def _deviate(
        self, out: int, noise: int, choice: int, n: int, low: np.float32, span: np.float32
    ) -> None:
        share = (self.view(choice, n) + np.float32(1)) * np.float32(0.5)
        self.view(out, n)[:] = self.view(noise, n) * np.exp(np.float32(0.5) * (share * span + low))

    def _inspect(self, values: int, n: int, step: np.int32, first: int) -> None:
        if not np.isfinite(self.view(values, n)).all():
            at = self.view(first, 1, np.int32)
            at[0] = min(at[0], step)

    def capture(self, work: Callable[[], None]) -> EmulatedGraph:
        if self.fails_to_capture:
            raise RuntimeError("an operation that cannot be captured")
        self.capturing = made = []
        try:
            work()
        finally:
            self.capturing = None
        return EmulatedGraph(self, made)

    def export(self, address: int, shape: Sequence[int]) -> object:
        self.synchronize()
        return self.view(address, int(np.prod(shape))).reshape(shape).copy()

    def close(self) -> None:
        with self.using():
            self.synchronize()
        self.memory.clear()
        self.closed = True


Predict = Callable[[int, Array, Array, Mapping[str, NDArray[Any]]], Sequence[Array]]


class EmulatedEngine(DeviceEngine):
    """Evaluates a function of arrays on an emulated device."""

    device: EmulatedDevice  # type: ignore[assignment]

    def __init__(
        self,
        interface: Interface,
        predict: Predict,
        device: EmulatedDevice | None = None,
        max_batch: int = 64,
        captures: bool = True,
    ) -> None:
        super().__init__(device or EmulatedDevice(), interface, "fp32", max_batch)
        self.predict, self.captures = predict, captures
        self.calls: list[tuple[int, int]] = []

    def settle(self) -> bool:
        return self.captures

    def enqueue(self, evaluation: DeviceEvaluation) -> None:
        depth, batch, inputs, outputs, tensors, _ = evaluation
        assert not tensors, "a function has no spans"
        rows = batch[0]
        assert rows <= self.max_batch
        self.calls.append((depth, rows))
        conditions = self.interface.conditions
        assert inputs.keys() == {"x", "t", *conditions}
        assert not any(at % 256 for at in (*inputs.values(), *outputs))

        def work() -> None:
            x = self.device.view(inputs["x"], int(np.prod(batch))).reshape(batch).copy()
            t = self.device.view(inputs["t"], rows).copy()
            given = {}
            for name, spec in conditions.items():
                shape = (rows, *spec.shape)
                dtype = np.dtype(spec.dtype).type
                array = self.device.view(inputs[name], int(np.prod(shape)), dtype)
                given[name] = array.reshape(shape).copy()
            made = self.predict(depth, x, t, given)
            for at, value in zip(outputs, made, strict=True):
                self.device.view(at, x.size)[:] = np.asarray(value, np.float32).reshape(-1)

        self.device.queue(work)


class HostedEngine(DeviceEngine):
    """Evaluates an engine of the host on an emulated device, whose memory its arrays are."""

    device: EmulatedDevice  # type: ignore[assignment]

    def __init__(self, host: Engine, interface: Interface, device: EmulatedDevice) -> None:
        super().__init__(device, interface, host.precision, host.max_batch)  # type: ignore[arg-type]
        self.host, self.spans = host, host.spans
        self.bound: dict[object, BoundEvaluation] = {}

    def settle(self) -> bool:
        return True

    def enqueue(self, evaluation: DeviceEvaluation) -> None:
        self.device.queue(lambda: self._evaluate(evaluation))

    def _evaluate(self, evaluation: DeviceEvaluation) -> None:
        depth, batch, inputs, outputs, tensors, stretch = evaluation
        key = (batch, *inputs.values(), *outputs, *tensors.values())
        if key not in self.bound:
            kinds = {n: (np.dtype(c.dtype), c.shape) for n, c in self.interface.conditions.items()}
            kinds |= {"x": (np.dtype(np.float32), batch[1:]), "t": (np.dtype(np.float32), ())}
            for each in (each for span in self.spans.values() for each in span):
                kinds |= {n: (np.dtype(each.dtype), each.shape) for n in (each.leaves, each.enters)}

            def array(name: str, at: int) -> NDArray[Any]:
                dtype, shape = kinds[name]
                shape = (batch[0], *shape)
                return self.device.view(at, int(np.prod(shape)), dtype.type).reshape(shape)

            given = {name: array(name, at) for name, at in inputs.items()}
            x, t = given.pop("x"), given.pop("t")
            results = [array("x", at) for at in outputs]
            crossing = {name: array(name, at) for name, at in tensors.items()}
            self.bound[key] = self.host.bind(x, t, given, results, crossing)
        self.bound[key](depth, stretch)
