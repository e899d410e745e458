"""Running plans: what is refused before a library is called, and how it is called."""

from __future__ import annotations

import ast
import importlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.errors import BackendError
from eecompile.measure.machine import Gpu, gpus
from eecompile.programs.choice import Choice, Exit, Forecast, Span
from eecompile.programs.interface import Condition, Interface, State
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.runtime.cuda.kernel_cache import KernelCache, cache_path
from eecompile.runtime.engines import onnxruntime_cuda, tensorrt
from eecompile.runtime.engines.tensorrt import (
    TensorrtEngine,
    check_gpu,
    check_validity,
    check_version,
    import_library,
)
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.trajectory.plan import Plan, Rows
from eecompile.store.bundle import open_engine_set, write_manifest
from eecompile.store.folders import make_marked
from eecompile.store.manifest import EngineManifest, ExitPlan, Segment
from eecompile.store.target import load_target
from tests.conftest import ROOT, Shared
from tests.runtime.emulated import EmulatedDevice

FLOAT = np.float32
L4 = Gpu("NVIDIA L4", "8.9", 24 << 30, "580.1", "13.0")
needs_no_gpu = pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
needs_gpu = pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")

# A network of two plans for each of two exits: h = x * (t + 1) + y, then h + depth.
SHAPE = (2, 3)
INTERFACE = Interface(
    name="n",
    exits=(2, 5),
    state=State(shape=SHAPE),
    conditions={"y": Condition(dtype="int64", default=0)},
)
SEGMENTS = (
    Segment(
        file="trunk.plan", inputs=("x", "t", "y"), outputs=("h", "p2"), exits=(2, 5), nodes=1,
        bytes=1, key="a",
    ),
    Segment(
        file="head.plan", inputs=("h",), outputs=("p5",), exits=(5,), nodes=1, bytes=1, key="b"
    ),
)  # fmt: skip


def manifest(
    name: str = "rtx-fp16", versions: dict[str, str] | None = None, **options: Any
) -> EngineManifest:
    target = load_target(ROOT / "engines" / f"{name}.toml")
    batch = msgspec.structs.replace(target.batch, min=1, opt=2, max=8)
    plans = (
        ExitPlan(depth=2, segments=(0,), outputs=("p2",), worst_error=0, mean_error=0,
                 relative_error=0),
        ExitPlan(depth=5, segments=(0, 1), outputs=("p5",), worst_error=0, mean_error=0,
                 relative_error=0),
    )  # fmt: skip
    return EngineManifest(
        interface=INTERFACE,
        target=msgspec.structs.replace(target, batch=batch, options=options),
        exits=plans,
        segments=SEGMENTS,
        files=(),
        versions=versions or {},
        verified="",
        bundle_digest="",
        fingerprint="f" * 64,
    )


# What fits what


@pytest.mark.parametrize(
    ("name", "built", "found", "options", "words"),
    [
        ("rtx-fp16", "1.7.1.116", "1.7.1.120", {}, ""),
        ("rtx-fp16", "1.7.1.116", "1.8.0.1", {}, r"tensorrt-rtx 1\.8.*expected version 1\.7\.1;"),
        ("rtx-fp16", "1.7.1.116", "1.7.2.1", {}, r"pip install 'tensorrt_rtx==1\.7\.1\.\*'"),
        ("tensorrt-fp16", "10.13.0.35", "10.13.3.9", {}, ""),
        ("tensorrt-fp16", "10.13.0.35", "10.14.0", {}, r"expected version 10\.13;.*build the"),
        ("tensorrt-fp16", "10.13.0.35", "11.4.0", {"version_compatible": True}, ""),
        ("tensorrt-fp16", "11.4.0", "10.13", {"version_compatible": True}, r"11\.4 or newer"),
        ("tensorrt-fp16", "", "10.13", {}, ""),
    ],
)
def test_plans_run_in_the_version_that_built_them(
    name: str, built: str, found: str, options: dict[str, Any], words: str
) -> None:
    key = "tensorrt_rtx" if name.startswith("rtx") else "tensorrt"
    given = manifest(name, {key: built}, **options)
    if not words:
        check_version(found, given)
        return
    with pytest.raises(BackendError, match=words):
        check_version(found, given)


BUILT = {"tensorrt": "10.13", "GPU": "NVIDIA L4", "compute capability": "8.9", "driver": "580"}


@pytest.mark.parametrize(
    ("name", "options", "gpu", "capability", "words"),
    [
        ("tensorrt-fp16", {}, "NVIDIA L4", "8.9", ""),
        ("tensorrt-fp16", {}, "NVIDIA A10", "8.6", "A10, compute capability 8.6; .*L4.* 8.9, for"),
        ("tensorrt-fp16", {"hardware_compatible": True}, "NVIDIA H100", "9.0", ""),
        ("tensorrt-fp16", {"hardware_compatible": True}, "T4", "7.5", "capability 8.0 or newer"),
        ("rtx-fp16", {}, "T4", "7.5", ""),
        ("rtx-fp16", {}, "V100", "7.0", "capability 7.5 or newer"),
        ("rtx-fp16", {"compute_capabilities": "8.6,8.9"}, "L4", "8.9", ""),
        ("rtx-fp16", {"compute_capabilities": "8.6,8.9"}, "H100", "9.0", "8.6 or 8.9, for which"),
    ],
)
def test_plans_run_on_the_gpus_that_they_were_built_for(
    name: str, options: dict[str, Any], gpu: str, capability: str, words: str
) -> None:
    given = manifest(name, BUILT, **options)
    if not words:
        check_gpu(gpu, capability, given)
        return
    with pytest.raises(BackendError, match=words):
        check_gpu(gpu, capability, given)


def test_another_gpu_of_the_same_kind_is_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "eecompile.runtime"):
        check_gpu("NVIDIA L40", "8.9", manifest("tensorrt-fp16", BUILT))
    assert "plans measured on NVIDIA L4 run on NVIDIA L40" in caplog.text


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(importlib, "import_module", missing)
    words = r"no usable package tensorrt_rtx .*'eecompile\[rtx-runtime\]'"
    with pytest.raises(BackendError, match=words):
        import_library(manifest().target)
    words = r"no usable package tensorrt \(tensorrt: no tensorrt\).*\[tensorrt-runtime\]"
    with pytest.raises(BackendError, match=words):
        import_library(manifest("tensorrt-fp16").target)


def test_the_lean_runtime_runs_version_compatible_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = SimpleNamespace(Runtime=object)
    stubs = SimpleNamespace()

    def found(name: str) -> Any:
        if name == "tensorrt_lean":
            return lean
        if name == "tensorrt":
            return stubs
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", found)
    assert import_library(manifest("tensorrt-fp16", version_compatible=True).target) is lean
    with pytest.raises(BackendError, match="tensorrt: no code in it"):
        import_library(manifest("tensorrt-fp16").target)


# Real plans


@pytest.fixture(scope="module")
def plans(rtx_set: Callable[[str], Path]) -> Path:
    """The shipped network's plans for TensorRT-RTX; not to be written to."""
    return rtx_set("fp32")


@needs_no_gpu
def test_without_a_gpu_plans_are_not_opened(plans: Path) -> None:
    words = r"found no NVIDIA GPU; .*tensorrt-rtx; .*engines/cpu\.toml"
    with pytest.raises(BackendError, match=words):
        Sampler.open(plans)


@needs_no_gpu
def test_without_a_driver_plans_are_not_opened(
    plans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "gpus", lambda: (L4,))
    with pytest.raises(BackendError, match="a GPU or driver that CUDA cannot use"):
        Sampler.open(plans)


def test_plans_of_another_version_are_not_opened(
    plans: Path, copied: Callable[[Path], Path]
) -> None:
    folder = copied(plans)
    other = msgspec.structs.replace(open_engine_set(folder), versions={"tensorrt_rtx": "1.2.0.54"})
    write_manifest(folder, other)
    words = r"found tensorrt-rtx [\d.]+, and plans built with 1\.2\.0\.54; expected version 1\.2\.0"
    with pytest.raises(BackendError, match=words):
        Sampler.open(folder)


@needs_no_gpu
def test_the_library_itself_says_whether_a_plan_will_run(plans: Path) -> None:
    library: Any = pytest.importorskip("tensorrt_rtx")
    runtime = library.Runtime(tensorrt._logger(library))
    with pytest.raises(BackendError, match=r"p\.plan, which tensorrt_rtx .*\(malformed engine\)"):
        check_validity(library, runtime, bytes(5000), "p.plan")
    path = plans / open_engine_set(plans).segments[0].file
    with pytest.raises(BackendError) as caught:
        check_validity(library, runtime, path.read_bytes(), path.name)
    assert "malformed" not in str(caught.value)
    assert re.search(r"\((.*(cuda|driver|capability).*)\)", str(caught.value))


def test_the_logger_keeps_errors_for_the_exceptions(caplog: pytest.LogCaptureFixture) -> None:
    library: Any = pytest.importorskip("tensorrt_rtx")
    logger = tensorrt._logger(library)
    assert tensorrt._logger(library) is logger, "the library keeps one for the process"
    logger.errors.clear()
    with caplog.at_level(logging.DEBUG, "eecompile.runtime"):
        logger.log(library.ILogger.Severity.ERROR, "bad")
        logger.log(library.ILogger.Severity.WARNING, "odd")
        logger.log(library.ILogger.Severity.VERBOSE, "dull")
    assert logger.errors == ["bad"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "DEBUG"]
    logger.errors.clear()


# How a library is called, with one that is none


class FakeLibrary:
    """As much of TensorRT-RTX as runs the two plans above on an emulated device."""

    __name__, __version__ = "fake_rtx", "1.7"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    CudaGraphStrategy = SimpleNamespace(DISABLED="off")
    EngineValidity = SimpleNamespace(VALID=0, SUBOPTIMAL=1, INVALID=2)
    EngineInvalidityDiagnostics = SimpleNamespace(__members__={"UNSUPPORTED_CC": 2})
    kinds = SimpleNamespace(
        float32=SimpleNamespace(itemsize=4, dtype=np.float32),
        int64=SimpleNamespace(itemsize=8, dtype=np.int64),
        float16=SimpleNamespace(itemsize=2, dtype=np.float16),
    )

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def __init__(self, device: EmulatedDevice, rtx: bool = True) -> None:
        self.device, self.rtx = device, rtx
        self.contexts: list[FakeContext] = []
        self.refuses = ""
        self.types = {"y": self.kinds.int64, "h": self.kinds.float16}
        self.cache = FakeCache()

    def nptype(self, kind: Any) -> Any:
        return kind.dtype

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - the library's own
        def opened(data: bytes) -> Any:
            if self.refuses == "plan":
                logger.log(1, "out of memory")
                return None
            return FakePlan(self, data.decode())

        runtime = SimpleNamespace(deserialize_cuda_engine=opened)
        if self.rtx:
            runtime.get_engine_validity = lambda data: (2 if self.refuses == "cc" else 0, 2)
        return runtime


class FakeCache:
    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(b"kernels"):
            return False
        self.kernels = data
        return True

    def serialize(self) -> bytes:
        return self.kernels


class FakePlan:
    def __init__(self, library: FakeLibrary, name: str) -> None:
        self.library, self.name = library, name
        self.device_memory_size_v2 = {"trunk": 1000, "head": 3000}[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"t": (-1,), "y": (-1,), "h": (-1, 6)}.get(name, (-1, *SHAPE))

    def get_tensor_dtype(self, name: str) -> Any:
        return self.library.types.get(name, self.library.kinds.float32)

    def create_runtime_config(self) -> Any:
        library = self.library
        config = SimpleNamespace(create_runtime_cache=lambda: library.cache)
        config.set_execution_context_allocation_strategy = lambda s: setattr(config, "memory", s)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, how: Any) -> FakeContext:
        if self.library.rtx:
            assert (how.memory, how.cuda_graph_strategy) == ("user", "off")
            assert how.dynamic_shapes_kernel_specialization_strategy == "eager"
            assert how.cache is self.library.cache
        else:
            assert how == "user"
        context = FakeContext(self)
        self.library.contexts.append(context)
        return context


class FakeContext:
    def __init__(self, plan: FakePlan) -> None:
        self.plan, self.library = plan, plan.library
        self.memory: tuple[int, int] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.places: dict[str, int] = {}
        self.runs = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.plan.device_memory_size_v2
        self.library.device.view(address, size, np.uint8)
        self.memory = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.runs, "a shape that changes cannot be captured"
        self.shapes[name] = shape
        return self.library.refuses != "shape"

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self.places[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self.runs) and stream == self.library.device.handle

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.library.device.handle
        assert self.memory
        self.runs += 1
        self.library.cache.kernels = b"kernels %d" % len(self.library.contexts)
        places = dict(self.places)
        self.library.device.queue(lambda: self.work(places))
        return self.library.refuses != "run"

    def work(self, places: Mapping[str, int]) -> None:
        see = self.library.device.view
        if self.plan.name == "trunk":
            rows = self.shapes["x"][0]
            assert self.shapes == {"x": (rows, *SHAPE), "t": (rows,), "y": (rows,)}
            x, t = see(places["x"], rows * 6).reshape(rows, 6), see(places["t"], rows)
            h = x * (t + 1)[:, None] + see(places["y"], rows, np.int64)[:, None]
            see(places["h"], rows * 6, np.float16)[:] = h.reshape(-1)
            see(places["p2"], rows * 6)[:] = h.reshape(-1) + 2
        else:
            (rows, _) = self.shapes["h"]
            see(places["p5"], rows * 6)[:] = see(places["h"], rows * 6, np.float16) + FLOAT(5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    made.mkdir()
    for name in ("trunk", "head"):
        (made / f"{name}.plan").write_text(name)
    return made


def opened(folder: Path, library: FakeLibrary, given: EngineManifest) -> TensorrtEngine:
    device: Any = library.device
    with device.using():
        return TensorrtEngine(folder, given, library, device)


def expected(depth: int, x: NDArray[Any], t: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    h = x * (t + 1).reshape(-1, 1, 1) + y.reshape(-1, 1, 1)
    return h + 2 if depth == 2 else h.astype(np.float16).astype(FLOAT) + 5


@pytest.fixture(autouse=True)
def no_logger_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(tensorrt._LOGGERS, "fake_rtx", raising=False)


@pytest.mark.parametrize("rtx", [True, False])
@pytest.mark.parametrize("depth", [2, 5])
def test_plans_hand_tensors_to_one_another(folder: Path, rtx: bool, depth: int) -> None:
    library = FakeLibrary(EmulatedDevice(), rtx)
    given = manifest("rtx-fp16" if rtx else "tensorrt-fp16")
    with opened(folder, library, given) as engine:
        draw = np.random.default_rng(0)
        for rows in (3, 8, 3):
            x = draw.normal(size=(rows, *SHAPE)).astype(FLOAT)
            t, y = draw.uniform(0, 5, rows).astype(FLOAT), draw.integers(0, 9, rows)
            (found,) = engine.evaluate(depth, x, t, {"y": y})
            np.testing.assert_allclose(found, expected(depth, x, t, y), rtol=1e-3)
    sizes = [
        context.shapes.get("x", context.shapes.get("h", ()))[0] for context in library.contexts
    ]
    assert sizes == ([3, 8] if depth == 2 else [3, 3, 8, 8]), "one context a plan and size"
    assert len({context.memory for context in library.contexts}) == 1, "activations are shared"
    assert library.device.closed


def test_a_trajectory_on_plans_is_captured_and_its_kernels_kept(folder: Path) -> None:
    library = FakeLibrary(EmulatedDevice())
    engine = opened(folder, library, manifest())
    terms = (Term("state", 0.5), Term("output", 0.1))
    steps = tuple(
        Step(Exit(d), t, (Term("state", 1.0),), (Update("state", terms),))
        for d, t in ((2, 1.5), (5, 0.5))
    )
    program = Program(solver="s", initial=1.0, steps=steps)
    plan = Plan(program=program, interface=INTERFACE, shape=SHAPE, size=3, guided=2)
    rows = Rows(
        seeds=np.arange(3, dtype=np.uint64),
        samples=np.zeros(3, np.uint64),
        scales=np.array([2, 3], FLOAT),
        conditions={"y": np.array([1, 2, 3, 0, 0])},
    )
    states = []
    with engine.trajectory(plan) as trajectory:
        for _ in range(2):
            trajectory.start(rows)
            trajectory.run()
            states.append(trajectory.state())
    np.testing.assert_array_equal(states[0], states[1])
    assert library.device.graphs == 1
    kept = folder.with_name("set.rtx-cache")
    assert kept.read_bytes().startswith(b"kernels"), "before anything is closed"
    engine.close()
    engine.close()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set", "set.rtx-cache"]


@pytest.mark.parametrize(
    ("refuses", "words"),
    [
        ("plan", r"trunk\.plan refused by fake_rtx 1\.7 \(out of memory\); .*free GPU memory"),
        ("cc", r"which tensorrt_rtx 1\.7 cannot run here \(unsupported cc\); .*CUDA provider"),
        ("shape", r"trunk\.plan refusing a batch of 2 \(it gives no reason\)"),
        ("run", r"trunk\.plan refusing a batch of 2"),
    ],
)
def test_what_the_library_refuses_is_a_sentence(folder: Path, refuses: str, words: str) -> None:
    library = FakeLibrary(EmulatedDevice())
    library.refuses = refuses
    x, t = np.zeros((2, *SHAPE), FLOAT), np.zeros(2, FLOAT)
    with pytest.raises(BackendError, match=words):
        opened(folder, library, manifest()).evaluate(2, x, t, {"y": np.zeros(2, np.int64)})


def test_plans_of_other_types_shapes_and_batches_are_refused(folder: Path) -> None:
    library = FakeLibrary(EmulatedDevice())
    engine = opened(folder, library, manifest())
    y = {"y": np.zeros(2, np.int64)}
    with pytest.raises(BackendError, match=r"samples of shape \[3, 3\]; expected \[2, 3\]"):
        engine.evaluate(2, np.zeros((2, 3, 3), FLOAT), np.zeros(2, FLOAT), y)
    given = manifest()
    batch = msgspec.structs.replace(given.target.batch, min=4, opt=4)
    few = msgspec.structs.replace(given, target=msgspec.structs.replace(given.target, batch=batch))
    with pytest.raises(BackendError, match="a batch of 2; expected 4 to 8"):
        opened(folder, library, few).evaluate(2, np.zeros((2, *SHAPE), FLOAT), np.zeros(2), y)
    library.types["y"] = library.kinds.float32
    with pytest.raises(BackendError, match=r"tensor y of type .* in trunk\.plan; expected int64"):
        opened(folder, library, manifest())


def test_an_engine_set_that_does_not_fit_into_memory_is_a_sentence(folder: Path) -> None:
    with pytest.raises(BackendError, match="no room for"):
        opened(folder, FakeLibrary(EmulatedDevice(limit=100)), manifest())


# The kernels that TensorRT-RTX compiled


def config(cache: FakeCache) -> Any:
    return SimpleNamespace(create_runtime_cache=lambda: cache)


def test_compiled_kernels_are_read_again_and_written_when_they_grow(folder: Path) -> None:
    kept = folder.with_name("set.rtx-cache")
    first = KernelCache(config(cache := FakeCache()), folder, manifest())
    first.save()
    assert not kept.exists(), "there is nothing to keep"
    cache.kernels = b"kernels 1"
    first.save()
    assert kept.read_bytes() == b"kernels 1"
    again = KernelCache(config(other := FakeCache()), folder, manifest())
    assert other.kernels == b"kernels 1"
    before = kept.stat().st_ino
    again.save()
    assert kept.stat().st_ino == before, "it is not written again"
    other.kernels = b"kernels 1 and 2"
    again.save()
    assert kept.read_bytes() == b"kernels 1 and 2"


@pytest.mark.parametrize("content", [b"garbage", b""])
def test_a_cache_that_the_library_refuses_is_replaced(folder: Path, content: bytes) -> None:
    kept = folder.with_name("set.rtx-cache")
    kept.write_bytes(content)
    known = KernelCache(config(cache := FakeCache()), folder, manifest())
    assert cache.kernels == b""
    cache.kernels = b"kernels"
    known.save()
    assert kept.read_bytes() == b"kernels"


def test_where_kernels_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_path(folder, "f" * 64) == folder.with_name("set.rtx-cache")
    make_marked(folder.with_name(".set.partial"))
    assert cache_path(folder.with_name(".set.partial") / "new", "f" * 64) is None
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "caches"))
    found = cache_path(folder, "f" * 64)
    assert found == folder / "caches" / "eecompile" / f"{'f' * 32}.rtx-cache"


def test_a_cache_that_cannot_be_written_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError("disk full")

    known = KernelCache(config(cache := FakeCache()), folder, manifest())
    cache.kernels = b"kernels"
    monkeypatch.setattr(Path, "replace", full)
    with caplog.at_level(logging.INFO, "eecompile.runtime"):
        known.save()
    assert "disk full" in caplog.text
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


@pytest.mark.posix
@pytest.mark.parametrize("how", ["writable", "link"])
def test_a_cache_that_another_user_may_have_written_is_neither_read_nor_replaced(
    folder: Path, how: str
) -> None:
    path, planted = folder.with_name("set.rtx-cache"), folder / "planted"
    planted.write_bytes(b"kernels of another")
    if how == "link":
        path.symlink_to(planted)
    else:
        planted.rename(path)
        path.chmod(0o666)
    known = KernelCache(config(cache := FakeCache()), folder, manifest())
    assert cache.kernels == b""
    cache.kernels = b"kernels"
    known.save()
    assert path.read_bytes() == b"kernels of another"
    assert path.is_symlink() == (how == "link")


# The contract with the real libraries

SOURCES = [Path(tensorrt.__file__), ROOT / "eecompile/runtime/cuda/kernel_cache.py"]
# Variables of these names hold objects of these classes; the library itself is "".
HOLDERS = {
    "library": "", "_library": "", "runtime": "Runtime", "_runtime": "Runtime",
    "engine": "ICudaEngine", "context": "IExecutionContext", "config": "IRuntimeConfig",
    "_cache": "IRuntimeCache", "strategies": "DynamicShapesKernelSpecializationStrategy",
    "severity": "ILogger.Severity",
}  # fmt: skip
RTX_ONLY = {
    "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "EngineValidity",
    "EngineInvalidityDiagnostics", "IRuntimeCache",
}  # fmt: skip
RTX_ONLY_MEMBERS = {
    "get_engine_validity", "create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy",
    "dynamic_shapes_kernel_specialization_strategy",
}  # fmt: skip
OURS = {"save", "attach", "append"}  # of the objects that _cache and the like hold elsewhere


def uses() -> dict[tuple[str, str], int | None]:
    """Class and attribute of all that is used of a library; a call's number of arguments."""
    found: dict[tuple[str, str], int | None] = {}
    for source in SOURCES:
        tree = ast.parse(source.read_text())
        calls = {id(n.func): len(n.args) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr in OURS:
                continue
            base, path = node.value, [node.attr]
            while isinstance(base, ast.Attribute) and base.attr not in HOLDERS:
                path.insert(0, base.attr)
                base = base.value
            name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
            if name in HOLDERS and not path[0].startswith("__"):
                found[HOLDERS[name], ".".join(path)] = calls.get(id(node))
    return found


def arities(function: Any) -> list[int]:
    """How many arguments each overload takes at most, by a pybind docstring."""
    text = re.sub(r"<[^<>]*>", "...", function.__doc__ or "")
    signatures = re.findall(rf"{function.__name__}\(self: [^\n]*?\) -> ", text)
    return [each.count(": ") - 1 for each in signatures]


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt_lean_bindings"])
def test_all_that_is_used_of_a_library_is_there(name: str) -> None:
    library: Any = pytest.importorskip(name)
    used = uses()
    assert {
        ("", "Runtime"),
        ("", "ExecutionContextAllocationStrategy.USER_MANAGED"),
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "device_memory_size_v2"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_device_memory"),
        ("IRuntimeConfig", "set_runtime_cache"),
        ("IRuntimeCache", "serialize"),
    } <= used.keys()
    for (kind, attribute), arguments in used.items():
        first = (kind or attribute).split(".")[0]
        if name != "tensorrt_rtx" and (first in RTX_ONLY or attribute in RTX_ONLY_MEMBERS):
            continue
        place = library
        for part in filter(None, [*kind.split("."), *attribute.split(".")]):
            if part.startswith("__"):
                break
            assert hasattr(place, part), f"{kind}.{attribute}"
            place = getattr(place, part)
        if arguments is not None and kind and "(self: " in (place.__doc__ or ""):
            assert arguments in arities(place), f"{kind}.{attribute} with {arguments}"
    if name == "tensorrt_rtx":
        assert hasattr(library.IExecutionContext, "is_stream_capturable")
        assert library.bfloat16.itemsize == 2
        assert tuple(library.Dims((-1, 3))) == (-1, 3)
        flags = [int(flag) for flag in library.EngineInvalidityDiagnostics.__members__.values()]
        assert all(flag & (flag - 1) == 0 for flag in flags), "they are single bits"


# ONNX Runtime


def on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ONNX Runtime's engine for GPUs, whose GPU is the host's memory."""
    runtime: Any = pytest.importorskip("onnxruntime")
    device: Any = EmulatedDevice()
    device.queue = lambda work: work()  # ONNX Runtime works when it is told to
    device.fails_to_capture = True
    monkeypatch.setattr(onnxruntime_cuda.OnnxRuntimeCudaEngine, "place", "cpu")
    monkeypatch.setattr(onnxruntime_cuda, "_providers", lambda *_: [("CPUExecutionProvider", {})])
    given = open_engine_set(folder)
    with device.using():
        return onnxruntime_cuda.OnnxRuntimeCudaEngine(folder, given, runtime, device, 1)


@pytest.mark.parametrize("layout", ["per_exit", "chained"])
def test_onnxruntime_is_bound_to_the_devices_memory(
    engine_sets: dict[str, Path], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = engine_sets[layout]
    arguments: dict[str, Any] = {"n": 3, "steps": 4, "seed": 5, "guidance": 3.0}
    with Sampler.open(folder) as host:
        expected = host.sample(**arguments)
        engine = on_the_cpu(folder, monkeypatch)
        with Sampler(engine, host.interface) as sampler:
            np.testing.assert_allclose(sampler.sample(**arguments), expected, atol=1e-4)
            np.testing.assert_allclose(sampler.sample(**arguments), expected, atol=1e-4)
            *_, last = sampler.steps(**arguments)
            np.testing.assert_allclose(last.state, expected, atol=1e-4)
    assert engine.device.closed
    assert engine.device.graphs == 0


def test_what_onnxruntime_refuses_is_a_sentence(
    engine_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = on_the_cpu(engine_sets["chained"], monkeypatch)
    shape = (2, *engine.interface.state.shape)
    engine.interface = msgspec.structs.replace(
        engine.interface, conditions={"label": Condition(dtype="float32", default=0.0)}
    )
    given = {"label": np.zeros(2, FLOAT)}
    with pytest.raises(BackendError, match=r"exit 3 failing with a batch of 2 .*float"):
        engine.evaluate(3, np.zeros(shape, FLOAT), np.zeros(2, FLOAT), given)


@needs_no_gpu
def test_onnxruntime_without_its_provider_is_a_sentence(bundle: Path, tmp_path: Path) -> None:
    target = load_target(ROOT / "engines" / "cuda-fp16.toml")
    given = msgspec.structs.replace(manifest("cuda-fp16"), target=target)
    with pytest.raises(BackendError, match=r"without CUDAExecutionProvider; .*eecompile\[gpu\]"):
        onnxruntime_cuda.open_cuda(tmp_path, given, 1)


# On a GPU, or on an emulated one (scripts/gpu --rehearse), with a small network


SMALL = "small_" if "EECOMPILE_REHEARSAL" in os.environ else ""


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Path:
    """The bundle of the network; not to be written to."""
    made: Path = request.getfixturevalue(f"{SMALL}bundle")
    return made


@pytest.fixture(scope="module", params=["rtx-fp32", "cuda-fp16"])
def on_gpu(request: pytest.FixtureRequest, served: Path, shared: Shared) -> Path:
    """The network for a GPU, chained; not to be written to."""
    return built_for_this_gpu(request.param, served, shared)


def built_for_this_gpu(name: str, bundle: Path, shared: Shared, layout: str = "chained") -> Path:
    """The engine set for a target; the test is skipped where TensorRT-RTX does not know the GPU."""
    if name.startswith("cuda"):
        runtime: Any = pytest.importorskip("onnxruntime")
        if onnxruntime_cuda.PROVIDERS["cuda"] not in runtime.get_available_providers():
            pytest.skip("no CUDA provider")
    target = load_target(ROOT / "engines" / f"{name}.toml")
    target = msgspec.structs.replace(target, name=f"{name}-{layout}", layout=layout)
    folder = shared(
        f"on-gpu-{target.name}", lambda place: engine_set_from_bundle(bundle, target, place)
    )
    try:
        Sampler.open(folder).close()
    except BackendError as error:
        if "unsupported cc" in str(error):
            pytest.skip(str(error))
        raise
    return folder


@pytest.fixture(scope="module")
def on_host(request: pytest.FixtureRequest) -> Path:
    made: Path = request.getfixturevalue("small_sets" if SMALL else "engine_sets")["chained"]
    return made


def tolerance(folder: Path) -> float:
    return 2e-3 if open_engine_set(folder).target.precision == "fp32" else 5e-2


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_samples_what_a_cpu_does(on_gpu: Path, on_host: Path) -> None:
    assert open_engine_set(on_gpu).verified == "the engines"
    with Sampler.open(on_gpu) as gpu, Sampler.open(on_host) as cpu:
        for solver in ("ddim", "ddpm"):
            for guidance in (1.0, 3.0):
                given: dict[str, Any] = {"n": 4, "steps": 10, "solver": solver, "seed": 3}
                given["guidance"] = guidance
                expected = cpu.sample(**given)
                for _ in range(3):  # step by step, then from the graph
                    found = gpu.sample(**given)
                    np.testing.assert_allclose(found, expected, atol=tolerance(on_gpu))


@pytest.mark.gpu
@needs_gpu
def test_the_graph_is_the_steps(on_gpu: Path) -> None:
    with Sampler.open(on_gpu) as sampler:
        sampler.sample(4, steps=10)
        replayed = sampler.sample(4, steps=10)
        *_, last = sampler.steps(4, steps=10)
        np.testing.assert_allclose(last.state, replayed, atol=1e-6)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_spans_and_forecasts_on_a_gpu_are_those_of_a_cpu(
    on_gpu: Path, on_host: Path, guidance: float
) -> None:
    """The tensors that spans keep stay on the GPU, in graphs too."""
    given: dict[str, Any] = {"n": 3, "seed": 2, "guidance": guidance}
    with Sampler.open(on_gpu) as gpu, Sampler.open(on_host) as cpu:
        (*_, half, deepest), ((start, stop), *_) = cpu.interface.exits, cpu.interface.spans
        last = next(depth for depth in cpu.interface.exits if depth >= stop)
        middle = [Span(start, stop, 1, deepest), Forecast(1), Exit(deepest)]
        choices = [*[Exit(deepest)] * 4, *middle, Span(start, stop, 2, last), Exit(half)]
        for solver in ("ddim", "dpmpp-2m"):
            program = chosen(cpu, choices, solver)
            expected = cpu.sample(solver=program, **given)
            for _ in range(3):  # step by step, then from the graph
                found = gpu.sample(solver=program, **given)
                np.testing.assert_allclose(found, expected, atol=tolerance(on_gpu))


@pytest.mark.gpu
@needs_gpu
def test_two_engine_sets_on_a_gpu_are_one_graph(
    on_gpu: Path, on_host: Path, served: Path, shared: Shared
) -> None:
    """A schedule changes between them; a forecast reads what either has predicted."""
    name = open_engine_set(on_gpu).target.name.removesuffix("-chained")
    other = built_for_this_gpu(name, served, shared, "per_exit")
    with Sampler.open(on_gpu, other) as both, Sampler.open(on_host) as cpu:
        *_, half, deepest = cpu.interface.exits
        samples: dict[str, list[Any]] = {}
        for sampler, second in ((cpu, ""), (both, both.engines[1])):
            choices = [Exit(deepest), Exit(deepest, second), Forecast(1), Exit(half, second)]
            program = chosen(sampler, choices)
            samples[second] = [sampler.sample(2, seed=4, solver=program) for _ in range(3)]
    expected, found = samples.values()
    for one, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, right, atol=tolerance(on_gpu))


def chosen(sampler: Sampler, choices: Sequence[Choice], solver: str = "ddim") -> Program:
    """A program with these choices, in the order in which steps are taken."""
    each = iter(choices)
    return sampler.program(solver, len(choices), "full").with_choices(lambda _: next(each))


@pytest.mark.gpu
@needs_gpu
def test_eight_threads_share_a_gpu(on_gpu: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with Sampler.open(on_gpu) as sampler:
        alone = [sampler.sample(3, steps=5, seed=seed) for seed in range(8)]
        with ThreadPoolExecutor(8) as pool:
            both = list(pool.map(lambda seed: sampler.sample(3, steps=5, seed=seed), range(8)))
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)


@pytest.mark.gpu
@needs_gpu
def test_compiled_kernels_are_kept_and_used(
    bundle: Path, shared: Shared, copied: Callable[[Path], Path]
) -> None:
    folder = copied(built_for_this_gpu("rtx-fp32", bundle, shared))
    kept = folder.with_name(f"{folder.name}.rtx-cache")
    with Sampler.open(folder) as sampler:
        first = sampler.sample(2, steps=3)
    assert kept.stat().st_size > 0
    before = kept.read_bytes()
    with Sampler.open(folder) as sampler:
        np.testing.assert_array_equal(sampler.sample(2, steps=3), first)
    assert len(kept.read_bytes()) == len(before)
    kept.write_bytes(b"garbage")
    with Sampler.open(folder) as sampler:
        np.testing.assert_array_equal(sampler.sample(2, steps=3), first)


@pytest.mark.gpu
@needs_gpu
def test_torch_takes_samples_without_a_copy_to_the_host(on_gpu: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch without CUDA")
    with Sampler.open(on_gpu) as sampler:
        expected = sampler.sample(2, steps=3)
        shared = torch.from_dlpack(sampler.sample_on_device(SampleRequest(n=2), steps=3))
    assert shared.is_cuda, "it outlives the engine"
    np.testing.assert_allclose(shared.cpu().numpy(), expected, atol=1e-5)
