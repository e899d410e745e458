"""Public facts of this machine: processor, memory, GPUs."""

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
from pathlib import Path
from typing import Any, NamedTuple

import msgspec


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


class GpuSearch(NamedTuple):
    """The NVIDIA GPUs that were found, the source that listed them, and why others did not."""

    gpus: tuple[Gpu, ...]
    source: str = ""
    failures: tuple[str, ...] = ()


_INSTRUCTIONS = {  # Linux's names for them
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimddp": "dot products",
    "sve": "SVE",
    "bf16": "BF16",
}


def short(text: str, limit: int = 200) -> str:
    """A library's message as one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def cpu() -> Cpu:
    """The processor, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
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


def eight_bit_products(processor: Cpu | None = None) -> str:
    """The processor's instructions that add products of 8 bits in 32; empty where it has none.

    Without them such products are added in pairs in 16 bits, which takes about as long as FP32,
    and saturates. ``processor`` is this machine's unless it is given.
    """
    known = ("AMX INT8", "AVX-512 VNNI", "AVX-VNNI", "dot products")
    return next((name for name in known if name in (processor or cpu()).instructions), "")


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs of this machine; none where there is no driver."""
    return search_gpus().gpus


def search_gpus() -> GpuSearch:
    """The NVIDIA GPUs, from the first source that lists any; none is a normal answer."""
    failures = []
    for name, source in _SOURCES.items():
        try:
            found = source()
        except Exception as error:  # each library has errors of its own
            failures.append(f"{name}: {short(str(error))}")
        else:
            if found:
                return GpuSearch(found, name)
    return GpuSearch((), failures=tuple(failures))


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
    table = smi(query, "--format=csv,noheader,nounits")
    return gpus_from_csv(table, smi())


def smi(*arguments: str) -> str:
    """What nvidia-smi prints.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: it is not there, or fails.
    """
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise RuntimeError(done.stdout.strip() or done.stderr.strip() or "it gives no reason")
    return done.stdout


def gpus_from_csv(table: str, banner: str) -> tuple[Gpu, ...]:
    """GPUs from nvidia-smi's CSV (name, compute_cap, memory.total, driver_version; MiB).

    The ``banner`` is what plain ``nvidia-smi`` prints, which alone names the driver's CUDA.
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
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", text)
    return found[1] if found else ""


_SOURCES = {
    "NVML": _gpus_from_nvml,
    "nvidia-smi": _gpus_from_smi,
    "libcuda": _gpus_from_libcuda,
}
