"""What ``eecompile doctor`` asks of one library or device, each in a process of its own.

``python -m eecompile.doctor.probes NAME`` writes one :class:`Finding` as JSON to standard
output; what a library prints goes to standard error. Nothing here runs in the user's own
process: a library that does not fit the machine may crash its process, or never return.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from eecompile.backends import BACKENDS, Backend
from eecompile.children import die_with_parent
from eecompile.measure.machine import Gpu, gpus, search_gpus, short
from eecompile.measure.timing import interleaved
from eecompile.runtime.engines.openvino import import_openvino


class Answer(msgspec.Struct, frozen=True):
    """Yes; or no, why, and what to do about it."""

    yes: bool
    reason: str = ""
    remedy: str = ""


class Finding(msgspec.Struct, frozen=True):
    """A probe's result.

    Attributes:
        works: the library does its work here: a backend runs, a package imports.
        builds: a backend makes engines here.
        version: the library's own; empty when it could not be loaded.
        speeds: of matrix products over FP32's, by precision.
    """

    works: Answer
    builds: Answer
    version: str = ""
    detail: str = ""
    gpus: tuple[Gpu, ...] = ()
    speeds: dict[str, float] = {}


YES = Answer(True)


def failed(reason: str, remedy: str = "") -> Finding:
    """Neither works nor builds."""
    no = Answer(False, reason, remedy)
    return Finding(no, no)


SPEEDS = "speeds"  # a probe that is to run alone
_KEPT: list[object] = []
_WIDTH = 512  # of matrices that are multiplied
_CUDA = "CUDAExecutionProvider"
# y = Relu(x) of two floats as an ONNX graph (opset 13): trying a backend needs no onnx.
_RELU = bytes.fromhex(
    "08083a330a0c0a0178120179220452656c751201675a0f0a0178120a0a080801"
    "12040a020802620f0a0179120a0a08080112040a02080242040a00100d"
)


def _gpus() -> Finding:
    """The NVIDIA GPUs; to have none is a normal answer."""
    found = search_gpus()
    if found.gpus:
        return Finding(YES, YES, detail=found.source, gpus=found.gpus)
    return failed("; ".join(found.failures) or "no NVIDIA driver was found")


def library(backend: Backend) -> Finding:
    """Imports the library."""
    module = importlib.import_module(backend.library)
    return Finding(YES, YES, str(getattr(module, "__version__", "")))


def onnxruntime(backend: Backend) -> Finding:
    """Runs a graph: that a provider is listed does not mean that its libraries load."""
    ort = importlib.import_module(backend.library)
    provider = _CUDA if backend.gpu else "CPUExecutionProvider"
    available = ort.get_available_providers()
    detail = "providers " + ", ".join(name.removesuffix("ExecutionProvider") for name in available)
    if provider not in available:
        remedy = f"pip uninstall -y onnxruntime; {backend.install}"
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


def openvino(backend: Backend) -> Finding:
    """Runs a graph."""
    core = import_openvino().Core()  # which then sends no telemetry
    core.compile_model(core.read_model(_RELU), "CPU")([_example()])
    detail = f"devices {', '.join(core.available_devices)}"
    return Finding(YES, YES, metadata.version(backend.package), detail)


def _speeds() -> Finding:
    """How many times as fast as in FP32 OpenVINO multiplies matrices on the CPU, by precision.

    Instructions do not tell: a processor with AVX-512 BF16 but without AMX may be slower with it.
    """
    core = import_openvino().Core()
    kinds = {"FP32": ("f32", False), "BF16": ("bf16", False), "INT8": ("f32", True)}
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        del kinds["BF16"]
    requests = {}
    for name, (precision, quantised) in kinds.items():
        options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(_products(quantised), "CPU", options)
        requests[name] = partial(compiled.create_infer_request().infer, [_matrix()])
    taken = interleaved(requests, rounds=9).checked().seconds
    medians = {name: median(seconds) for name, seconds in taken.items()}
    whole = medians.pop("FP32")
    return Finding(YES, YES, speeds={name: whole / seconds for name, seconds in medians.items()})


def _products(quantised: bool) -> Any:
    """A model of four products of matrices, all factors in 8 bits where they are quantised."""
    import numpy as np

    ops = importlib.import_module("openvino.opset13")

    def few_bits(value: Any, size: float, levels: int) -> Any:
        low, high = np.float32(-size), np.float32(size)
        return ops.fake_quantize(value, low, high, low, high, levels)

    given = result = ops.parameter([_WIDTH, _WIDTH], np.float32)
    for _ in range(4):
        weights = ops.constant(_matrix())
        if quantised:
            result, weights = few_bits(result, 2, 256), few_bits(weights, 1, 255)
        result = ops.matmul(result, weights, False, True)
    return importlib.import_module("openvino").Model([result], [given])


def _matrix() -> Any:
    import numpy as np

    return np.random.default_rng(0).uniform(-1, 1, (_WIDTH, _WIDTH)).astype(np.float32)


def tensorrt(backend: Backend) -> Finding:
    """Builds an engine and opens it; TensorRT-RTX does the first without a GPU."""
    trt = importlib.import_module(backend.library)
    errors: list[str] = []

    def log(_: object, severity: Any, message: str) -> None:
        if int(severity) <= int(trt.ILogger.ERROR):
            errors.append(message)

    logger = type("Logger", (trt.ILogger,), {"log": log})()
    plan, builds = None, YES
    if backend.flavour_of:
        full = BACKENDS[backend.flavour_of]
        reason = f"it only runs engines, version-compatible ones that package {full.package} builds"
        builds = Answer(False, reason, full.install)
    else:
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


def _backend(backend: Backend) -> Finding:
    probe: Callable[[Backend], Finding] = pkgutil.resolve_name(backend.probe)
    return probe(backend)


PROBES: Mapping[str, Callable[[], Finding]] = {
    "gpus": _gpus,
    **{name: partial(_backend, backend) for name, backend in BACKENDS.items()},
    "cuda-core": _cuda_core,
    **{name: partial(_package, name) for name in ("torch", "onnx", "safetensors")},
    SPEEDS: _speeds,
}


def _main(name: str) -> None:
    die_with_parent()
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print to standard output, even from C
    try:
        finding = PROBES[name]()
    except Exception as error:
        finding = failed(short(f"{type(error).__name__}: {error}"))
    os.write(answers, msgspec.json.encode(finding))
    os._exit(0)  # a library that crashes as it is unloaded has answered all the same


if __name__ == "__main__":
    _main(sys.argv[1])
