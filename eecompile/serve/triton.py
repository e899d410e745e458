"""A model repository for Triton Inference Server: https://github.com/triton-inference-server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import eecompile
from eecompile.backends import Backend, backend_from_target
from eecompile.errors import OutputExistsError, UsageError
from eecompile.programs.interface import Interface
from eecompile.runtime.opening import manifests_by_target
from eecompile.store.folders import new_folder
from eecompile.store.manifest import EngineManifest

STREAM = "_stream"
"""What the name of the model that holds the engines ends in."""
_ASKED = (
    ("n", "INT32", "1"),
    ("seed", "UINT64", "1"),
    ("first", "UINT64", "1"),
    ("solver", "STRING", "1"),
    ("steps", "INT32", "1"),
    ("schedule", "STRING", "1"),
    ("guidance", "FP32", "-1"),
    ("guidance_interval", "FP32", "2"),
    ("shape", "INT64", "-1"),
    ("deadline", "FP32", "1"),
)
_PROMPTS = (("prompt", "STRING", "-1"), ("negative", "STRING", "-1"))
_LATENTS = ("latents", "BOOL", "1")
_PREVIEW = ("preview", "BOOL", "1")
_TOLD = (
    ("final", "BOOL", "1"),
    ("step", "INT32", "1"),
    ("choice", "STRING", "1"),
    ("rows", "INT32", "-1"),
)
_DTYPES = {"int64": "INT64", "float32": "FP32"}
_MODEL = '''\
"""Written by 'eecompile triton' of eecompile {version}."""

from eecompile.serve.{module} import {name} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def repository_from_engines(
    engines: Sequence[Path], output: Path, *, max_n: int = 64, concurrent: int = 8
) -> tuple[str, str]:
    """Write a model repository that a stock Triton with its Python backend serves.

    It holds two models. ``NAME_stream`` has the engines: it answers in as many responses as
    there are (Triton calls it decoupled), and a :class:`eecompile.serve.Scheduler` lets its
    requests join one another. ``NAME`` hands requests to it, and gives one response.

    Args:
        engines: engine sets of one bundle, which are copied.
        output: the repository, a new folder.
        max_n: most samples of one request.
        concurrent: requests of ``NAME`` that are under way at once, each in a process of its own.

    Returns:
        The names of the two models.

    Raises:
        BundleError: a folder is no intact engine set.
        OutputExistsError: ``output`` exists.
        UsageError: the engine sets are not of one bundle, or a condition has a name of Triton's
            inputs.
    """
    if os.path.lexists(output):
        raise OutputExistsError(
            found=f"{output}, which exists",
            expected="a place for a new model repository",
            remedy="choose another place, or remove what is there yourself",
        )
    manifests = manifests_by_target(list(engines), None)
    interface = next(iter(manifests.values())).interface
    _check_names(interface)
    name, stream = interface.name, interface.name + STREAM
    with new_folder(output, replaces=False) as folder:
        _write_model(folder / name, "triton_front", "UnaryModel")
        _write_model(folder / stream, "triton_model", "StreamModel")
        for path, target in zip(engines, manifests, strict=True):
            shutil.copytree(path, folder / stream / "1" / "engines" / target)
        texts = {
            f"{name}/config.pbtxt": _front_config(name, interface, concurrent),
            f"{stream}/config.pbtxt": _stream_config(stream, interface, manifests.values(), max_n),
            f"{stream}/requirements.txt": _requirements(interface, manifests.values()),
        }
        for place, text in texts.items():
            (folder / place).write_text(text, "utf-8")
    return name, stream


def _write_model(folder: Path, module: str, name: str) -> None:
    (folder / "1").mkdir(parents=True)
    text = _MODEL.format(version=eecompile.__version__, module=module, name=name)
    (folder / "1" / "model.py").write_text(text, "utf-8")


def _front_config(name: str, interface: Interface, concurrent: int) -> str:
    return "".join(
        (
            _head(name),
            _tensors("input", _inputs(interface)),
            _tensors("output", [_samples(interface)]),
            f"instance_group [ {{ kind: KIND_CPU count: {concurrent} }} ]\n",
            _parameter("stream", name + STREAM),
        )
    )


def _stream_config(
    name: str, interface: Interface, manifests: Iterable[EngineManifest], max_n: int
) -> str:
    kind = "KIND_GPU" if any(each.gpu for each in _backends(manifests)) else "KIND_CPU"
    return "".join(
        (
            _head(name),
            "model_transaction_policy { decoupled: true }\n",
            _tensors("input", [*_inputs(interface), _PREVIEW]),
            _tensors("output", [_samples(interface), *_TOLD]),
            f"instance_group [ {{ kind: {kind} count: 1 }} ]\n",
            _parameter("max_n", str(max_n)),
        )
    )


def _head(name: str) -> str:
    return f'name: {json.dumps(name)}\nbackend: "python"\nmax_batch_size: 0\n'


def _parameter(key: str, value: str) -> str:
    return (
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}\n"
    )


def _inputs(interface: Interface) -> Iterator[tuple[str, str, str]]:
    """Name, type and dimensions of each input; conditions may have a value for each sample."""
    yield from _asked(interface)
    for name, spec in interface.conditions.items():
        dims = ", ".join(map(str, (-1, *spec.shape)))
        yield name, _DTYPES[spec.dtype], dims
        yield f"null_{name}", _DTYPES[spec.dtype], dims


def _asked(interface: Interface) -> Iterator[tuple[str, str, str]]:
    yield from _ASKED
    yield from _PROMPTS if interface.encoders else ()
    yield from (_LATENTS,) if interface.decoder else ()


def _samples(interface: Interface) -> tuple[str, str, str]:
    state = interface.state
    if interface.decoder:  # its lengths are not known here
        return "samples", "FP32", ", ".join(["-1"] * (1 + interface.decoder.axes))
    free = state.resizable.axes if state.resizable else ()
    shape = [-1 if axis in free else length for axis, length in enumerate(state.shape)]
    return "samples", "FP32", ", ".join(map(str, (-1, *shape)))


def _tensors(kind: str, tensors: Iterable[tuple[str, str, str]]) -> str:
    lines = [
        f"  {{ name: {json.dumps(name)} data_type: TYPE_{dtype} dims: [ {dims} ]"
        + (" optional: true }" if kind == "input" and name != "n" else " }")
        for name, dtype, dims in tensors
    ]
    return f"{kind} [\n" + ",\n".join(lines) + "\n]\n"


def _requirements(interface: Interface, manifests: Iterable[EngineManifest]) -> str:
    extras = {each.runtime_extra or each.extra for each in _backends(manifests)}
    extras |= {"prompts"} if interface.encoders else set()
    return f"eecompile[{','.join(sorted(extras))}]=={eecompile.__version__}\n"


def _backends(manifests: Iterable[EngineManifest]) -> list[Backend]:
    """Those that run the engines, and the companions."""
    targets = [
        target
        for each in manifests
        for target in (each.target, *([each.target.for_companions] if each.companions else ()))
    ]
    return [backend_from_target(each.backend, each.options) for each in targets]


def _check_names(interface: Interface) -> None:
    taken = {name for name, _, _ in (*_asked(interface), _PREVIEW)}
    for name in interface.conditions:
        if name in taken or name.startswith("null_"):
            raise UsageError(
                found=f"a condition {name!r}",
                expected=f"none of {sorted(taken)}, and nothing that begins with null_, which are "
                "inputs of the model in Triton",
                remedy="rename it in the recipe, and export again",
            )
