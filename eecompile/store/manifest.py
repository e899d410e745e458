"""Manifests: what a bundle and an engine set say of themselves.

The names in a manifest are plain names inside its folder; :mod:`eecompile.store.bundle` reads and
writes it.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from eecompile.decoding import PlainName
from eecompile.notebook import facts_html, table_html
from eecompile.programs.interface import Interface
from eecompile.store.companions import Companion
from eecompile.store.target import Target

FORMAT = 9


def exit_graph_name(depth: int) -> str:
    """File name of an exit's graph in a bundle."""
    return f"exit-{depth:03d}.onnx"


def output_names(interface: Interface, depth: int) -> tuple[str, ...]:
    """Names of an exit's outputs in graphs: its prediction, and a learned variance."""
    return tuple(f"{output}_{depth:03d}" for output in interface.outputs)


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


def _told(name: str, manifest: BundleManifest | EngineManifest) -> str:
    depths = ", ".join(str(each.depth) for each in manifest.exits)
    return f"{name}: exits {depths}; {_mebibytes(manifest)}"


def _mebibytes(manifest: BundleManifest | EngineManifest) -> str:
    return f"{sum(record.bytes for record in manifest.files) / 2**20:.1f} MiB"
