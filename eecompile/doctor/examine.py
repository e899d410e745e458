"""What can build and run on this machine, why the rest cannot, and what to install.

:func:`examine` starts a child process for every probe, all at once but the one that measures
time: a library that crashes or hangs costs its own answer only. ``python -m eecompile.doctor``
prints the report as JSON where the command line is not installed.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

import eecompile
from eecompile.backends import BACKENDS, FOR_OTHER_GPUS, Backend, install
from eecompile.doctor.children import ask, command
from eecompile.doctor.packages import OLD_DRIVER, Conflict, Packages, conflicts, installed, pip
from eecompile.doctor.probes import PROBES, SPEEDS, YES, Answer, Finding, failed
from eecompile.measure.machine import Cpu, Gpu, cpu

TIMEOUT = 60.0  # seconds, for all probes together: a first CUDA initialisation takes many


class BackendStatus(msgspec.Struct, frozen=True):
    """A backend: whether engines for it can be built here, and whether they run here."""

    name: str
    package: str
    version: str
    builds: Answer
    runs: Answer
    detail: str


class Tool(msgspec.Struct, frozen=True):
    """A package that the compiler uses, and for which commands."""

    name: str
    version: str
    purpose: str
    works: Answer


class MachineReport(msgspec.Struct, frozen=True):
    """All that ``eecompile doctor`` shows; ``no_gpu`` says why there is none.

    ``speeds`` are how many times as fast as in FP32 the CPU multiplies matrices, by precision,
    where OpenVINO is there to tell.
    """

    eecompile: str
    python: str
    system: str
    cpu: Cpu
    gpus: tuple[Gpu, ...]
    no_gpu: str
    backends: tuple[BackendStatus, ...]
    tools: tuple[Tool, ...]
    conflicts: tuple[Conflict, ...]
    speeds: dict[str, float] = {}

    @property
    def usable(self) -> tuple[str, ...]:
        """The backends that can run here."""
        return tuple(backend.name for backend in self.backends if backend.runs.yes)


class _Package(NamedTuple):
    """A package of the compiler; what is compiled has a probe, as importing it may fail."""

    name: str
    module: str
    purpose: str
    install: str


_PACKAGES = (
    _Package("torch", "torch", "export", "eecompile[export]"),
    _Package("onnxscript", "onnxscript", "export", "eecompile[export]"),
    _Package("onnx", "onnx", "export, build", "eecompile[build]"),
    _Package("onnx-ir", "onnx_ir", "export, build", "eecompile[build]"),
    _Package("safetensors", "safetensors", "export, build", "eecompile[build]"),
    _Package("filelock", "filelock", "build", "eecompile[build]"),
    _Package("nvidia-modelopt", "modelopt", "build in fp16 or bf16", "eecompile[precision]"),
    _Package("cuda-core", "cuda.core", "run on a GPU", "eecompile[cuda]"),
    _Package("polygraphy", "polygraphy", "build for TensorRT", "eecompile[rtx]"),
    _Package("diffusers", "diffusers", "its networks and schedulers", "diffusers"),
)
# What every build needs, whatever the backend.
_COMPILER = ("onnxruntime", "onnx", "onnx-ir", "safetensors", "filelock")
_NO_GPU = "use a machine with an NVIDIA GPU and its driver"


def examine(timeout: float = TIMEOUT) -> MachineReport:
    """Ask everything that is installed; what takes ``timeout`` seconds is hanging."""
    modules = {item.name: item.module for item in _PACKAGES}
    modules |= {name: backend.library for name, backend in BACKENDS.items()}
    present = {name for name, module in modules.items() if _importable(module)}
    asked = [name for name in PROBES if name in present or name == "gpus"]
    findings = ask({name: command(name) for name in asked}, timeout)
    speeds = {}
    if "openvino" in findings and findings["openvino"].works.yes:
        speeds = ask({SPEEDS: command(SPEEDS)}, timeout)[SPEEDS].speeds
    packages, gpus = installed(), findings["gpus"].gpus
    tools = tuple(_tool(item, present, findings, packages) for item in _PACKAGES)
    working = {tool.name for tool in tools if tool.works.yes}
    working |= {name for name, finding in findings.items() if finding.works.yes}
    lacking = [name for name in _COMPILER if name not in working]
    core = next(tool.works for tool in tools if tool.name == "cuda-core")
    return MachineReport(
        eecompile=eecompile.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu(),
        gpus=gpus,
        no_gpu="" if gpus else findings["gpus"].works.reason,
        backends=tuple(
            _status(backend, findings.get(name), lacking, not gpus, core)
            for name, backend in BACKENDS.items()
        ),
        tools=tools,
        conflicts=conflicts(packages, gpus),
        speeds=speeds,
    )


def _importable(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None  # a mere folder of that name has none


def _status(
    backend: Backend,
    finding: Finding | None,
    lacking: Sequence[str],
    no_gpu: bool,
    core: Answer = YES,
) -> BackendStatus:
    """What is known of a backend; ``core`` says whether cuda-core works."""
    if finding is None:
        finding = failed(f"{backend.package} is not installed", backend.install)
    builds, runs = finding.builds, finding.works
    if backend.gpu and no_gpu:
        # What a library that loads says of a missing GPU adds nothing.
        why = f"{runs.reason}; " if runs.remedy or not finding.version else ""
        # To exchange packages would not help by itself.
        remedy = _NO_GPU if finding.version else runs.remedy
        runs = Answer(False, f"{why}no NVIDIA GPU", remedy)
    elif backend.gpu and runs.yes and not core.yes:
        runs = Answer(False, f"cuda-core, which runs it: {core.reason}", core.remedy)
    if builds.yes and lacking:
        reason = f"the compiler lacks {', '.join(lacking)}"
        builds = Answer(False, reason, install("build"))
    remedy = pip(f"--force-reinstall {backend.package}")
    if finding.version and backend.gpu:
        remedy = _NO_GPU if no_gpu else OLD_DRIVER
        if "compute capability" in runs.reason:
            remedy = FOR_OTHER_GPUS
    builds, runs = (
        answer if answer.yes or answer.remedy else msgspec.structs.replace(answer, remedy=remedy)
        for answer in (builds, runs)
    )
    return BackendStatus(
        backend.name, backend.package, finding.version, builds, runs, finding.detail
    )


def _tool(
    package: _Package, present: set[str], findings: Mapping[str, Finding], packages: Packages
) -> Tool:
    version = packages[package.name].version if package.name in packages else ""
    works = Answer(False, "not installed", pip(package.install))
    if package.name in present:
        works = findings[package.name].works if package.name in findings else YES
    if not works.yes and not works.remedy:
        remedy = pip(f"--force-reinstall {package.name}")
        works = msgspec.structs.replace(works, remedy=remedy)
    return Tool(package.name, version, package.purpose, works)
