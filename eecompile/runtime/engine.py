"""What a sampler needs of engines, and how an engine set is opened."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from eecompile.arrays import Array, Inputs
from eecompile.errors import BackendError, UsageError
from eecompile.store.bundle import EngineManifest, open_engine_set

__all__ = ["Bindable", "Engine", "engine_from_manifest", "open_engine", "open_engines"]


class Engine(Protocol):
    """Evaluates a network at any of its exits. May be used from several threads.

    Attributes:
        exits: depths that it evaluates, ascending.
        precision: of weights and activations, for messages.
        max_batch: largest batch that it takes.
    """

    exits: tuple[int, ...]
    precision: str
    max_batch: int

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """What the network gives at ``depth``.

        Args:
            depth: one of ``exits``.
            x: noisy input, float32 [B, ...], contiguous, B at most ``max_batch``.
            t: timestep, float32 [B].
            conditions: one array a condition, first axis B.

        Returns:
            The interface's outputs: the prediction, and a learned variance where the
            process has one; float32, shaped as ``x``, new arrays.
        """
        ...

    def close(self) -> None:
        """Release the engine's memory; it cannot be used afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Bindable(Protocol):
    """An engine that also evaluates on fixed arrays, without allocating anything."""

    def bind(
        self,
        x: Array,
        t: Array,
        conditions: Inputs,
        outputs: Sequence[Array],
    ) -> Callable[[int], None]:
        """A function of the depth, which evaluates on what the arrays hold when it is called.

        Args:
            x: noisy input, float32 [B, ...], contiguous.
            t: timestep, float32 [B].
            conditions: one array a condition, first axis B.
            outputs: one array for each of the interface's outputs, shaped as ``x``,
                written by every call.
        """
        ...


# One module a backend; each has open_backend(folder, manifest, threads, beside) -> Engine.
_BACKENDS = {
    "onnxruntime": "eecompile.runtime.engines.onnxruntime",
    "openvino": "eecompile.runtime.engines.openvino",
    "tensorrt": "eecompile.runtime.engines.tensorrt",
    "tensorrt-rtx": "eecompile.runtime.engines.tensorrt",
}


def open_engine(
    folder: Path, threads: int | None = None, *, shared_pool: bool = False
) -> tuple[Engine, EngineManifest]:
    """The engine of an engine set, and its manifest.

    Args:
        folder: what ``eecompile build`` wrote.
        threads: threads of one evaluation, at most the machine's processors; None takes
            the target's.
        shared_pool: of ONNX Runtime; see :meth:`eecompile.runtime.sampler.Sampler.open`.

    Raises:
        BundleError: the folder is no intact engine set.
        BackendError: its backend is missing, or refuses an engine.
    """
    manifest = open_engine_set(folder)
    return engine_from_manifest(folder, manifest, threads, shared_pool=shared_pool), manifest


def open_engines(
    folders: Sequence[Path], threads: int | None = None, *, shared_pool: bool = False
) -> tuple[Engine, dict[str, EngineManifest]]:
    """Engine sets of one network, opened together, and their manifests by target.

    Args:
        folders: what ``eecompile build`` wrote, the default one first.
        threads: see :func:`open_engine`, as for ``shared_pool``.
        shared_pool: of ONNX Runtime.

    Returns:
        The engine, where there is one; otherwise an
        :class:`eecompile.runtime.engines.group.EngineGroup`.

    Raises:
        BundleError: a folder is no intact engine set.
        UsageError: they are not of the same bundle, or two are for the same target.
        BackendError: a backend is missing, or refuses an engine.
    """
    manifests: dict[str, EngineManifest] = {}
    for folder in folders:
        manifest = open_engine_set(folder)
        _check_belongs(folder, manifest, manifests)
        manifests[manifest.target.name] = manifest
    engines: dict[str, Engine] = {}
    try:
        for folder, (name, manifest) in zip(folders, manifests.items(), strict=True):
            beside = next(iter(engines.values()), None)
            engines[name] = engine_from_manifest(
                folder, manifest, threads, shared_pool=shared_pool, beside=beside
            )
        if len(engines) == 1:
            return next(iter(engines.values())), manifests
        from eecompile.runtime.engines.group import grouped

        return grouped(engines), manifests
    except BaseException:
        for engine in reversed(engines.values()):
            engine.close()
        raise


def _check_belongs(
    folder: Path, manifest: EngineManifest, others: Mapping[str, EngineManifest]
) -> None:
    """Pass when an engine set can be opened beside others."""
    name = manifest.target.name
    if any(manifest.bundle_digest != other.bundle_digest for other in others.values()):
        network = next(iter(others.values())).interface.name
        raise UsageError(
            found=f"{folder}, engines of another bundle ({manifest.interface.name}) than those "
            f"opened before it ({network})",
            expected="engine sets that were built from one bundle",
            remedy="build that bundle for each target",
        )
    if name in others:
        raise UsageError(
            found=f"two engine sets for the target {name}",
            expected="engine sets for different targets, which schedules name",
            remedy="leave one out, or give its target another name and build it again",
        )


def engine_from_manifest(
    folder: Path,
    manifest: EngineManifest,
    threads: int | None = None,
    *,
    shared_pool: bool = False,
    beside: Engine | None = None,
) -> Engine:
    """The engine of an engine set whose files have been checked.

    Args:
        folder: of the engine set.
        manifest: of the engine set.
        threads: see :func:`open_engine`, as for ``shared_pool``.
        shared_pool: of ONNX Runtime.
        beside: an engine that stays open as long: on a GPU, its stream and its memory for
            activations are used too.

    Raises:
        BackendError: its backend is missing, or refuses an engine.
    """
    name = manifest.target.backend
    if name not in _BACKENDS:
        built = ", ".join(f"{what} {which}" for what, which in manifest.versions.items())
        raise BackendError(
            found=f"engines for {name}, built by {built}",
            expected=f"a backend that this version runs: {', '.join(_BACKENDS)}",
            remedy="build the bundle for one of these, or run the engines with their own library",
        )
    module = importlib.import_module(_BACKENDS[name])
    chosen = manifest.target.threads if threads is None else threads
    if chosen < 0:
        raise BackendError(
            found=f"{chosen} threads",
            expected="0 (the physical cores) or more",
            remedy="choose another number of threads",
        )
    chosen = min(chosen, os.cpu_count() or 1)  # more only wait for one another
    if shared_pool and name == "onnxruntime":
        module.share_pool(chosen)
    engine: Engine = module.open_backend(folder, manifest, chosen, beside)
    return engine
