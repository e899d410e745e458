"""What the probes find: GPUs from recorded and fake sources, backends that fail by halves."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eecompile.backends import BACKENDS
from eecompile.doctor import examine as doctor
from eecompile.doctor import probes
from eecompile.doctor.probes import YES, Answer, Finding
from eecompile.measure import machine
from eecompile.measure.machine import Gpu, gpus_from_csv

# As nvidia-smi prints them, on drivers before and since 610.
TABLE = """NVIDIA RTX A4000, 8.6, 16376, 580.95.05
"NVIDIA RTX PRO 6000 Blackwell, Server Edition", 12.0, 97887, 580.95.05
"""
OLD_BANNER = "| NVIDIA-SMI 580.95.05    Driver Version: 580.95.05    CUDA Version: 13.0     |"
NEW_BANNER = "| NVIDIA-SMI 610.43.02    KMD Version: 610.43.02     CUDA UMD Version: 13.3   |"
TWO = (
    Gpu("NVIDIA RTX A4000", "8.6", 16376 << 20, "580.95.05", "13.0"),
    Gpu("NVIDIA RTX PRO 6000 Blackwell, Server Edition", "12.0", 97887 << 20, "580.95.05", "13.0"),
)


def test_two_gpus_from_the_csv_of_nvidia_smi() -> None:
    assert gpus_from_csv(TABLE, OLD_BANNER) == TWO
    assert {gpu.cuda for gpu in gpus_from_csv(TABLE, NEW_BANNER)} == {"13.3"}
    shared = gpus_from_csv("NVIDIA Thor, 11.0, [N/A], 580.00\nnoise\n", "")
    assert shared == (Gpu("NVIDIA Thor", "11.0", 0, "580.00", ""),)


def fake_smi(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def no_other_source(monkeypatch: pytest.MonkeyPatch, keep: str) -> None:
    sources = {name: source for name, source in machine._SOURCES.items() if name == keep}
    monkeypatch.setattr(machine, "_SOURCES", sources)


@pytest.mark.posix
def test_gpus_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_other_source(monkeypatch, "nvidia-smi")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_smi(tmp_path, f"if [ $# = 0 ]; then echo '{OLD_BANNER}'; else echo '{TABLE}'; fi")
    assert probes._gpus() == Finding(YES, YES, detail="nvidia-smi", gpus=TWO)
    fake_smi(tmp_path, "echo Failed to initialize NVML: version mismatch; exit 18")
    reason = "nvidia-smi: Failed to initialize NVML: version mismatch"
    assert probes._gpus().works.reason == reason
    assert probes._gpus().gpus == ()


def test_gpus_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801, N818 - pynvml's name
        pass

    def memory(device: int) -> Any:
        if device == 1:
            raise NVMLError("Not Supported")
        return SimpleNamespace(total=2**34)

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVMLError_LibraryNotFound=NVMLError_LibraryNotFound,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"580.95.05",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 12040,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetCudaComputeCapability=lambda device: (9, device),
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetName=lambda device: f"GPU {device}",
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    no_other_source(monkeypatch, "NVML")
    assert probes._gpus().gpus == (
        Gpu("GPU 0", "9.0", 2**34, "580.95.05", "12.4"),
        Gpu("GPU 1", "9.1", 0, "580.95.05", "12.4"),
    )

    def missing() -> None:
        raise NVMLError_LibraryNotFound

    nvml.nvmlInit = missing
    assert probes._gpus().works.reason == "no NVIDIA driver was found"


def fake_cuda(status: int) -> Any:
    """The driver's library, as ctypes shows it; ``status`` is what cuInit returns."""

    def put(target: Any, value: int) -> int:
        getattr(target, "_obj", target).value = value  # what byref points to
        return 0

    def attribute(target: Any, number: int, device: ctypes.c_int) -> int:
        return put(target, {75: 8, 76: 6 + device.value}[number])

    def name(buffer: Any, _: int, device: ctypes.c_int) -> int:
        buffer.value = f"GPU {device.value}".encode()
        return 0

    return SimpleNamespace(
        cuInit=lambda _: status,
        cuDeviceGetCount=lambda count: put(count, 2),
        cuDriverGetVersion=lambda version: put(version, 13020),
        cuDeviceGetName=name,
        cuDeviceTotalMem_v2=lambda memory, _: put(memory, 3 << 33),
        cuDeviceGetAttribute=attribute,
    )


def test_gpus_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    no_other_source(monkeypatch, "libcuda")
    monkeypatch.setattr(machine, "_driver", lambda: "580.95.05")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake_cuda(0))
    assert probes._gpus().gpus == (
        Gpu("GPU 0", "8.6", 3 << 33, "580.95.05", "13.2"),
        Gpu("GPU 1", "8.7", 3 << 33, "580.95.05", "13.2"),
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake_cuda(100))
    assert probes._gpus().works.reason == "libcuda: cuInit returned 100"


def test_no_gpu_is_a_normal_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    no_other_source(monkeypatch, "libcuda")
    finding = probes._gpus()
    assert finding.works == Answer(False, "no NVIDIA driver was found")
    assert finding.gpus == ()


# Backends that need a GPU, in place of which stands a fake library


class FakeSession:
    """A session that falls back to the CPU, as onnxruntime does, where ``loads`` is false."""

    def __init__(self, loads: bool, providers: Sequence[str]) -> None:
        self.providers = [*providers] if loads else ["CPUExecutionProvider"]

    def get_providers(self) -> list[str]:
        return self.providers

    def run(self, *_: object) -> None:
        pass


def fake_onnxruntime(monkeypatch: pytest.MonkeyPatch, loads: bool) -> None:
    fake = SimpleNamespace(
        __version__="1.31.1",
        __file__="/none/onnxruntime/__init__.py",
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        InferenceSession=lambda _, providers: FakeSession(loads, providers),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)


def test_what_precisions_are_worth_is_measured() -> None:
    pytest.importorskip("openvino")
    found = probes.PROBES["speeds"]()
    assert {"INT8"} <= set(found.speeds) <= {"BF16", "INT8"}
    assert all(speed > 0 for speed in found.speeds.values())


@pytest.mark.skipif(not machine.eight_bit_products(), reason="the CPU adds no products of 8 bits")
def test_what_is_measured_in_int8_is_computed_in_it() -> None:
    core = pytest.importorskip("openvino").Core()
    for quantised, expected in (True, {"i8", "u8"}), (False, {"f32"}):
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(probes._products(quantised), "CPU", options)
        infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        found = [i["runtimePrecision"].value for i in infos if "Full" in str(i["layerType"].value)]
        assert len(found) == 4
        assert set(found) <= expected


def test_a_cuda_provider_that_loads_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_onnxruntime(monkeypatch, loads=True)
    detail = "providers CUDA, CPU"
    assert probes.PROBES["onnxruntime-cuda"]() == Finding(YES, YES, "1.31.1", detail)


@pytest.mark.parametrize(
    ("loader", "reason", "remedy"),
    [
        ("libcublasLt.so.13: none", "libcublasLt.so.13: none", "onnxruntime-gpu[cuda,cudnn]"),
        ("libcuda.so.1: none", "libcuda.so.1: none", ""),
        ("", "it finds no GPU that it can use", ""),
    ],
)
def test_a_cuda_provider_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, loader: str, reason: str, remedy: str
) -> None:
    def load(path: str, mode: int) -> None:
        assert path.startswith("/none/onnxruntime/capi/libonnxruntime_providers_")
        if loader and path.endswith("cuda.so"):
            raise OSError(loader)

    fake_onnxruntime(monkeypatch, loads=False)
    monkeypatch.setattr(ctypes, "CDLL", load)
    finding = probes.PROBES["onnxruntime-cuda"]()
    assert finding.builds == YES  # which needs no provider
    assert finding.works.reason == f"its CUDA provider does not load: {reason}"
    assert finding.works.remedy == (f"pip install '{remedy}'" if remedy else "")
    assert finding.version == "1.31.1"


def test_onnxruntime_without_a_cuda_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        get_available_providers=lambda: ["CPUExecutionProvider"], __version__="1.31.1"
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    finding = probes.PROBES["onnxruntime-cuda"]()
    assert finding.works.reason == "this onnxruntime has no CUDA provider"
    assert "pip uninstall -y onnxruntime" in finding.works.remedy
    assert finding.builds == YES
    library = BACKENDS["onnxruntime-cuda"]
    without = doctor._status(library, finding, (), no_gpu=True)
    assert without.runs.remedy == doctor._NO_GPU  # other packages alone would not help
    assert without.runs.reason.endswith("no NVIDIA GPU")
    assert doctor._status(library, finding, (), no_gpu=False).runs == finding.works


def fake_tensorrt(fails: str) -> Any:
    """TensorRT that fails at a step: an object around nothing, whose use is an error."""

    class ILogger:
        ERROR = 1

    def make(name: str, logger: Any) -> Any:
        if fails == name:
            logger.log(1, f"createInfer{name}: (CUDA initialization failure with error: 35)")
            logger.log(1, "catchCudaError (cudaError 35: driver is too old (In x.cpp))")
            return SimpleNamespace()
        logger.log(3, "all is well")
        engine = SimpleNamespace(create_execution_context=object)
        layer = SimpleNamespace(get_output=lambda _: None)
        network = SimpleNamespace(
            add_input=lambda *_: None, add_activation=lambda *_: layer, mark_output=lambda _: None
        )
        return SimpleNamespace(
            create_network=lambda: network,
            create_builder_config=object,
            build_serialized_network=lambda *_: None if fails == "plan" else b"plan",
            deserialize_cuda_engine=lambda _: None if fails == "engine" else engine,
        )

    return SimpleNamespace(
        __version__="11.4",
        ILogger=ILogger,
        float32=None,
        ActivationType=SimpleNamespace(RELU=None),
        Builder=lambda logger: make("Builder", logger),
        Runtime=lambda logger: make("Runtime", logger),
    )


@pytest.mark.parametrize(
    ("fails", "builds", "runs"),
    [
        ("nothing", "", ""),
        ("Builder", "cudaError 35: driver is too old", None),
        ("plan", "it gives no reason", None),
        ("Runtime", "", "cudaError 35: driver is too old"),
        ("engine", "", "it gives no reason"),
    ],
)
def test_tensorrt_answers_step_by_step(
    monkeypatch: pytest.MonkeyPatch, fails: str, builds: str, runs: str | None
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(fails))
    finding = probes.PROBES["tensorrt"]()
    assert finding.builds.reason.strip() == builds
    assert finding.builds.yes == (not builds)
    assert finding.version == "11.4"
    if runs is not None:
        assert finding.works.reason.strip() == runs
        assert finding.works.yes == (not runs)


def test_the_lean_runtime_only_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = fake_tensorrt("nothing")
    del lean.Builder
    monkeypatch.setitem(sys.modules, "tensorrt_lean", lean)
    finding = probes.PROBES["tensorrt-lean"]()
    assert finding.works.yes
    assert "package tensorrt builds" in finding.builds.reason
    assert finding.builds.remedy == "pip install 'eecompile[tensorrt]'"


def test_the_graph_that_is_tried_is_valid() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(probes._RELU)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Relu"]


def test_cuda_core_is_tried_with_a_kernel_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import numpy as np

    from eecompile.runtime.cuda import device as module
    from tests.runtime.emulated import EmulatedDevice

    class Device(EmulatedDevice):
        def __enter__(self) -> Device:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

    core = SimpleNamespace(__version__="1.2")
    monkeypatch.setattr(module, "import_core", lambda: (core, None, None))
    monkeypatch.setattr(module, "open_device", lambda: pytest.fail("there is no GPU"))
    monkeypatch.setattr(probes, "gpus", lambda: ())
    assert probes.PROBES["cuda-core"]() == Finding(YES, YES, "1.2")
    made = Device()
    monkeypatch.setattr(module, "open_device", lambda: made)
    monkeypatch.setattr(probes, "gpus", lambda: ("one",))
    assert probes.PROBES["cuda-core"]() == Finding(YES, YES, "1.2")
    assert made.launched == ["fill"]
    monkeypatch.setattr(Device, "download", lambda *_: np.zeros(4))
    with pytest.raises(RuntimeError, match="where it should give ones"):
        probes.PROBES["cuda-core"]()
