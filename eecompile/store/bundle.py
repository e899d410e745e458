"""Bundles and engine sets: their file names, digests and manifests.

A bundle (``eecompile export``) and an engine set (``eecompile build``) are folders of
data: a manifest, graphs, and one weights file. Nothing in them is executed as Python.
The names in a manifest are plain names inside the folder, and every file's digest is
checked before anything is loaded. Folders are written by :mod:`eecompile.store.folders`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from eecompile.decoding import MalformedError, PlainName, from_json
from eecompile.errors import BundleError, DigestError, FormatError, RecipeError, UsageError
from eecompile.notebook import facts_html, table_html
from eecompile.programs.interface import Interface
from eecompile.programs.meaning import interface_problems
from eecompile.store.companions import DECODER, Companion, encoder_name, tokenizer_files
from eecompile.store.files import file_bytes, outline
from eecompile.store.meaning import cut_problems, plan_problems, segment_problems, span_problems
from eecompile.store.signature import SIGNATURE, check_signature
from eecompile.store.target import Target

FORMAT = 9
MANIFEST = "manifest.json"
_LONG = 100  # characters for the exits in a file name
WEIGHTS = "weights.safetensors"
CALIBRATION = "calibration.npz"  # of a bundle: inputs made of the recipe's data, if it names any

_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])")


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of a manifest."""


class FileRecord(_Frozen, frozen=True, kw_only=True):
    """A file of the folder: name, size in bytes, SHA-256 in hex."""

    name: PlainName
    bytes: int
    sha256: str


class ExitGraph(_Frozen, frozen=True, kw_only=True):
    """One exit's ONNX graph.

    Attributes:
        depth: the exit.
        graph: file name.
        nodes: number of nodes.
        parameters: number of weights that the graph reads.
        bytes: size of the weights that the graph reads.
        unique_bytes: size of the weights that no other exit's graph reads.
        worst_error: largest |difference| to the network.
        mean_error: mean |difference|.
        relative_error: largest |difference| over largest |output| of one sample.
    """

    depth: int
    graph: PlainName
    nodes: int
    parameters: int
    bytes: int
    unique_bytes: int
    worst_error: float
    mean_error: float
    relative_error: float


class Sharing(_Frozen, frozen=True, kw_only=True):
    """What exactly these exits have in common: nodes, and bytes of weights."""

    exits: tuple[int, ...]
    nodes: int
    bytes: int


class SpanTensor(_Frozen, frozen=True, kw_only=True):
    """A tensor that leaves a span of blocks.

    Attributes:
        leaves: its name; a segment of the span makes it, and one after the span reads it.
        enters: name of the tensor of the same shape that enters the span, to which the span
            adds; None where there is none.
        shape: of one sample; the batch comes first.
        dtype: of both.
    """

    leaves: str
    enters: str | None
    shape: tuple[int, ...]
    dtype: Literal["float32", "float16", "bfloat16"]

    @property
    def bytes(self) -> int:
        """Size of one sample's."""
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 2)


class SpanPlan(_Frozen, frozen=True, kw_only=True):
    """A span of blocks that can be skipped.

    Attributes:
        start: the cut after which blocks are skipped.
        stop: the cut from which blocks run again; in an engine set, the segments between them
            are those whose levels lie within the span.
        tensors: what leaves it.
        bytes: what a step that is kept takes, of one sample: all of ``tensors``.
        worst_error: largest |difference| of an evaluation with the deepest exit that skips the
            span, and reads exactly what the span made, to the same without; see
            :class:`ExitGraph`. None where no evaluation was made, as for a bundle.
        relative_error: likewise.
    """

    start: int
    stop: int
    tensors: tuple[SpanTensor, ...]
    bytes: int
    worst_error: float | None = None
    relative_error: float | None = None


class BundleManifest(_Frozen, frozen=True, kw_only=True):
    """What a bundle holds; ``digest`` covers everything else in the manifest.

    ``spans`` can be skipped in engine sets of layout ``chained``. ``sources`` are the SHA-256
    of the checkpoint, or of the ONNX files, by file name; ``reference`` says what the exits
    were verified against. ``companions`` are the encoders and the decoder, each a graph.
    """

    kind: Literal["bundle"] = "bundle"
    format: int = FORMAT
    interface: Interface
    exits: tuple[ExitGraph, ...]
    files: tuple[FileRecord, ...]
    sharing: tuple[Sharing, ...]
    spans: tuple[SpanPlan, ...] = ()
    companions: tuple[Companion, ...] = ()
    versions: dict[str, str]
    sources: dict[str, str]
    reference: str
    checked_timesteps: tuple[int, ...]
    checked_batches: tuple[int, ...]
    digest: str = ""

    def __repr__(self) -> str:
        """Its network, exits and size."""
        return f"<BundleManifest {_told(self.interface.name, self)}>"

    def _repr_html_(self) -> str:
        """For notebooks: facts, and a row for each exit."""
        rows = [
            (
                each.depth,
                f"{each.parameters:,}",
                f"{each.worst_error:.2g}",
                f"{each.relative_error:.2g}",
            )
            for each in self.exits
        ]
        exits = table_html(("exit", "parameters", "worst error", "relative error"), rows)
        facts = {"size": _mebibytes(self), "verified against": self.reference}
        return facts_html(f"Bundle of {self.interface.name}", facts | self.interface.facts(), exits)


class Segment(_Frozen, frozen=True, kw_only=True):
    """One engine: a part of the network that the same exits need.

    Attributes:
        file: file name.
        inputs: names of the tensors that it reads, in the engine's order.
        outputs: names of the tensors that it makes, in the engine's order.
        exits: the exits that need it.
        nodes: number of nodes.
        bytes: size of the weights that it reads.
        key: digest of all that shapes the engine; equal keys are equal engines.
        level: the cut by which it must have run; beyond every cut for what runs after the last.
    """

    file: PlainName
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    exits: tuple[int, ...]
    nodes: int
    bytes: int
    key: str
    level: int = 0


class PointError(_Frozen, frozen=True, kw_only=True):
    """How far an exit is from its reference for one sample; see :class:`ExitGraph`."""

    timestep: float
    batch: int
    worst: float
    mean: float
    relative: float


class ExitPlan(_Frozen, frozen=True, kw_only=True):
    """How to evaluate an exit: segments to run in order, and the tensors that result.

    ``outputs`` are named in the order of the interface's outputs; the errors are as in
    :class:`ExitGraph`, to the bundle's graph, and once more for each sample.
    """

    depth: int
    segments: tuple[int, ...]
    outputs: tuple[str, ...]
    worst_error: float
    mean_error: float
    relative_error: float
    points: tuple[PointError, ...] = ()


class OperatorError(_Frozen, frozen=True, kw_only=True):
    """How far an exit is off where this operator alone is quantised.

    Attributes:
        name: that of its weights or bias, as the network calls them.
        kind: such as MatMul.
        cost: its share of the multiplications with weights.
        kept: whether it stays in the target's precision.
        errors: root mean square of the difference over that of the output, the worst exit's, by
            the timesteps of :class:`Quantisation`.
    """

    name: str
    kind: str
    cost: float
    kept: bool
    errors: tuple[float, ...] = ()


class Quantisation(_Frozen, frozen=True, kw_only=True):
    """What of an engine set is quantised, and how that was found.

    Attributes:
        kind: as the target says.
        scheme: types of values and weights, such as U8S8.
        instructions: of the processor that the scheme is for; empty for any.
        samples: that were sampled for calibration.
        rows: evaluations that they gave, with and without conditions.
        steps: timesteps that they visited, the largest first.
        calibration: digest of the rows.
        operators: all that could be quantised.
        refused: names of products with weights that could not.
        share: of the multiplications with weights, that which is quantised.
        timesteps: at which operators were measured; empty where none were.
    """

    kind: str
    scheme: str
    instructions: str = ""
    samples: int
    rows: int
    steps: tuple[float, ...]
    calibration: str
    operators: tuple[OperatorError, ...]
    refused: tuple[str, ...] = ()
    share: float
    timesteps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if any(len(each.errors) != len(self.timesteps) for each in self.operators):
            raise ValueError("operators need an error for each timestep")

    def most_sensitive(self, count: int) -> list[OperatorError]:
        """The operators with the largest errors where they were measured, the largest first."""
        return sorted(self.operators, key=lambda each: -max(each.errors, default=0.0))[:count]


class EngineManifest(_Frozen, frozen=True, kw_only=True):
    """What an engine set holds; ``digest`` covers everything else in the manifest.

    ``verified`` says what the exits' errors are errors of: the engines, or the graphs
    that they were built from where they cannot be run. ``spans`` can be skipped, if the layout
    is ``chained``. ``warnings`` are the backend's;
    all that it printed is in the file ``build.log``, if it printed anything. ``quantisation``
    says what is quantised, if anything is. ``companions`` are the encoders and the decoder, each
    an engine.
    """

    kind: Literal["engine-set"] = "engine-set"
    format: int = FORMAT
    interface: Interface
    target: Target
    exits: tuple[ExitPlan, ...]
    spans: tuple[SpanPlan, ...] = ()
    segments: tuple[Segment, ...]
    companions: tuple[Companion, ...] = ()
    files: tuple[FileRecord, ...]
    versions: dict[str, str]
    verified: str
    warnings: tuple[str, ...] = ()
    quantisation: Quantisation | None = None
    bundle_digest: str
    fingerprint: str
    digest: str = ""

    def __repr__(self) -> str:
        """Its network, target, exits and size."""
        return f"<EngineManifest {_told(f'{self.interface.name} for {self.target.name}', self)}>"

    def _repr_html_(self) -> str:
        """For notebooks: facts, and a row for each exit."""
        rows = [
            (each.depth, ", ".join(map(str, each.segments)), f"{each.relative_error:.2g}")
            for each in self.exits
        ]
        exits = table_html(("exit", "segments", "relative error"), rows)
        target = self.target
        facts = {
            "target": f"{target.name}: {target.backend}, {target.precision}, {target.layout}",
            "size": _mebibytes(self),
            "verified": self.verified,
        }
        title = f"Engine set of {self.interface.name} for {target.name}"
        return facts_html(title, facts | self.interface.facts(), exits)


Manifest = TypeVar("Manifest", BundleManifest, EngineManifest)


def _told(name: str, manifest: BundleManifest | EngineManifest) -> str:
    depths = ", ".join(str(each.depth) for each in manifest.exits)
    return f"{name}: exits {depths}; {_mebibytes(manifest)}"


def _mebibytes(manifest: BundleManifest | EngineManifest) -> str:
    return f"{sum(record.bytes for record in manifest.files) / 2**20:.1f} MiB"


class _Name(msgspec.Struct):
    name: str


class _Outline(msgspec.Struct):
    """What manifests of every format have."""

    kind: str
    format: int
    interface: _Name | None = None
    target: _Name | None = None
    files: tuple[_Name, ...] = ()


def exit_graph_name(depth: int) -> str:
    """File name of an exit's graph in a bundle."""
    return f"exit-{depth:03d}.onnx"


def output_names(interface: Interface, depth: int) -> tuple[str, ...]:
    """Names of an exit's outputs in graphs: its prediction, and a learned variance."""
    return tuple(f"{output}_{depth:03d}" for output in interface.outputs)


def segment_name(index: int, exits: Sequence[int], suffix: str) -> str:
    """File name of a segment's engine in an engine set."""
    named = "-".join(map(str, exits))
    if len(named) > _LONG:  # file systems take 255 bytes
        named = f"{exits[0]}-to-{exits[-1]}"
    return f"segment-{index:02d}-exits-{named}.{suffix}"


def file_names(folder: Path) -> tuple[str, ...]:
    """Names of the files of a bundle or an engine set of any format, even if it is damaged.

    Empty where there is none: other programs have files called ``manifest.json`` too.
    """
    found = _outline(folder)
    ours = found.kind in ("bundle", "engine-set")
    return (MANIFEST, SIGNATURE, *(record.name for record in found.files)) if ours else ()


def records(folder: Path) -> tuple[FileRecord, ...]:
    """A record of every file in ``folder`` but the manifest and its signature, by name."""
    apart = (MANIFEST, SIGNATURE)
    paths = sorted(path for path in folder.iterdir() if path.name not in apart)
    return tuple(
        FileRecord(name=path.name, bytes=path.stat().st_size, sha256=sha256(path)) for path in paths
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest`` with its digest, which is also returned."""
    signed = msgspec.structs.replace(manifest, digest=_digest(manifest))
    text = msgspec.json.format(msgspec.json.encode(signed), indent=2)
    (folder / MANIFEST).write_bytes(text + b"\n")
    return signed


def open_bundle(folder: Path, signed_by: Path | None = None) -> BundleManifest:
    """The manifest of a bundle, once every file in it has its digest.

    Args:
        folder: of the bundle.
        signed_by: file of the public key that must have signed it, which is verified before
            anything else is read; see :mod:`eecompile.store.signature`.

    Raises:
        SignatureError: it is not signed by that key.
        BundleError: there is no bundle at ``folder``.
        FormatError: it was written by a newer or an older eecompile.
        DigestError: a file is missing, truncated or altered.
    """
    manifest = _open(folder, BundleManifest, "bundle", "eecompile export", signed_by)
    _check_meaning(folder, _bundle_problems(manifest))
    graphs = [exit_graph_name(depth) for depth in manifest.interface.exits]
    graphs += [graph.graph for graph in manifest.exits]
    check_listed(folder, manifest, graphs + _companion_files(manifest))
    return manifest


def open_engine_set(folder: Path, signed_by: Path | None = None) -> EngineManifest:
    """The manifest of an engine set; arguments and errors are those of :func:`open_bundle`."""
    manifest = _open(folder, EngineManifest, "engine-set", "eecompile build", signed_by)
    _check_meaning(folder, _engine_problems(manifest))
    engines = [segment.file for segment in manifest.segments]
    check_listed(folder, manifest, engines + _companion_files(manifest))
    return manifest


def _companion_files(manifest: BundleManifest | EngineManifest) -> list[str]:
    """The files of companions."""
    parts = [name for each in manifest.companions for name in (each.file, each.weights)]
    return parts + tokenizer_files(manifest.interface)


def listed(manifest: BundleManifest | EngineManifest, name: str) -> bool:
    """Whether a manifest has a record of a file: others are not checked, and must not be read."""
    return any(record.name == name for record in manifest.files)


def peek(folder: Path, signed_by: Path | None = None) -> str:
    """What ``folder`` holds, by its manifest: ``bundle`` or ``engine-set``.

    Raises:
        SignatureError: it is not signed by that key, if one is given.
        BundleError: there is no manifest, or it names something else.
        FormatError: it was written by a newer or an older eecompile.
    """
    data = _read(folder, "a bundle or an engine set", "eecompile export", signed_by)
    header = _header(folder, data)
    if header.kind not in ("bundle", "engine-set"):
        raise BundleError(
            found=f"kind {header.kind!r} in {folder / MANIFEST}",
            expected="'bundle' or 'engine-set'",
            remedy="give the folder that eecompile export or eecompile build wrote",
        )
    return header.kind


def older_identity(folder: Path) -> tuple[str, ...]:
    """Whose folder of an older format this is: the network, and the target of an engine set.

    Empty where there is no folder of an older format.
    """
    found = _outline(folder)
    if found.format >= FORMAT or found.interface is None:
        return ()
    return (found.interface.name, *([found.target.name] if found.target else []))


def _outline(folder: Path) -> _Outline:
    """The outline of a manifest; that of an empty one where there is none."""
    return outline(folder / MANIFEST, _Outline) or _Outline(kind="", format=FORMAT)


def _open(
    folder: Path, kind: type[Manifest], name: str, command: str, signed_by: Path | None
) -> Manifest:
    data = _read(folder, f"a folder that {command!r} wrote", command, signed_by)
    header = _header(folder, data)
    if header.kind != name:
        raise BundleError(
            found=f"{_article(header.kind)} at {folder}",
            expected=_article(name),
            remedy=f"give the folder that {command!r} wrote",
        )
    try:
        manifest = from_json(data, kind)
    except MalformedError as error:
        problem = f"a manifest that does not fit its format ({error})"
        raise _damaged(folder / MANIFEST, problem) from error
    except (RecipeError, UsageError) as error:  # of values that cannot be together
        raise _damaged(folder / MANIFEST, error.found, error.expected) from error
    if manifest.digest != _digest(manifest):
        raise _damaged(folder / MANIFEST, "a manifest with another digest than it states")
    for record in manifest.files:
        _check(folder, record)
    return manifest


def _bundle_problems(manifest: BundleManifest) -> Iterator[str]:
    exits = manifest.interface.exits
    yield from interface_problems(manifest.interface)
    found = [(graph.depth, graph.graph) for graph in manifest.exits]
    if found != [(depth, exit_graph_name(depth)) for depth in exits]:
        yield f"graphs {found} for exits {list(exits)}"
    for span in manifest.spans:
        yield from cut_problems(manifest.interface, span)
    yield from _other_companions(manifest)


def _other_companions(manifest: BundleManifest | EngineManifest) -> Iterator[str]:
    interface = manifest.interface
    wanted = {encoder_name(name) for name in interface.encoders}
    wanted |= {DECODER} if interface.decoder else set()
    if sorted(found := [each.name for each in manifest.companions]) != sorted(wanted):
        yield f"companions {found} for {sorted(wanted)}"


def _engine_problems(manifest: EngineManifest) -> Iterator[str]:
    interface, segments = manifest.interface, manifest.segments
    yield from interface_problems(interface)
    yield from segment_problems(interface, manifest.target, segments)
    if (found := [plan.depth for plan in manifest.exits]) != list(interface.exits):
        yield f"plans of {found} for exits {list(interface.exits)}"
    for plan in manifest.exits:
        outputs = output_names(interface, plan.depth)
        yield from plan_problems(interface, segments, plan, outputs)
    if manifest.spans and manifest.target.layout != "chained":
        yield "spans of exits that are one engine each"
    for span in manifest.spans:
        yield from span_problems(interface, segments, span)
    yield from _other_companions(manifest)


def _check_meaning(folder: Path, problems: Iterable[str]) -> None:
    for problem in problems:
        raise _damaged(folder / MANIFEST, problem, "what eecompile writes")


def _article(kind: str) -> str:
    return {"bundle": "a bundle", "engine-set": "an engine-set"}.get(kind, f"kind {kind!r}")


def _read(folder: Path, expected: str, command: str, signed_by: Path | None) -> bytes:
    """The manifest's bytes, once their signature has been verified, if a key is given."""
    try:
        data = file_bytes(folder / MANIFEST)
    except OSError as error:
        raise BundleError(
            found=f"no {MANIFEST} in {folder}",
            expected=expected,
            remedy=f"check the path, or run {command!r} first",
        ) from error
    if signed_by is not None:
        check_signature(folder, data, signed_by)
    return data


def _header(folder: Path, data: bytes) -> _Outline:
    try:
        header = from_json(data, _Outline)
    except MalformedError as error:
        raise _damaged(folder / MANIFEST, f"a truncated or altered manifest ({error})") from error
    if header.format != FORMAT:
        newer = "upgrade eecompile, or write the folder again with this version"
        older = "write the folder again with this version: export, then build"
        raise FormatError(
            found=f"format {header.format} in {folder}",
            expected=f"format {FORMAT}",
            remedy=newer if header.format > FORMAT else older,
        )
    return header


def _check(folder: Path, record: FileRecord) -> None:
    path = folder / record.name
    if path.is_symlink() or not path.is_file():
        raise _damaged(path, "no such file")
    size = path.stat().st_size
    if size != record.bytes:
        raise _damaged(path, f"{size} bytes", f"{record.bytes} bytes")
    digest = sha256(path)
    if digest != record.sha256:
        raise _damaged(path, f"SHA-256 {digest[:12]}...", f"{record.sha256[:12]}...")


def check_listed(
    folder: Path, manifest: BundleManifest | EngineManifest, names: Iterable[str]
) -> None:
    """Pass when files that are read, and those that ONNX graphs read, are among the checked.

    Raises:
        DigestError: one is not.
    """
    for name in names:
        weights = _external_data(folder / name) if name.endswith(".onnx") else set()
        for read in (name, *sorted(weights)):
            if not listed(manifest, read):
                found = f"{read!r}, which is read, but not listed in {MANIFEST},"
                raise _damaged(folder, found, "a record of every file that is read")


def _external_data(graph: Path) -> set[str]:
    """Names of the files in which an ONNX graph has its weights.

    Found without a parser: protobuf writes them behind their key and their length.
    """
    if not (graph.is_file() and graph.stat().st_size):
        return set()
    names = set()
    with graph.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for end, digits in [(found.end(), found[1]) for found in _LOCATION.finditer(data)]:
            length = sum((digit & 127) << 7 * index for index, digit in enumerate(digits))
            names.add(data[end : end + length].decode(errors="replace"))
    return names


def _damaged(path: Path, found: str, expected: str = "the file as it was written") -> DigestError:
    return DigestError(
        found=f"{found} at {path}",
        expected=expected,
        remedy="copy the folder again, or write it anew with eecompile",
    )


def _digest(manifest: BundleManifest | EngineManifest) -> str:
    # Through JSON once, so that an integer where a float belongs has its one spelling.
    text = msgspec.json.encode(msgspec.structs.replace(manifest, digest=""))
    blank = from_json(text, type(manifest))
    return hashlib.sha256(msgspec.json.encode(blank, order="deterministic")).hexdigest()
