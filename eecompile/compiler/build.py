"""``eecompile build``: from a bundle and a target to an engine set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir

import eecompile
from eecompile.arrays import Inputs
from eecompile.compiler.companions import build_companions
from eecompile.compiler.graph.emulation import emulate_bfloat16
from eecompile.compiler.graph.merge import exit_outputs, merged_exits
from eecompile.compiler.graph.numbering import name_by_number
from eecompile.compiler.graph.partition import Part, check_parts, per_exit_parts
from eecompile.compiler.graph.precision import first_non_finite, lowered
from eecompile.compiler.graph.spans import cut_parts, span_plans
from eecompile.compiler.progress import Report, silent
from eecompile.compiler.quantised import NO_VNNI, quantised
from eecompile.compiler.segments import (
    LOG,
    BuildModule,
    SegmentBuilder,
    SegmentStore,
    build_module_for,
    compile_all,
    segments_from_parts,
    warnings_in,
)
from eecompile.compiler.sessions import evaluate_apart, evaluate_joined, session_from_graph
from eecompile.compiler.spans import GraphEngine, verified_spans
from eecompile.compiler.verify import (
    Error,
    Evaluate,
    Outputs,
    compare,
    compare_extremes,
    extreme_inputs,
    once,
    verification_points,
)
from eecompile.errors import (
    BackendError,
    BundleError,
    BusyError,
    NonFiniteError,
    OutputExistsError,
)
from eecompile.programs.interface import Interface
from eecompile.runtime.opening import engine_from_manifest
from eecompile.runtime.protocol import Engine
from eecompile.store.bundle import (
    CALIBRATION,
    listed,
    older_identity,
    open_bundle,
    open_engine_set,
    records,
    write_manifest,
)
from eecompile.store.folders import alone, check_folder, left_over, new_folder
from eecompile.store.manifest import (
    BundleManifest,
    EngineManifest,
    ExitPlan,
    Quantisation,
    Segment,
    SpanPlan,
    output_names,
)
from eecompile.store.signature import private_key
from eecompile.store.signing import sign_folder, write_signature
from eecompile.store.target import Target, load_target
from eecompile.system import work_folder

_WHOLE = 3  # of the points of verification, the batch of samples that come alone before it


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
    sign: Path | None = None,
    report: Report = silent,
) -> Built:
    """Build the engines of a bundle for a target.

    Nothing is built when ``output`` already holds an intact engine set of the same
    fingerprint; its signature stays, unless ``sign`` asks for another.

    Args:
        bundle: folder that ``eecompile export`` wrote.
        target: the target, or its TOML.
        output: the engine set's folder; an older one of the same network and target is
            replaced.
        force: build anew, replacing any bundle or engine set at ``output``.
        sign: file of the private key to sign it with; see :mod:`eecompile.store.signature`.
        report: told of each phase and its steps.

    Raises:
        EecompileError: the bundle, the target, the backend, the verification, the key or the
            output folder is at fault.
    """
    key = None if sign is None else private_key(sign)
    job = _job(bundle, target, output, report)
    if job.existing and job.existing.fingerprint == job.fingerprint and not force:
        _tidy(output, job.store)
        if sign is not None:
            sign_folder(output, sign)
        return Built(job.existing, up_to_date=True)
    with new_folder(output, replaces=force or job.replaces(output)) as folder:
        try:
            manifest = _build(job, folder)
            if key is not None:
                write_signature(folder, key)
        except BaseException:
            job.store.tidy()
            raise
    job.store.clear()
    return Built(manifest, up_to_date=False)


def _tidy(output: Path, store: SegmentStore) -> None:
    """Remove what a build left that was killed once the engine set was in its place."""
    if left_over(output) or store.folder.exists():
        with suppress(BusyError, OSError), alone(output):
            store.clear()


def _wanted(target: Path | Target) -> Target:
    """The target; one of TensorRT may go through ONNX Runtime, where only that is at hand."""
    found = target if isinstance(target, Target) else load_target(target)
    through = found.options.get("through")
    if found.backend != "tensorrt" or through is None:
        return found
    if through != "onnxruntime":
        raise BackendError(
            found=f"option through = {through!r} for tensorrt",
            expected="'onnxruntime', or no such option",
            remedy="fix or remove it in the target's [options]",
        )
    return msgspec.structs.replace(found, backend="onnxruntime", options={"provider": "tensorrt"})


class PlannedSegment(NamedTuple):
    """A segment that a build would write, and whether its engine is there already."""

    file: str
    exits: tuple[int, ...]
    bytes: int
    reused: bool


class PlannedBuild(NamedTuple):
    """What a build would do: nothing where there is no reason; its segments."""

    reasons: tuple[str, ...]
    segments: tuple[PlannedSegment, ...]


def planned_build(
    bundle: Path,
    target: Path | Target,
    output: Path,
    *,
    force: bool = False,
    report: Report = silent,
) -> PlannedBuild:
    """What :func:`engine_set_from_bundle` would do with the same arguments, and why.

    Nothing is written at ``output``.

    Raises:
        EecompileError: as for building, but that nothing is verified.
    """
    job = _job(bundle, target, output, report)
    reasons = _reasons(job.existing, job.source, job.target, job.versions, output)
    if reasons:
        check_folder(output, replaces=force or job.replaces(output))
    if force:
        reasons = ("--force", *reasons)
    if not reasons:
        return PlannedBuild((), ())
    with work_folder() as work:
        model = _prepared(job, work, verify=False).model
        segments = _partitioned(job, model).segments
    alone = isinstance(job.backend, SegmentBuilder)
    planned = [
        PlannedSegment(s.file, s.exits, s.bytes, alone and job.store.find(s.key) is not None)
        for s in segments
    ]
    return PlannedBuild(reasons, tuple(planned))


class _Job(NamedTuple):
    """One build: from what, for what, by what, and what is there already.

    ``reference`` are the bundle's exits, ``told`` the warnings of the verification, ``points`` what
    it compares instead of the usual.
    """

    bundle: Path
    source: BundleManifest
    target: Target
    backend: BuildModule
    existing: EngineManifest | None
    store: SegmentStore
    report: Report
    reference: Evaluate
    told: list[str]
    points: list[Inputs]

    @property
    def versions(self) -> dict[str, str]:
        found = {"eecompile": eecompile.__version__, **self.backend.versions()}
        if self.source.companions:
            found |= build_module_for(self.target.for_companions).versions()
        return found

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.source, self.target, self.versions)

    def replaces(self, output: Path) -> bool:
        """Whether ``output`` holds an engine set of this network and target, of any format."""
        found = self.existing
        identity = (found.interface.name, found.target.name) if found else older_identity(output)
        return identity == (self.source.interface.name, self.target.name)


def _job(bundle: Path, target: Path | Target, output: Path, report: Report) -> _Job:
    wanted = _wanted(target)
    if output.resolve().is_relative_to(bundle.resolve()):
        raise OutputExistsError(
            found=f"{output}, within the bundle that is built",
            expected="an output folder of its own",
            remedy="choose another, such as out/NETWORK/TARGET",
        )
    report("checking the bundle")
    source, backend, existing = open_bundle(bundle), build_module_for(wanted), None
    with suppress(BundleError):
        existing = open_engine_set(output)
    store = SegmentStore(output, existing)
    reference = once(evaluate_apart(bundle, source.interface))
    return _Job(
        bundle, source, wanted, backend, existing, store, report, reference, told=[], points=[]
    )


def _build(job: _Job, folder: Path) -> EngineManifest:
    interface, target = job.source.interface, job.target
    # Inside the folder, so that what a killed build leaves is removed by the next one.
    with work_folder(folder) as work:
        model, errors, quantisation = _prepared(job, work)
        parts, segments, spans = _partitioned(job, model)
        if spans and not job.backend.runs(target):
            graphs = GraphEngine(model, segments, interface, spans, target, work)
            spans = verified_spans(graphs, interface, spans, target, 2, job.report)
            del graphs
        compile_all(folder, model, segments, target, job.backend, job.store, work, job.report)
        companions = build_companions(job.bundle, job.source, target, folder, work, job.report)
    manifest = EngineManifest(
        interface=interface,
        target=target,
        exits=_plans(parts, interface, errors),
        spans=spans,
        segments=segments,
        companions=companions,
        files=records(folder),
        versions=job.versions,
        warnings=warnings_in(folder / LOG),
        verified="the graphs that the engines were built from; the engines did not run",
        quantisation=quantisation,
        bundle_digest=job.source.digest,
        fingerprint=job.fingerprint,
    )
    if job.backend.runs(target):
        manifest = _run(job, folder, manifest, parts)
    warnings = (*manifest.warnings, *dict.fromkeys(job.told))
    return write_manifest(folder, msgspec.structs.replace(manifest, warnings=warnings))


def _run(job: _Job, folder: Path, manifest: EngineManifest, parts: list[Part]) -> EngineManifest:
    """The manifest with the errors of the engines themselves, where they can be opened here."""
    interface, target = manifest.interface, job.target
    try:
        engine = engine_from_manifest(folder, manifest)
    except BackendError as error:
        if not job.backend.portable(target):
            raise
        warning = f"not run on this machine: {error}"
        return msgspec.structs.replace(manifest, warnings=(*manifest.warnings, warning))
    with engine:
        errors = _verify(job, _evaluate_engine(engine, interface), target.name)
        batch = min(target.batch.max, max(target.batch.min, 2))
        spans = verified_spans(engine, interface, manifest.spans, target, batch, job.report)
    return msgspec.structs.replace(
        manifest, exits=_plans(parts, interface, errors), spans=spans, verified="the engines"
    )


class _Partitioned(NamedTuple):
    parts: list[Part]
    segments: tuple[Segment, ...]
    spans: tuple[SpanPlan, ...]


def _partitioned(job: _Job, model: ir.Model) -> _Partitioned:
    job.report("partitioning")
    name_by_number(model)
    interface = job.source.interface
    spans: tuple[SpanPlan, ...] = ()
    if job.target.layout == "chained":
        parts = cut_parts(model, interface, interface.cuts)
        spans = span_plans(model.graph, parts, interface.cuts)
    else:
        outputs = exit_outputs(model, interface)
        parts = per_exit_parts(model.graph, outputs)
        check_parts(model.graph, outputs, parts)
    return _Partitioned(
        parts,
        segments_from_parts(model, parts, job.target, job.backend),
        spans,
    )


class _Prepared(NamedTuple):
    """All exits as the backend takes them, how far they are from the bundle, what is quantised."""

    model: ir.Model
    errors: dict[int, Error]
    quantisation: Quantisation | None = None


def _prepared(job: _Job, work: Path, *, verify: bool = True) -> _Prepared:
    """All exits as the backend takes them.

    The graph is verified before anything is built from it, where it is another one than
    the bundle's.
    """
    interface, target = job.source.interface, job.target
    job.report("joining the exits")
    model, quantisation = merged_exits(job.bundle, interface.exits), None
    in_graph = job.backend.precision_in_graph(target)
    if not in_graph and target.quantise is None:
        return _Prepared(model, {})
    if in_graph and target.precision != "fp32":
        job.report(f"lowering the precision to {target.precision}")
        data = job.bundle / CALIBRATION if listed(job.source, CALIBRATION) else None
        model = lowered(model, interface, target, work, data)
    if target.quantise is not None:
        model, quantisation, points = quantised(
            model,
            job.bundle,
            job.source,
            target,
            job.reference,
            work,
            job.report,
        )
        job.points.extend(points)
        if quantisation.scheme == NO_VNNI:
            job.told.append(
                "this processor has no VNNI or AMX: INT8 takes about as long as FP32, and weights "
                "have 7 bits"
            )
    job.backend.prepare(model, target)
    if not verify:
        return _Prepared(model, {}, quantisation)
    path = work / "prepared.onnx"
    ir.save(model, path, external_data="prepared.data")
    if target.precision == "bf16":
        shown = ir.load(path)
        emulate_bfloat16(shown)
        path = work / "emulated.onnx"
        ir.save(shown, path, external_data="emulated.data")
    evaluate = evaluate_joined(session_from_graph(path), interface)
    try:
        errors = _verify(job, evaluate, f"{target.name}'s graph")
    except NonFiniteError as error:
        if target.precision == "fp32":
            raise
        tensor = first_non_finite(path, verification_points(interface), work)
        raise NonFiniteError(
            found=f"{error.found}; {tensor} is the first",
            expected=f"finite values in {target.precision}",
            remedy="name that weight in the target's keep_fp32, or choose bf16 or fp32",
        ) from error
    return _Prepared(model, errors, quantisation)


def _plans(
    parts: Sequence[Part], interface: Interface, errors: Mapping[int, Error]
) -> tuple[ExitPlan, ...]:
    unknown = Error(float("inf"), float("inf"), float("inf"))
    plans = []
    for depth in interface.exits:
        error = errors.get(depth, unknown)
        plans.append(
            ExitPlan(
                depth=depth,
                segments=tuple(i for i, part in enumerate(parts) if depth in part.exits),
                outputs=output_names(interface, depth),
                worst_error=error.worst,
                mean_error=error.mean,
                relative_error=error.relative,
                points=error.points,
            )
        )
    return tuple(plans)


def _evaluate_engine(engine: Engine, interface: Interface) -> Evaluate:
    def evaluate(point: Inputs) -> Outputs:
        conditions = {name: point[name] for name in interface.conditions}
        x, t = point["x"].astype(np.float32), point["t"].astype(np.float32)
        return {depth: engine.evaluate(depth, x, t, conditions) for depth in interface.exits}

    return evaluate


def _verify(job: _Job, candidate: Evaluate, what: str) -> dict[int, Error]:
    """How far each exit is from the bundle.

    Zero, tiny, large and null inputs are compared, too: in FP32 they must be as near, in a lower
    precision, whose range and digits are smaller, a warning says where they are not. Of what is
    quantised, evaluations of samplings must be near, and noise at any timestep counts as extreme.
    """
    interface, exact = job.source.interface, job.target.precision == "fp32"
    points, tolerance = verification_points(interface), job.target.tolerance
    named = f"{what} against the bundle"
    extremes = extreme_inputs(interface)
    if job.target.quantise is not None:
        exact = False
        others = [points[_WHOLE], *points[_WHOLE + 2 :]]  # the batch, and other shapes
        extremes |= {f"noise ({index})": point for index, point in enumerate(others)}
    remedy = _remedy(job)
    errors = compare(
        job.points or points, job.reference, candidate, tolerance, named, job.report, remedy
    )
    for error in compare_extremes(extremes, job.reference, candidate, tolerance, named, remedy):
        if exact:
            raise error
        job.told.append(f"{error.found}; at usual inputs it is as near as the target asks")
    return errors


def _remedy(job: _Job) -> str:
    """What to do where engines, or their graph, are too far from the bundle."""
    quantise, precision = job.target.quantise, job.target.precision
    first = "choose another backend"
    if quantise is not None:
        first = "keep more operators as they are (keep in [quantise])"
        first += ", raise samples" if quantise.kind in ("int8", "fp8") else ", choose more bits"
    elif precision != "fp32":
        first = "choose a wider precision"
        if job.backend.precision_in_graph(job.target):
            first = f"keep more in FP32 (the target's keep_fp32), {first}"
    return f"{first}, or widen the target's tolerance"


def _fingerprint(source: BundleManifest, target: Target, versions: dict[str, str]) -> str:
    ingredients = [source.digest, msgspec.to_builtins(target), versions]
    return hashlib.sha256(msgspec.json.encode(ingredients, order="deterministic")).hexdigest()


def _reasons(
    existing: EngineManifest | None,
    source: BundleManifest,
    target: Target,
    versions: dict[str, str],
    output: Path,
) -> tuple[str, ...]:
    """Why the engine set at ``output`` is not the one that is wanted; () where it is."""
    if existing is None:
        what = "an engine set of another format, or a damaged one" if output.exists() else "none"
        return (f"engine set at {output}: {what}",)
    before, after = msgspec.to_builtins(existing.target), msgspec.to_builtins(target)
    changes = [("bundle", existing.bundle_digest[:12], source.digest[:12])]
    changes += [(f"target's {key}", before.get(key), value) for key, value in after.items()]
    changes += [
        (key, existing.versions.get(key, "none"), versions.get(key, "none"))
        for key in {**existing.versions, **versions}
    ]
    return tuple(f"{what}: {old} -> {new}" for what, old, new in changes if old != new)
