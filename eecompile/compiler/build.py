"""``eecompile build``: from a bundle and a target to an engine set."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import onnx_ir as ir

import eecompile
from eecompile.bundle import (
    BundleManifest,
    EngineManifest,
    ExitPlan,
    Segment,
    older_identity,
    open_bundle,
    open_engine_set,
    records,
    segment_name,
    write_manifest,
)
from eecompile.compiler.merge import exit_outputs, merged_exits
from eecompile.compiler.names import output_names
from eecompile.compiler.partition import (
    Part,
    chained_parts,
    check_parts,
    extract,
    per_exit_parts,
)
from eecompile.compiler.progress import Report, silent
from eecompile.compiler.sessions import run_session, session_from_graph
from eecompile.compiler.verify import Error, Inputs, Outputs, compare, verification_points
from eecompile.errors import BundleError
from eecompile.folders import new_folder
from eecompile.recipe import Target, load_target
from eecompile.runtime.engine import Engine, engine_from_manifest
from eecompile.runtime.interface import Interface

__all__ = ["Built", "engine_set_from_bundle"]


class Backend(Protocol):
    """What a module of :mod:`eecompile.compiler.backends` provides."""

    SUFFIX: str

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that shape the engines."""
        ...

    def check(self, target: Target) -> None:
        """Pass when engines for this target can be built here.

        Raises:
            BackendError: they cannot, or an option of the target is unknown.
        """
        ...

    def compile_segments(
        self,
        folder: Path,
        models: Mapping[str, ir.Model],
        target: Target,
        work: Path,
        report: Report,
    ) -> None:
        """Write the engine of each model to ``folder`` under its name.

        ``work`` is for intermediate files; it is removed afterwards.
        """
        ...


class Built(NamedTuple):
    """An engine set's manifest, and whether it was there already."""

    manifest: EngineManifest
    up_to_date: bool


def engine_set_from_bundle(
    bundle: Path,
    target: Path | Target,
    output: Path,
    *,
    force: bool = False,
    report: Report = silent,
) -> Built:
    """Build the engines of a bundle for a target.

    Nothing is built when ``output`` already holds an intact engine set of the same
    fingerprint.

    Args:
        bundle: folder that ``eecompile export`` wrote.
        target: the target, or its TOML.
        output: the engine set's folder; an older one of the same network and target is
            replaced.
        force: build anew, replacing any bundle or engine set at ``output``.
        report: told of each phase and its steps.

    Raises:
        EecompileError: the bundle, the target, the backend, the verification or the
            output folder is at fault.
    """
    wanted = target if isinstance(target, Target) else load_target(target)
    report("checking the bundle")
    source = open_bundle(bundle)
    backend: Backend = importlib.import_module(f"eecompile.compiler.backends.{wanted.backend}")
    backend.check(wanted)
    fingerprint = _fingerprint(source, wanted, backend.versions())
    existing = _existing(output)
    if existing and existing.fingerprint == fingerprint and not force:
        return Built(existing, up_to_date=True)
    identity = _identity(existing) if existing else older_identity(output)
    same = identity == (source.interface.name, wanted.name)
    with new_folder(output, replaces=force or same) as folder:
        manifest = _build(folder, bundle, source, wanted, backend, fingerprint, report)
    return Built(manifest, up_to_date=False)


def _build(
    folder: Path,
    bundle: Path,
    source: BundleManifest,
    target: Target,
    backend: Backend,
    fingerprint: str,
    report: Report,
) -> EngineManifest:
    report("partitioning")
    model = merged_exits(bundle, source)
    outputs = exit_outputs(model, source.interface)
    cut = chained_parts if target.layout == "chained" else per_exit_parts
    parts = cut(model.graph, outputs)
    check_parts(model.graph, outputs, parts)
    names = [segment_name(index, part.exits, backend.SUFFIX) for index, part in enumerate(parts)]
    models = {
        name: extract(model, part.inputs, part.outputs)
        for name, part in zip(names, parts, strict=True)
    }
    segments = [_segment(name, part, models[name]) for name, part in zip(names, parts, strict=True)]
    # Inside the folder, so that what a killed build leaves is removed by the next one.
    with TemporaryDirectory(dir=folder) as work:
        backend.compile_segments(folder, models, target, Path(work), report)
    manifest = EngineManifest(
        interface=source.interface,
        target=target,
        exits=_plans(parts, source.interface, {}),
        segments=tuple(segments),
        files=records(folder),
        versions={"eecompile": eecompile.__version__, **backend.versions()},
        bundle_digest=source.digest,
        fingerprint=fingerprint,
    )
    with engine_from_manifest(folder, manifest) as engine:
        errors = _verify(bundle, source, target, engine, report)
    exits = _plans(parts, source.interface, errors)
    return write_manifest(folder, msgspec.structs.replace(manifest, exits=exits))


def _plans(
    parts: Sequence[Part], interface: Interface, errors: Mapping[int, Error]
) -> tuple[ExitPlan, ...]:
    unknown = Error(float("inf"), float("inf"), float("inf"))
    return tuple(
        ExitPlan(
            depth=depth,
            segments=tuple(i for i, part in enumerate(parts) if depth in part.exits),
            outputs=output_names(interface, depth),
            worst_error=errors.get(depth, unknown).worst,
            mean_error=errors.get(depth, unknown).mean,
            relative_error=errors.get(depth, unknown).relative,
        )
        for depth in interface.exits
    )


def _segment(name: str, part: Part, model: ir.Model) -> Segment:
    weights = (value.const_value for value in model.graph.initializers.values())
    return Segment(
        file=name,
        inputs=part.inputs,
        outputs=part.outputs,
        exits=part.exits,
        nodes=len(model.graph),
        bytes=sum(weight.nbytes for weight in weights if weight is not None),
    )


def _verify(
    bundle: Path, source: BundleManifest, target: Target, engine: Engine, report: Report
) -> dict[int, Error]:
    interface = source.interface
    sessions = {e.depth: session_from_graph(bundle / e.graph) for e in source.exits}

    def reference(point: Inputs) -> Outputs:
        return {
            depth: run_session(session, point, output_names(interface, depth))
            for depth, session in sessions.items()
        }

    def candidate(point: Inputs) -> Outputs:
        conditions = {name: point[name] for name in interface.conditions}
        x, t = point["x"].astype(np.float32), point["t"].astype(np.float32)
        return {depth: engine.evaluate(depth, x, t, conditions) for depth in interface.exits}

    what = f"{target.name} against the bundle"
    points = verification_points(interface)
    return compare(points, reference, candidate, target.tolerance, what, report)


def _fingerprint(source: BundleManifest, target: Target, versions: dict[str, str]) -> str:
    ingredients = [source.digest, msgspec.to_builtins(target), eecompile.__version__, versions]
    return hashlib.sha256(msgspec.json.encode(ingredients, order="deterministic")).hexdigest()


def _existing(output: Path) -> EngineManifest | None:
    with suppress(BundleError):
        return open_engine_set(output)
    return None


def _identity(manifest: EngineManifest) -> tuple[str, str]:
    return manifest.interface.name, manifest.target.name
