"""A GPU, as trajectories need it: memory, copies, kernels and graphs, all on one stream."""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.arrays import AnyArray, DeviceArray
from eecompile.errors import BackendError, one_line
from eecompile.handle import Handle

KERNELS = ("combine", "blend", "fill", "guide", "deviate", "inspect")
"""Names of the kernels in ``kernels.cu``, which describes them."""
_THREADS, _MOST_BLOCKS = 256, 4096
_STAGE = 8 << 20  # bytes of page-locked memory, through which copies go
_MIB = 2**20


def import_core() -> tuple[Any, Any, Any]:
    """The modules ``cuda.core``, ``cuda.bindings.driver`` and ``cuda.core.utils``."""
    names = ("cuda.core", "cuda.bindings.driver", "cuda.core.utils")
    try:
        core, driver, utils = map(importlib.import_module, names)
    except (ImportError, OSError) as error:
        raise BackendError(
            found=f"no usable package cuda-core ({_line(error)})",
            expected="it, to run engines on a GPU",
            remedy="pip install 'eecompile[cuda]'",
        ) from error
    return core, driver, utils


def open_device() -> CudaDevice:
    """The first GPU that CUDA shows this process (``CUDA_VISIBLE_DEVICES`` chooses).

    Raises:
        BackendError: cuda.core or the driver is missing, or there is no usable GPU.
    """
    modules = import_core()
    try:
        return CudaDevice(*modules)
    except BackendError:
        raise
    except Exception as error:  # its errors share no base class
        raise BackendError(
            found=f"a GPU or driver that CUDA cannot use ({_line(error)})",
            expected="an NVIDIA GPU, and a driver for the CUDA of package cuda-bindings",
            remedy="run 'eecompile doctor', which says what is missing",
        ) from error


def out_of_memory(wanted: int, free: int, total: int, reason: str = "") -> BackendError:
    """The error where a GPU has not ``wanted`` bytes left."""
    return BackendError(
        found=f"no room for {wanted / _MIB:,.1f} MiB on the GPU, which has {free / _MIB:,.1f} "
        f"of {total / _MIB:,.1f} MiB free{reason and f' ({reason})'}",
        expected="enough GPU memory for this batch",
        remedy="sample fewer at once, close what else uses the GPU, or build with a smaller "
        "batch.max",
    )


class CudaDevice(Handle):
    """A GPU with a stream: work is queued, and done in the order in which it was queued.

    Addresses are the device's. Methods are called within :meth:`using` only. Use
    :func:`open_device` to open one.

    Attributes:
        name: of the GPU.
        compute_capability: such as ``8.9``.
        ordinal: CUDA's number of the GPU.
    """

    def __init__(self, core: Any, driver: Any, utils: Any, ordinal: int = 0) -> None:
        self._core, self._driver, self._utils = core, driver, utils
        self.ordinal = ordinal
        self._lock = threading.RLock()
        self._buffers: dict[int, Any] = {}
        self._closed = False
        self._used = 0  # bytes of the stage that copies may still read
        with self._current():  # its errors say that there is no GPU, not that one fails
            device = core.Device(ordinal)
            self.name = str(device.name)
            major, minor = device.compute_capability
            self.compute_capability = f"{major}.{minor}"
            self.stream = device.create_stream()
            self._staged = device.create_event()
            pinned = core.LegacyPinnedMemoryResource()
            self._pinned = pinned.allocate(_STAGE, stream=self.stream)
            self._stage = np.ctypeslib.as_array(
                (ctypes.c_uint8 * _STAGE).from_address(int(self._pinned.handle))
            )
            code = (Path(__file__).parent / "kernels.ptx").read_bytes()
            self._code = core.ObjectCode.from_ptx(code)
            self._kernels = {name: self._code.get_kernel(name) for name in KERNELS}

    @property
    def handle(self) -> int:
        """Address of the stream, as other libraries take it."""
        return int(self.stream.handle)

    @contextmanager
    def using(self) -> Iterator[None]:
        """Make it this thread's alone; other threads wait. May be nested.

        Afterwards, the thread's former CUDA context is current.

        Raises:
            BackendError: on leaving, if what was done within failed on the GPU.
        """
        try:
            with self._current():
                yield
        except Exception as error:
            if not type(error).__module__.startswith("cuda."):
                raise
            raise BackendError(
                found=f"the GPU failing ({_line(error)})",
                expected="a GPU that does its work",
                remedy="open the engine set again; if it fails again, run 'eecompile doctor'",
            ) from error

    @contextmanager
    def _current(self) -> Iterator[None]:
        """As :meth:`using`, with cuda.core's own errors."""
        with self._lock:
            status, former = self._driver.cuCtxGetCurrent()
            known = int(status) == 0 and int(former) != 0
            try:
                self._core.Device(self.ordinal).set_current()
                yield
            finally:
                if known:
                    self._driver.cuCtxSetCurrent(former)

    def allocate(self, size: int) -> int:
        """Address of ``size`` new bytes, a multiple of 256.

        Raises:
            BackendError: there is not so much memory.
        """
        buffer = self._allocate(size)
        address = int(buffer.handle)
        self._buffers[address] = buffer
        return address

    def _allocate(self, size: int) -> Any:
        try:
            return self._core.Device(self.ordinal).allocate(size, stream=self.stream)
        except Exception as error:  # cuda.core names the status in the message only
            if "OUT_OF_MEMORY" not in str(error):
                raise
            _, free, total = self._driver.cuMemGetInfo()
            raise out_of_memory(size, int(free), int(total)) from error

    def release(self, address: int) -> None:
        """Give memory back, once the work that is queued is done; unknown addresses pass."""
        buffer = self._buffers.pop(address, None)
        if buffer is not None:
            buffer.close(self.stream)

    def upload(self, address: int, array: AnyArray) -> None:
        """Queue a copy of ``array`` to ``address``; the array may change at once."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for low in range(0, data.size, _STAGE):
            part = data[low : low + _STAGE]
            if self._used + part.size > _STAGE:
                self._staged.sync()  # copies before have read the page-locked memory
                self._used = 0
            self._stage[self._used : self._used + part.size] = part
            self.copy(address + low, int(self._pinned.handle) + self._used, part.size)
            self.stream.record(self._staged)
            self._used += part.size

    def download(self, address: int, array: AnyArray) -> None:
        """Fill ``array``, contiguous, with what is at ``address`` once all work is done."""
        data = array.reshape(-1).view(np.uint8)
        for low in range(0, data.size, _STAGE):
            part = data[low : low + _STAGE]
            self.copy(int(self._pinned.handle), address + low, part.size)
            self.stream.sync()
            self._used = 0
            part[:] = self._stage[: part.size]

    def copy(self, target: int, source: int, size: int) -> None:
        """Queue a copy of ``size`` bytes; one address may be that of page-locked memory."""
        wrap = self._core.Buffer.from_handle
        wrap(target, size).copy_from(wrap(source, size), stream=self.stream)

    def launch(self, kernel: str, size: int, *arguments: int | np.generic) -> None:
        """Queue one of :data:`KERNELS`.

        Args:
            kernel: its name.
            size: number of elements, for the number of threads.
            arguments: the kernel's; an ``int`` is an address, numbers are NumPy scalars.
        """
        blocks = min(-(-size // _THREADS), _MOST_BLOCKS)
        config = self._core.LaunchConfig(grid=blocks, block=_THREADS)
        self._core.launch(self.stream, config, self._kernels[kernel], *arguments)

    def synchronize(self) -> None:
        """Wait until all work is done."""
        self.stream.sync()

    def capture(self, work: Callable[[], None]) -> RecordedWork:
        """A graph of what ``work`` queues, which is not done now.

        Raises:
            BackendError: a library queued work of the host's, which may read memory that is
                gone when the graph is replayed.
        """
        builder = self.stream.create_graph_builder()
        # Relaxed: other threads, and libraries in this one, may go on allocating memory.
        builder.begin_building(mode="relaxed")
        try:
            work()
            if self._host_works():
                raise BackendError(
                    found="work of the host's among what is to be recorded",
                    expected="kernels, and copies within the GPU",
                    remedy="queue it step by step",
                )
            builder.end_building()
            return RecordedWork(builder.complete(), self.stream)
        finally:
            with suppress(Exception):  # what went wrong has been raised
                builder.close()

    def _host_works(self) -> bool:
        """Whether what the stream has recorded by now calls the host, or copies from or to it."""
        driver = self._driver
        found = driver.cuStreamGetCaptureInfo(self.handle)
        graph = next(each for each in found if isinstance(each, driver.CUgraph))
        _, _, count = driver.cuGraphGetNodes(graph)
        _, nodes, _ = driver.cuGraphGetNodes(graph, count)
        kinds, host = driver.CUgraphNodeType, driver.CUmemorytype.CU_MEMORYTYPE_HOST
        for node in nodes:
            _, kind = driver.cuGraphNodeGetType(node)
            if kind == kinds.CU_GRAPH_NODE_TYPE_HOST:
                return True
            if kind == kinds.CU_GRAPH_NODE_TYPE_MEMCPY:
                _, copy = driver.cuGraphMemcpyNodeGetParams(node)
                if host in (copy.srcMemoryType, copy.dstMemoryType):
                    return True
        return False

    def export(self, address: int, shape: Sequence[int]) -> DeviceArray:
        """A new float32 array of ``shape`` on the device, copied from ``address``.

        Returns:
            It speaks DLPack, with all work on it done; its
            memory is freed with the last array that shares it.
        """
        size = int(np.prod(shape)) * 4
        buffer = self._allocate(size)
        self.copy(int(buffer.handle), address, size)
        self.stream.sync()  # consumers have streams of their own
        if hasattr(buffer, "set_deallocation_stream"):  # newer versions of cuda.core have it
            # Whoever drops the array last does so at any time: freed on this stream, it could
            # be in use on the consumer's, or the freeing become part of a graph.
            buffer.set_deallocation_stream(self._core.LEGACY_DEFAULT_STREAM)
        made: DeviceArray = self._utils.StridedMemoryView.from_buffer(
            buffer, tuple(shape), dtype=np.dtype(np.float32)
        )
        return made

    def close(self) -> None:
        """Wait for the work, and release everything."""
        if self._closed:
            return
        with self.using():
            self._closed = True
            with suppress(Exception):  # a GPU that failed keeps failing
                self.stream.sync()
            for address in tuple(self._buffers):
                self.release(address)
            self._kernels.clear()
            self._pinned.close(self.stream)
            self._staged.close()
            self.stream.close()


class RecordedWork:
    """A CUDA graph, and the stream that it runs on."""

    def __init__(self, graph: Any, stream: Any) -> None:
        self._graph, self._stream = graph, stream

    def launch(self) -> None:
        """Do the work again, after what was queued before."""
        self._graph.launch(self._stream)

    def close(self) -> None:
        """Release it."""
        self._graph.close()


def _line(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
