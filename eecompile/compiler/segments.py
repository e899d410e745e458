"""Segments: what engines are built from, and which of them need not be built again."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
import onnx_ir as ir

from eecompile.backends import BACKENDS, backend_from_target
from eecompile.compiler.graph.numbering import value_numbers
from eecompile.compiler.graph.partition import Part, extract
from eecompile.compiler.progress import Report
from eecompile.errors import BackendError
from eecompile.store.bundle import listed, segment_name, sha256
from eecompile.store.files import beside, is_private
from eecompile.store.folders import MARK, make_marked, remove_marked
from eecompile.store.manifest import EngineManifest, Segment
from eecompile.store.target import Target

CACHE = "timing.cache"  # of an engine set: what its backend keeps for the next build
LOG = "build.log"  # of an engine set: what its backend printed
_NOISE = ("'colored' module", "has Int64 binding")
_MOST_WARNINGS = 20


class BuildModule(Protocol):
    """What the module that builds for a backend provides; :mod:`eecompile.backends` names it.

    It also has either ``compile_segments`` (:class:`BatchBuilder`) or ``builder``
    (:class:`SegmentBuilder`).

    Attributes:
        SUFFIX: of the engines' file names.
    """

    SUFFIX: str

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that shape the engines."""
        ...

    def check(self, target: Target) -> None:
        """Pass when engines for this target can be built here.

        The precision and the layout are among those that the backend's record names.

        Raises:
            BackendError: they cannot, or an option of the target is unknown.
        """
        ...

    def runs(self, target: Target) -> bool:
        """Whether the engines can be run here, to verify them."""
        ...

    def portable(self, target: Target) -> bool:
        """Whether engines built here may be meant for other machines, and need not run here."""
        ...

    def precision_in_graph(self, target: Target) -> bool:
        """Whether the precision lies in the graph, which is lowered before building."""
        ...

    def prepare(self, model: ir.Model, target: Target) -> None:
        """Bring the joined graph, in its precision, into the form that the backend takes."""
        ...


@runtime_checkable
class BatchBuilder(Protocol):
    """A backend whose engines share a file, so that they are written together."""

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


class Builder(Protocol):
    """Builds engines one by one."""

    def build(
        self, model: ir.Model, path: Path, target: Target, report: Report, *, name: str
    ) -> None:
        """Write the engine of one model to ``path``; ``name`` is for messages."""
        ...


@runtime_checkable
class SegmentBuilder(Protocol):
    """A backend whose engines are files of their own, which can be kept."""

    def builder(self, work: Path, cache: Path) -> AbstractContextManager[Builder]:
        """What builds the engines.

        ``work`` is for intermediate files; ``cache`` is a file that the backend may keep
        from build to build, such as the times of kernels.
        """
        ...


def build_module_for(target: Target) -> BuildModule:
    """The module that builds for a target, once it has passed the target.

    Raises:
        BackendError: the backend has not the target's precision or layout, or its module
            refuses the target.
    """
    backend = backend_from_target(target.backend, target.options)
    module: BuildModule = importlib.import_module(backend.build)
    for key, wanted, known in (
        ("precision", target.precision, backend.precisions),
        ("layout", target.layout, backend.layouts),
    ):
        if wanted not in known:
            raise BackendError(
                found=f"{key} {wanted!r} for {backend.name}",
                expected=" or ".join(map(repr, known)),
                remedy=f"choose one of these in the target, or {_elsewhere(target)}",
            )
    if target.quantise is not None and target.quantise.kind not in backend.quantised:
        raise BackendError(
            found=f"quantise.kind {target.quantise.kind!r} for {backend.name}",
            expected=" or ".join(map(repr, backend.quantised)) or "no [quantise]",
            remedy="choose one of these, or another backend in the target",
        )
    module.check(target)
    return module


def _elsewhere(target: Target) -> str:
    """What else in a target gives its precision: an option of its backend, if there is one."""
    for flavour in BACKENDS.values():
        if flavour.flavour_of == target.backend and target.precision in flavour.precisions:
            for key, (value, *_) in flavour.options.items():
                return f"options.{key} = {value!r}, or another backend"
    return "another backend"


def check_options(target: Target, known: Mapping[str, type]) -> None:
    """Pass when every option of the target is known, and of its type.

    Raises:
        BackendError: one is not.
    """
    for name, value in target.options.items():
        if name not in known or not isinstance(value, known[name]):
            raise BackendError(
                found=f"option {name} = {value!r} for {target.backend}",
                expected=", ".join(f"{n} ({kind.__name__})" for n, kind in known.items()),
                remedy="fix or remove it in the target's [options]",
            )


class SegmentStore:
    """Engines by their keys: those of the engine set that is replaced, and finished ones.

    Finished engines lie in a folder beside the engine set until the whole is done, so that
    an interrupted build goes on where it stopped.

    Args:
        output: the engine set's folder.
        existing: the manifest of what is there, if it is intact.
    """

    def __init__(self, output: Path, existing: EngineManifest | None) -> None:
        output = output.absolute()
        self.folder = beside(output, "segments")
        segments = existing.segments if existing else ()
        self._known = {segment.key: output / segment.file for segment in segments}
        self.cache = self.folder / CACHE
        self._former = output / CACHE if existing and listed(existing, CACHE) else None

    def start(self) -> None:
        """Make the folder, with what the engine set's backend has kept for the next build.

        What others may have written there is removed: engines are code.
        """
        if not is_private(self.folder):
            remove_marked(self.folder)
        make_marked(self.folder)
        if self._former and not self.cache.exists():
            shutil.copyfile(self._former, self.cache)

    def find(self, key: str) -> Path | None:
        """An engine with this key, if there is one."""
        paths = self.folder.glob(f"{key}.*") if is_private(self.folder) else ()
        finished = (p for p in paths if p.name == f"{key}.{sha256(p)}")
        return self._known.get(key) or next(finished, None)

    def add(self, key: str, path: Path) -> Path:
        """Keep a finished engine, named by its digest too; returns its new place."""
        return path.replace(self.folder / f"{key}.{sha256(path)}")

    def tidy(self) -> None:
        """After a failure: keep the folder only if there is a finished engine in it."""
        if not any(path.name not in (CACHE, MARK) for path in self.folder.glob("*")):
            self.clear()

    def clear(self) -> None:
        """Remove the finished engines, which are part of the engine set now."""
        remove_marked(self.folder)


def segments_from_parts(
    model: ir.Model, parts: Sequence[Part], target: Target, backend: BuildModule
) -> tuple[Segment, ...]:
    """The segment of each part of a graph whose values are named by what they compute."""
    numbers = {value.name: number for value, number in value_numbers(model.graph).items()}
    context = _context(target, backend)
    made = []
    for index, part in enumerate(parts):
        graph = extract(model, part.inputs, part.outputs).graph
        weights = (value.const_value for value in graph.initializers.values())
        computed = [numbers[name] for name in part.outputs]
        shape = msgspec.json.encode([context, computed, part.inputs, part.outputs])
        made.append(
            Segment(
                file=segment_name(index, part.exits, backend.SUFFIX),
                inputs=part.inputs,
                outputs=part.outputs,
                exits=part.exits,
                nodes=len(graph),
                bytes=sum(weight.nbytes for weight in weights if weight is not None),
                key=hashlib.sha256(shape).hexdigest(),
                level=part.level,
            )
        )
    return tuple(made)


def compile_all(
    folder: Path,
    model: ir.Model,
    segments: Sequence[Segment],
    target: Target,
    backend: BuildModule,
    store: SegmentStore,
    work: Path,
    report: Report,
) -> None:
    """Write the segments' engines to ``folder``, building those that the store lacks."""
    if isinstance(backend, BatchBuilder):
        models = {s.file: extract(model, s.inputs, s.outputs) for s in segments}
        backend.compile_segments(folder, models, target, work, report)
        return
    assert isinstance(backend, SegmentBuilder)
    # The deepest first: what is measured for it serves the others.
    store.start()
    ordered = sorted(segments, key=lambda segment: -max(segment.exits))
    with backend.builder(work, store.cache) as builder:
        for index, segment in enumerate(ordered):
            report(f"building {segment.file} ({index + 1} of {len(segments)})")
            engine = store.find(segment.key)
            if engine is None:
                path = work / segment.file
                graph = extract(model, segment.inputs, segment.outputs)
                builder.build(graph, path, target, report, name=segment.file)
                engine = store.add(segment.key, path)
            _link(engine, folder / segment.file)
    for file in (store.cache, work / LOG):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def warnings_in(log: Path) -> tuple[str, ...]:
    """What a backend's log warns of, each once; () where there is no log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    warnings = [line.removeprefix("[W]").strip() for line in lines if line.startswith("[W]")]
    telling = (w for w in warnings if not any(noise in w for noise in _NOISE))
    return tuple(dict.fromkeys(telling))[:_MOST_WARNINGS]


def _context(target: Target, backend: BuildModule) -> object:
    """What shapes an engine besides its graph."""
    return {
        "versions": backend.versions(),
        "target": [target.backend, target.precision, target.batch, target.threads],
        "options": sorted(target.options.items()),
        "workspace": target.workspace_mib,
    }


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, place)
