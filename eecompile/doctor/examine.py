"""What can build and run on this machine, why the rest cannot, and what to install.

:func:`examine` starts a child process for every probe, all at once: a library that crashes
or hangs costs its own answer only. ``python -m eecompile.doctor`` prints the report as JSON
where the command line is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

import eecompile
from eecompile.doctor.probes import PROBES, YES, Answer, Finding
from eecompile.handle import Handle
from eecompile.measure.machine import Cpu, Gpu, cpu, short

__all__ = ["TIMEOUT", "Backend", "Conflict", "Report", "Tool", "ask", "conflicts", "examine"]

TIMEOUT = 60.0  # seconds, for all probes together: a first CUDA initialisation takes many

Packages = Mapping[str, metadata.Distribution]


class Backend(msgspec.Struct, frozen=True):
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


class Conflict(msgspec.Struct, frozen=True):
    """Packages that do not go together; a ``note`` does no harm by itself."""

    kind: Literal["conflict", "note"]
    found: str
    remedy: str


class Report(msgspec.Struct, frozen=True):
    """All that ``eecompile doctor`` shows; ``no_gpu`` says why there is none."""

    eecompile: str
    python: str
    system: str
    cpu: Cpu
    gpus: tuple[Gpu, ...]
    no_gpu: str
    backends: tuple[Backend, ...]
    tools: tuple[Tool, ...]
    conflicts: tuple[Conflict, ...]

    @property
    def usable(self) -> tuple[str, ...]:
        """The backends that can run here."""
        return tuple(backend.name for backend in self.backends if backend.runs.yes)


class _Library(NamedTuple):
    """A library that a backend needs, and what to install for it."""

    name: str
    module: str
    package: str
    install: str
    nvidia: bool = False


class _Package(NamedTuple):
    """A package of the compiler; what is compiled has a probe, as importing it may fail."""

    name: str
    module: str
    purpose: str
    install: str


_LIBRARIES = (
    _Library("onnxruntime", "onnxruntime", "onnxruntime", "eecompile[cpu]"),
    _Library("onnxruntime-cuda", "onnxruntime", "onnxruntime-gpu", "eecompile[gpu]", True),
    _Library("openvino", "openvino", "openvino", "eecompile[openvino]"),
    _Library("tensorrt", "tensorrt", "tensorrt", "eecompile[tensorrt]", True),
    _Library("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx", "eecompile[rtx]", True),
    _Library("tensorrt-lean", "tensorrt_lean", "tensorrt-lean", "eecompile[tensorrt-lean]", True),
)
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
_OLD_DRIVER = "update the NVIDIA driver, or install the package for the driver's CUDA"
# Each of a family's packages writes the same files, so that the last one installed wins.
_FAMILIES = (
    r"onnxruntime(-(gpu|openvino|directml|qnn|training))?",
    r"tensorrt-cu\d+",
    r"tensorrt-rtx-cu\d+",
    r"tensorrt-lean-cu\d+",
)


def examine(timeout: float = TIMEOUT) -> Report:
    """Ask everything that is installed, at once; takes as long as the slowest.

    Args:
        timeout: seconds after which a library counts as hanging.
    """
    modules = {item.name: item.module for item in (*_LIBRARIES, *_PACKAGES)}
    present = {name for name, module in modules.items() if _importable(module)}
    asked = [name for name in PROBES if name in present or name == "gpus"]
    findings = ask({name: command(name) for name in asked}, timeout)
    packages, gpus = _installed(), findings["gpus"].gpus
    tools = tuple(_tool(item, present, findings, packages) for item in _PACKAGES)
    working = {tool.name for tool in tools if tool.works.yes}
    working |= {name for name, finding in findings.items() if finding.works.yes}
    lacking = [name for name in _COMPILER if name not in working]
    core = next(tool.works for tool in tools if tool.name == "cuda-core")
    return Report(
        eecompile=eecompile.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu(),
        gpus=gpus,
        no_gpu="" if gpus else findings["gpus"].works.reason,
        backends=tuple(
            _backend(library, findings.get(library.name), lacking, not gpus, core)
            for library in _LIBRARIES
        ),
        tools=tools,
        conflicts=conflicts(packages, gpus),
    )


def command(probe: str) -> list[str]:
    """The command line of a probe's child process."""
    return [sys.executable, "-P", "-m", "eecompile.doctor.probes", probe]


def ask(commands: Mapping[str, Sequence[str]], timeout: float) -> dict[str, Finding]:
    """Run child processes at once, and read each one's finding, or how it failed."""
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        children = {name: stack.enter_context(_Child(line)) for name, line in commands.items()}
        return {name: child.finding(deadline) for name, child in children.items()}


class _Child(Handle):
    """A child process; leaving the context ends it.

    Its output goes to files: a pipe would stay open as long as anything that it started.
    """

    def __init__(self, line: Sequence[str]) -> None:
        with ExitStack() as stack:
            self._out = stack.enter_context(tempfile.TemporaryFile())
            self._err = stack.enter_context(tempfile.TemporaryFile())
            # The same packages as here, whatever way this process came to see them.
            path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=self._err,
                env=os.environ | {"PYTHONPATH": path},
            )
            self._files = stack.pop_all()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # a driver may hold on to it for ever
            self._process.wait(1)
        self._files.close()

    def finding(self, deadline: float) -> Finding:
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return _failed("it hangs: no answer in time")
        self._out.seek(0)
        answer = self._out.read()
        try:
            return msgspec.json.decode(answer, type=Finding)
        except msgspec.DecodeError:
            pass
        if self._process.returncode != 0:
            return _failed(f"it {_end(self._process.returncode)}{self._last_words()}")
        return _failed(f"no answer but {short(answer.decode(errors='replace'), 60)!r}")

    def _last_words(self) -> str:
        self._err.seek(0)
        lines = self._err.read().decode(errors="replace").split("\n")
        words = next((line for line in reversed(lines) if line.strip()), "")
        return f": {short(words)}" if words else ""


def _failed(reason: str) -> Finding:
    no = Answer(False, reason)
    return Finding(no, no)


def _end(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    try:
        return f"crashed with {signal.Signals(-status).name}"
    except ValueError:
        return f"crashed with signal {-status}"


def _importable(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None  # a mere folder of that name has none


def _backend(
    library: _Library,
    finding: Finding | None,
    lacking: Sequence[str],
    no_gpu: bool,
    core: Answer = YES,
) -> Backend:
    """What is known of a backend; ``core`` says whether cuda-core works."""
    if finding is None:
        absent = Answer(False, f"{library.package} is not installed", _pip(library.install))
        finding = Finding(absent, absent)
    builds, runs = finding.builds, finding.works
    if library.nvidia and no_gpu:
        # What a library that loads says of a missing GPU adds nothing.
        why = f"{runs.reason}; " if runs.remedy or not finding.version else ""
        # To exchange packages would not help by itself.
        remedy = _NO_GPU if finding.version else runs.remedy
        runs = Answer(False, f"{why}no NVIDIA GPU", remedy)
    elif library.nvidia and runs.yes and not core.yes:
        runs = Answer(False, f"cuda-core, which runs it: {core.reason}", core.remedy)
    if builds.yes and lacking:
        reason = f"the compiler lacks {', '.join(lacking)}"
        builds = Answer(False, reason, _pip("eecompile[build]"))
    remedy = _pip(f"--force-reinstall {library.package}")
    if finding.version and library.nvidia:
        remedy = _NO_GPU if no_gpu else _OLD_DRIVER
    builds, runs = (
        answer if answer.yes or answer.remedy else msgspec.structs.replace(answer, remedy=remedy)
        for answer in (builds, runs)
    )
    return Backend(library.name, library.package, finding.version, builds, runs, finding.detail)


def _tool(
    package: _Package, present: set[str], findings: Mapping[str, Finding], packages: Packages
) -> Tool:
    version = packages[package.name].version if package.name in packages else ""
    works = Answer(False, "not installed", _pip(package.install))
    if package.name in present:
        works = findings[package.name].works if package.name in findings else YES
    if not works.yes and not works.remedy:
        remedy = _pip(f"--force-reinstall {package.name}")
        works = msgspec.structs.replace(works, remedy=remedy)
    return Tool(package.name, version, package.purpose, works)


def _pip(what: str) -> str:
    return f"pip install '{what}'" if re.search(r"[\[>]", what) else f"pip install {what}"


def _installed() -> dict[str, metadata.Distribution]:
    """What is installed, by normalised name; of two copies, the one that is imported."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        if "Name" in distribution.metadata:  # not in what a broken installation leaves
            found.setdefault(_normal(distribution.metadata["Name"]), distribution)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def conflicts(packages: Packages, gpus: Sequence[Gpu] = ()) -> tuple[Conflict, ...]:
    """What does not go together.

    Args:
        packages: distributions by normalised name.
        gpus: of this machine.
    """
    return (
        *_same_files(packages),
        *_too_old(packages),
        *_other_cuda(packages, gpus),
        *_hidden_gpus(gpus),
        *_one_tensorrt(packages),
    )


def _same_files(packages: Packages) -> Iterator[Conflict]:
    for family in _FAMILIES:
        names = sorted(name for name in packages if re.fullmatch(family, name))
        if len(names) > 1:
            both = " and ".join(names)
            remedy = f"pip uninstall -y {' '.join(names)}; pip install {names[-1]}"
            yield Conflict("conflict", f"{both} overwrite each other's files", remedy)


def _too_old(packages: Packages) -> Iterator[Conflict]:
    """What is older than eecompile's own requirements, in any extra, ask for."""
    if "eecompile" not in packages:
        return
    seen = set()
    for requirement in packages["eecompile"].requires or ():
        wanted = requirement.partition(";")[0]
        floor = re.search(r">=\s*([\d.]+)", wanted)
        name = _normal(re.split(r"[^\w.-]", wanted)[0])
        if floor is None or name not in packages or name in seen:
            continue
        seen.add(name)
        version = packages[name].version
        if _release(version) < _release(floor[1]):
            found = f"{name} {version}, where eecompile needs {floor[1]} or newer"
            yield Conflict("conflict", found, _pip(f"{name}>={floor[1]}"))


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _other_cuda(packages: Packages, gpus: Sequence[Gpu]) -> Iterator[Conflict]:
    driver = next((gpu.cuda for gpu in gpus if gpu.cuda), "")
    for name in packages:
        match = re.fullmatch(r"tensorrt(?:-rtx|-lean)?-cu(\d+)", name)
        if match and driver and int(driver.partition(".")[0]) < int(match[1]):
            found = f"{name} is for CUDA {match[1]}; the NVIDIA driver supports CUDA {driver}"
            yield Conflict("conflict", found, _OLD_DRIVER)


def _hidden_gpus(gpus: Sequence[Gpu]) -> Iterator[Conflict]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and visible is not None:
        yield Conflict(
            "note",
            f"CUDA_VISIBLE_DEVICES is {visible!r}: other GPUs are hidden",
            "unset CUDA_VISIBLE_DEVICES to use every GPU",
        )


def _one_tensorrt(packages: Packages) -> Iterator[Conflict]:
    if {"tensorrt", "tensorrt-rtx", "polygraphy"} <= packages.keys():
        yield Conflict(
            "note",
            "polygraphy uses tensorrt or tensorrt-rtx, one of them in a process",
            "set POLYGRAPHY_USE_TENSORRT_RTX=1 for tensorrt-rtx",
        )
