"""Backends: one record each, from which everything else reads its facts.

A new backend is a record here, a module that builds its engines, a module that runs them, and a
target under ``engines/``. Nothing is imported until it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec


def install(extra: str) -> str:
    """The command that installs one of eecompile's extras."""
    return f"pip install 'eecompile[{extra}]'"


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a backend.

    Attributes:
        name: in targets, in reports, and for ``--peer``.
        library: the module that is imported, which also names it in a manifest's versions.
        package: the distribution that holds the library.
        extra: eecompile's extra that installs all that building and running need.
        runtime_extra: the extra that suffices to run engines; ``extra`` where it is empty.
        tools: further distributions that building needs, besides the compiler's own.
        precisions: that its engines can have.
        quantised: kinds of ``[quantise]`` that its engines can have.
        layouts: that its engines can have.
        build: module that builds, a :class:`eecompile.compiler.segments.BuildModule`.
        run: module that runs; its ``open_backend`` opens an engine set.
        probe: ``module:function``, what doctor asks of the library; given this record.
        companions: whether encoders and decoders can be built for it: ``run`` also has
            ``open_companion``.
        gpu: whether its engines run on NVIDIA GPUs only; cuda-core is then needed too.
        flavour_of: the backend of targets, where this is one way to build or run it.
        options: of such a target, with the values that choose this flavour.
        family: pattern of distributions that overwrite each other's files; its group, if it
            has one, is the version of CUDA that they are for.
        peer: whether ``eecompile compare`` can run the library by itself.
    """

    name: str
    library: str
    package: str
    extra: str
    runtime_extra: str = ""
    tools: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    quantised: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ("chained", "per_exit")
    build: str = ""
    run: str = ""
    probe: str = "eecompile.doctor.probes:library"
    companions: bool = False
    gpu: bool = False
    flavour_of: str = ""
    options: Mapping[str, tuple[str, ...]] = {}
    family: str = ""
    peer: bool = False

    @property
    def install(self) -> str:
        """The command that installs what building and running need."""
        return install(self.extra)

    @property
    def install_to_run(self) -> str:
        """The command that installs what running needs."""
        return install(self.runtime_extra or self.extra)


_ALL = (
    Backend(
        name="onnxruntime",
        library="onnxruntime",
        package="onnxruntime",
        extra="cpu",
        quantised=("int8", "int8-weights", "int4-weights"),
        build="eecompile.compiler.backends.onnxruntime",
        run="eecompile.runtime.engines.onnxruntime",
        companions=True,
        probe="eecompile.doctor.probes:onnxruntime",
        family=r"onnxruntime(?:-(?:gpu|openvino|directml|qnn|training))?",
        peer=True,
    ),
    Backend(
        name="onnxruntime-cuda",
        flavour_of="onnxruntime",
        options={"provider": ("cuda", "tensorrt")},
        library="onnxruntime",
        package="onnxruntime-gpu",
        extra="gpu",
        precisions=("fp32", "fp16"),
        build="eecompile.compiler.backends.onnxruntime",
        run="eecompile.runtime.engines.onnxruntime",
        companions=True,
        probe="eecompile.doctor.probes:onnxruntime",
        gpu=True,
    ),
    Backend(
        name="openvino",
        library="openvino",
        package="openvino",
        extra="openvino",
        precisions=("fp32", "bf16"),
        quantised=("int8", "int8-weights", "int4-weights"),
        build="eecompile.compiler.backends.openvino",
        run="eecompile.runtime.engines.openvino",
        companions=True,
        probe="eecompile.doctor.probes:openvino",
        peer=True,
    ),
    Backend(
        name="tensorrt",
        library="tensorrt",
        package="tensorrt",
        extra="tensorrt",
        runtime_extra="tensorrt-runtime",
        tools=("polygraphy",),
        precisions=("fp32", "fp16", "bf16"),
        quantised=("int8", "fp8"),
        build="eecompile.compiler.backends.tensorrt",
        run="eecompile.runtime.engines.tensorrt",
        probe="eecompile.doctor.probes:tensorrt",
        gpu=True,
        family=r"tensorrt-cu(\d+)",
        peer=True,
    ),
    Backend(
        name="tensorrt-rtx",
        library="tensorrt_rtx",
        package="tensorrt-rtx",
        extra="rtx",
        runtime_extra="rtx-runtime",
        tools=("polygraphy",),
        precisions=("fp32", "fp16", "bf16"),
        quantised=("int8", "fp8", "int4-weights"),
        build="eecompile.compiler.backends.tensorrt_rtx",
        run="eecompile.runtime.engines.tensorrt",
        probe="eecompile.doctor.probes:tensorrt",
        gpu=True,
        family=r"tensorrt-rtx-cu(\d+)",
        peer=True,
    ),
    Backend(
        name="tensorrt-lean",  # runs the version-compatible plans of tensorrt, and builds none
        flavour_of="tensorrt",
        library="tensorrt_lean",
        package="tensorrt-lean",
        extra="tensorrt-lean",
        precisions=("fp32", "fp16", "bf16"),
        run="eecompile.runtime.engines.tensorrt",
        probe="eecompile.doctor.probes:tensorrt",
        gpu=True,
        family=r"tensorrt-lean-cu(\d+)",
    ),
)
BACKENDS: Mapping[str, Backend] = {backend.name: backend for backend in _ALL}
"""Every backend by its name, in the order in which doctor shows them."""
TARGET_BACKENDS = tuple(backend.name for backend in _ALL if not backend.flavour_of)
"""Those that a target can name."""
PEERS = (
    *(backend.name for backend in _ALL if backend.peer and not backend.gpu),
    "torch.compile",
    *(backend.name for backend in _ALL if backend.peer and backend.gpu),
)
"""What people would use instead, by the names that ``--peer`` takes."""

if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[TARGET_BACKENDS]


def backend_from_target(name: str, options: Mapping[str, object]) -> Backend:
    """The record of a target's backend, or of the flavour that the target's options choose.

    Raises:
        KeyError: no backend has this name.
    """
    for backend in BACKENDS.values():
        chosen = [options.get(key) in values for key, values in backend.options.items()]
        if backend.flavour_of == name and any(chosen):
            return backend
    return BACKENDS[name]


def backend_from_library(module: str) -> Backend | None:
    """The first backend whose library is this module."""
    return next((each for each in BACKENDS.values() if each.library == module), None)


def packages(name: str) -> tuple[str, ...]:
    """The distributions whose versions matter where a backend evaluates, whichever are there."""
    backend = BACKENDS[name]
    same = [each.package for each in BACKENDS.values() if each.library == backend.library]
    return tuple(dict.fromkeys((*same, *backend.tools)))


FOR_OTHER_GPUS = (
    "run it on another GPU, or choose ONNX Runtime's CUDA provider or TensorRT "
    "(engines/cuda-fp16.toml, tensorrt-fp16.toml)"
)
"""The remedy where a library does not know the GPU's compute capability."""
