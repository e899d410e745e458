"""What ``eecompile doctor`` asks of one library or device, each in a process of its own.

``python -m eecompile.probes NAME`` writes one :class:`Finding` as JSON to standard output;
what a library prints goes to standard error. Nothing here is asked in the process of the user
but :func:`gpus`, which the driver answers: a library that does not fit the machine may crash
its process, or never return.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from eecompile.runtime.openvino import import_openvino

__all__ = [
    "PROBES",
    "YES",
    "Answer",
    "Cpu",
    "Finding",
    "Gpu",
    "cpu",
    "gpus",
    "gpus_from_csv",
    "machine_facts",
    "short",
]


class Answer(msgspec.Struct, frozen=True):
    """Yes; or no, why, and what to do about it."""

    yes: bool
    reason: str = ""
    remedy: str = ""


class Cpu(msgspec.Struct, frozen=True):
    """The processor: cores that this process may use, instruction sets that matter."""

    model: str
    cores: int
    instructions: tuple[str, ...]


class Gpu(msgspec.Struct, frozen=True):
    """A GPU; ``cuda`` is the newest CUDA that its driver supports. Unknown: empty, or 0."""

    name: str
    compute_capability: str
    memory_bytes: int
    driver: str
    cuda: str


class Finding(msgspec.Struct, frozen=True):
    """A probe's result.

    Attributes:
        works: the library does its work here: a backend runs, a package imports.
        builds: a backend makes engines here.
        version: the library's own; empty when it could not be loaded.
    """

    works: Answer
    builds: Answer
    version: str = ""
    detail: str = ""
    gpus: tuple[Gpu, ...] = ()


YES = Answer(True)

_INSTRUCTIONS = {  # Linux's names for them
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "sve": "SVE",
    "bf16": "BF16",
}
_KEPT: list[object] = []
_LEAN = "it only runs engines, version-compatible ones that package tensorrt builds"
_CUDA = "CUDAExecutionProvider"
# y = Relu(x) of two floats as an ONNX graph (opset 13): trying a backend needs no onnx.
_RELU = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a080801"
    "12040a020802620f0a0179120a0a08080112040a02080242040a00100d"
)


def short(text: str, limit: int = 200) -> str:
    """A library's message as one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def cpu() -> Cpu:
    """The processor, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    rows: dict[str, str] = dict(re.findall(r"^([^\t:]+?)\s*: *(.*)$", text, re.MULTILINE))
    flags = rows.get("flags", rows.get("Features", "")).split()
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return Cpu(
        model=rows.get("model name") or platform.processor() or platform.machine(),
        cores=len(usable) or os.cpu_count() or 1,
        instructions=tuple(name for flag, name in _INSTRUCTIONS.items() if flag in flags),
    )


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs of this machine; none where there is no driver."""
    return _gpus().gpus


def _gpus() -> Finding:
    """The NVIDIA GPUs, from the first source that knows any; none is a normal answer."""
    failures = []
    for name, source in _SOURCES.items():
        try:
            gpus = source()
        except Exception as error:  # each library has errors of its own
            failures.append(f"{name}: {short(str(error))}")
        else:
            if gpus:
                return Finding(YES, YES, detail=name, gpus=gpus)
    no = Answer(False, "; ".join(failures) or "no NVIDIA driver was found")
    return Finding(no, no)


def _gpus_from_nvml() -> tuple[Gpu, ...]:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        return ()
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    cuda = _cuda_version(nvml.nvmlSystemGetCudaDriverVersion_v2())
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(device)
        memory = 0
        with contextlib.suppress(nvml.NVMLError):  # where the GPU shares the host's memory
            memory = nvml.nvmlDeviceGetMemoryInfo(device).total
        name = _text(nvml.nvmlDeviceGetName(device))
        gpus.append(Gpu(name, f"{major}.{minor}", memory, driver, cuda))
    return tuple(gpus)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _gpus_from_smi() -> tuple[Gpu, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    table = _smi(query, "--format=csv,noheader,nounits")
    return gpus_from_csv(table, _smi())


def _smi(*arguments: str) -> str:
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise RuntimeError(done.stdout.strip() or done.stderr.strip() or "it gives no reason")
    return done.stdout


def gpus_from_csv(table: str, banner: str) -> tuple[Gpu, ...]:
    """GPUs from nvidia-smi's CSV (name, compute_cap, memory.total, driver_version; MiB).

    Args:
        table: without header and units.
        banner: what plain ``nvidia-smi`` prints, which alone names the driver's CUDA.
    """
    # Since driver 610 it says "CUDA UMD Version".
    cuda = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+\.\d+)", banner)
    gpus = []
    for row in csv.reader(table.splitlines(), skipinitialspace=True):
        if len(row) == 4:
            name, capability, memory, driver = ("" if "N/A" in cell else cell for cell in row)
            size = int(memory) << 20 if memory.isdecimal() else 0
            gpus.append(Gpu(name, capability, size, driver, cuda[1] if cuda else ""))
    return tuple(gpus)


def _gpus_from_libcuda() -> tuple[Gpu, ...]:
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return ()

    def call(name: str, *arguments: Any) -> None:
        status = getattr(library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} returned {status}")

    call("cuInit", 0)
    count, version = ctypes.c_int(), ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    call("cuDriverGetVersion", ctypes.byref(version))
    gpus = []
    for device in map(ctypes.c_int, range(count.value)):  # ordinals are handles
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        major, minor = ctypes.c_int(), ctypes.c_int()
        call("cuDeviceGetName", name, len(name), device)
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)
        call("cuDeviceGetAttribute", ctypes.byref(minor), 76, device)
        capability, cuda = f"{major.value}.{minor.value}", _cuda_version(version.value)
        gpus.append(Gpu(name.value.decode(), capability, memory.value, _driver(), cuda))
    return tuple(gpus)


def machine_facts() -> dict[str, str]:
    """Public facts of this machine, for reports: processor, memory, system, GPUs."""
    facts = {"cpu": cpu().model, "cores": str(cpu().cores)}
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not on every system
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts["memory"] = f"{memory / 2**30:.0f} GiB"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["python"] = platform.python_version()
    if names := [gpu.name for gpu in gpus()]:
        facts["gpus"] = ", ".join(names)
    return facts


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", text)
    return found[1] if found else ""


_SOURCES = {
    "NVML": _gpus_from_nvml,
    "nvidia-smi": _gpus_from_smi,
    "libcuda": _gpus_from_libcuda,
}


def _onnxruntime(provider: str) -> Finding:
    """Runs a graph: that a provider is listed does not mean that its libraries load."""
    ort = importlib.import_module("onnxruntime")
    available = ort.get_available_providers()
    detail = "providers " + ", ".join(name.removesuffix("ExecutionProvider") for name in available)
    if provider not in available:
        remedy = "pip uninstall -y onnxruntime; pip install 'eecompile[gpu]'"
        no = Answer(False, "this onnxruntime has no CUDA provider", remedy)
        return Finding(no, YES, ort.__version__, detail)  # building needs no provider
    if provider == _CUDA and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # of the nvidia-* packages, which no search path names
    session = ort.InferenceSession(_RELU, providers=[provider])
    if session.get_providers()[0] != provider:  # it falls back to the CPU without an error
        missing = _missing(ort)
        pip = missing and "libcuda." not in missing  # that one comes with the driver
        remedy = "pip install 'onnxruntime-gpu[cuda,cudnn]'" if pip else ""
        missing = missing or "it finds no GPU that it can use"
        no = Answer(False, f"its CUDA provider does not load: {missing}", remedy)
        return Finding(no, YES, ort.__version__, detail)
    session.run(None, {"x": _example()})
    return Finding(YES, YES, ort.__version__, detail)


def _missing(ort: Any) -> str:
    """The system loader's complaint about the CUDA provider, if it has one."""
    folder = Path(ort.__file__).parent / "capi"
    try:
        for name in ("shared", "cuda"):
            path = folder / f"libonnxruntime_providers_{name}.so"
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return short(str(error))
    return ""


def _example() -> Any:
    import numpy as np

    return np.array([-1, 2], np.float32)


def _openvino() -> Finding:
    ov = import_openvino()  # which then sends no telemetry
    core = ov.Core()
    core.compile_model(core.read_model(_RELU), "CPU")([_example()])
    # It also lists BF16 where AVX-512 has to emulate it, which is slower than FP32.
    listed = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    native = any("BF16" in name for name in cpu().instructions)
    bf16 = ("native" if native else "emulated") if listed else "none"
    detail = f"devices {', '.join(core.available_devices)}; BF16 on the CPU: {bf16}"
    return Finding(YES, YES, metadata.version("openvino"), detail)


def _tensorrt(module: str) -> Finding:
    """Builds an engine and opens it; TensorRT-RTX does the first without a GPU."""
    trt = importlib.import_module(module)
    errors: list[str] = []

    def log(_: object, severity: Any, message: str) -> None:
        if int(severity) <= int(trt.ILogger.ERROR):
            errors.append(message)

    logger = type("Logger", (trt.ILogger,), {"log": log})()
    plan, builds = None, Answer(False, _LEAN, "pip install 'eecompile[tensorrt]'")
    if hasattr(trt, "Builder"):
        builder, builds = _step(lambda: trt.Builder(logger), errors, creates=True)
        if builds.yes:
            plan, builds = _step(lambda: _plan(trt, builder), errors)
    runtime, works = _step(lambda: trt.Runtime(logger), errors, creates=True)
    if works.yes and plan is not None:
        engine, works = _step(lambda: runtime.deserialize_cuda_engine(plan), errors)
        if works.yes:
            _, works = _step(engine.create_execution_context, errors)
    return Finding(works, builds, trt.__version__)


def _step(step: Callable[[], Any], errors: list[str], creates: bool = False) -> tuple[Any, Answer]:
    """What a step makes, and whether it did; its log says why not.

    Without a GPU, TensorRT creates objects around a null pointer: their methods crash, and
    so does deleting them. So an object that was created with errors is no success, and all
    are kept.
    """
    errors.clear()
    try:
        made = step()
    except Exception as error:
        errors.append(str(error))
        made = None
    _KEPT.append(made)
    if made is not None and not (creates and errors):
        return made, YES
    reason = errors[0] if errors else "it gives no reason"
    cuda = re.search(r"cudaError \d+: [^()]+", " ".join(errors))
    return None, Answer(False, short(cuda[0] if cuda else reason))


def _plan(trt: Any, builder: Any) -> Any:
    network = builder.create_network()
    x = network.add_input("x", trt.float32, (2,))
    network.mark_output(network.add_activation(x, trt.ActivationType.RELU).get_output(0))
    return builder.build_serialized_network(network, builder.create_builder_config())


def _cuda_core() -> Finding:
    """Runs a kernel where there is a GPU."""
    import numpy as np

    from eecompile.runtime.cuda.device import import_core, open_device

    core, *_ = import_core()
    if gpus():
        with open_device() as device, device.using():
            found, address = np.zeros(4, np.float32), device.allocate(16)
            device.launch("fill", 4, address, np.int64(4), np.float32(1))
            device.download(address, found)
            if found.tolist() != [1.0] * 4:
                raise RuntimeError(f"a kernel gives {found.tolist()} where it should give ones")
    return Finding(YES, YES, core.__version__)


def _package(module: str) -> Finding:
    importlib.import_module(module)
    return Finding(YES, YES)


PROBES: Mapping[str, Callable[[], Finding]] = {
    "gpus": _gpus,
    "onnxruntime": partial(_onnxruntime, "CPUExecutionProvider"),
    "onnxruntime-cuda": partial(_onnxruntime, _CUDA),
    "openvino": _openvino,
    "tensorrt": partial(_tensorrt, "tensorrt"),
    "tensorrt-rtx": partial(_tensorrt, "tensorrt_rtx"),
    "tensorrt-lean": partial(_tensorrt, "tensorrt_lean"),
    "cuda-core": _cuda_core,
    "torch": partial(_package, "torch"),
    "onnx": partial(_package, "onnx"),
    "safetensors": partial(_package, "safetensors"),
}


def _main(name: str) -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print to standard output, even from C
    try:
        finding = PROBES[name]()
    except Exception as error:
        no = Answer(False, short(f"{type(error).__name__}: {error}"))
        finding = Finding(no, no)
    os.write(answers, msgspec.json.encode(finding))
    os._exit(0)  # a library that crashes as it is unloaded has answered all the same


if __name__ == "__main__":
    _main(sys.argv[1])
