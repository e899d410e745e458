"""How engine sets are opened, one or several of one network together."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from eecompile.backends import BACKENDS, TARGET_BACKENDS
from eecompile.errors import BackendError, EecompileError, UsageError, one_line, summary
from eecompile.interrupt import check
from eecompile.measure.machine import cpu, eight_bit_products
from eecompile.runtime.engines._onnxruntime import share_pool
from eecompile.runtime.engines.group import grouped
from eecompile.runtime.protocol import Engine
from eecompile.store.bundle import open_engine_set
from eecompile.store.manifest import EngineManifest


def open_engine(
    folder: Path, threads: int | None = None, *, shared_pool: bool = False
) -> tuple[Engine, EngineManifest]:
    """The engine of an engine set, and its manifest.

    Arguments and errors are those of :meth:`eecompile.runtime.sampler.Sampler.open`.
    """
    manifest = open_engine_set(folder)
    return engine_from_manifest(folder, manifest, threads, shared_pool=shared_pool), manifest


def manifests_by_target(
    folders: Sequence[Path], signed_by: Path | None = None
) -> dict[str, EngineManifest]:
    """The manifests of engine sets of one network, in their order, once all files are checked.

    Arguments and errors are those of :meth:`eecompile.runtime.sampler.Sampler.open`.
    """
    manifests: dict[str, EngineManifest] = {}
    for folder in folders:
        manifest = open_engine_set(folder, signed_by)
        _check_belongs(folder, manifest, manifests)
        manifests[manifest.target.name] = manifest
    return manifests


def engine_from_manifests(
    folders: Sequence[Path],
    manifests: Mapping[str, EngineManifest],
    threads: int | None = None,
    *,
    shared_pool: bool = False,
) -> Engine:
    """The engine, or the :class:`.engines.group.EngineGroup`, of engine sets.

    Arguments and errors are those of :meth:`eecompile.runtime.sampler.Sampler.open`; the
    manifests are those of :func:`manifests_by_target`.
    """
    engines: dict[str, Engine] = {}
    try:
        for folder, (name, manifest) in zip(folders, manifests.items(), strict=True):
            engines[name] = engine_from_manifest(
                folder,
                manifest,
                threads,
                shared_pool=shared_pool,
                share_device_with=next(iter(engines.values()), None),
            )
        return next(iter(engines.values())) if len(engines) == 1 else grouped(engines)
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
    share_device_with: Engine | None = None,
) -> Engine:
    """The engine of an engine set whose files have been checked.

    Other arguments and errors are those of :meth:`eecompile.runtime.sampler.Sampler.open`.

    Args:
        folder: of the engine set.
        manifest: of the engine set.
        threads: at most the machine's processors are used.
        shared_pool: of ONNX Runtime.
        share_device_with: an engine that stays open as long: on a GPU, its stream and its
            memory for activations are used too.
    """
    name = manifest.target.backend
    if name not in TARGET_BACKENDS:
        built = ", ".join(f"{what} {which}" for what, which in manifest.versions.items())
        raise BackendError(
            found=f"engines for {name}, built by {built}",
            expected=f"a backend that this version runs: {', '.join(TARGET_BACKENDS)}",
            remedy="build the bundle for one of these, or run the engines with their own library",
        )
    _check_instructions(folder, manifest)
    module = importlib.import_module(BACKENDS[name].run)
    chosen = manifest.target.threads if threads is None else threads
    if chosen < 0:
        raise BackendError(
            found=f"{chosen} threads",
            expected="0 (the physical cores) or more",
            remedy="choose another number of threads",
        )
    chosen = min(chosen, os.cpu_count() or 1)  # more only wait for one another
    if shared_pool and name == "onnxruntime":
        share_pool(chosen)
    try:
        engine: Engine = module.open_backend(folder, manifest, chosen, share_device_with)
    except (EecompileError, MemoryError):
        raise
    except Exception as error:  # libraries' errors share no base class
        check()
        raise BackendError(
            found=f"{folder}, which {name} does not open ({one_line(summary(error))})",
            expected="an engine set that it can open on this machine",
            remedy="build the engine set again here",
        ) from error
    return engine


def _check_instructions(folder: Path, manifest: EngineManifest) -> None:
    """Pass when the processor adds 8-bit products as the engines were built to have them added."""
    quantisation = manifest.quantisation
    if quantisation and quantisation.instructions and not eight_bit_products():
        raise BackendError(
            found=f"{folder}, whose INT8 is for processors with {quantisation.instructions}, on "
            f"{cpu().model}",
            expected="such instructions: products would saturate without them",
            remedy="build the bundle for this target again on this machine",
        )
