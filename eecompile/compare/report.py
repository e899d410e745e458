"""What a comparison found: the documented form of ``report.json``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from eecompile.programs.choice import Choice
from eecompile.runtime.request import SampleFacts
from eecompile.store.files import read_form
from eecompile.store.manifest import Quantisation

FORMAT = 2


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of a report."""


class EvaluationLatency(_Frozen, frozen=True, kw_only=True):
    """Milliseconds of one evaluation, over ``rounds`` in turn with the other candidates.

    Attributes:
        batch: samples an evaluation.
        median: of all rounds.
        p90: nine tenths of the rounds took no longer.
        rounds: how often it was measured, after one that was not.
    """

    batch: int
    median: float
    p90: float
    rounds: int


class OutputError(_Frozen, frozen=True, kw_only=True):
    """How far one evaluation's outputs are from the reference's.

    Attributes:
        timestep: of the inputs.
        batch: samples.
        worst: the largest difference; None where the candidate's outputs are not all finite,
            as are the next two then.
        mean: the mean difference.
        relative: the largest difference over the reference's largest output; None also
            where that is 0 and the difference is not.
    """

    timestep: float
    batch: int
    worst: float | None
    mean: float | None
    relative: float | None


def largest(values: Iterable[float | None]) -> float | None:
    """The largest error: infinity where one is not finite, None where there is none."""
    known = [value if value is not None and math.isfinite(value) else math.inf for value in values]
    return max(known, default=None)


class ExitFigures(_Frozen, frozen=True, kw_only=True):
    """One exit of one candidate.

    Attributes:
        depth: the exit.
        latencies: by batch size.
        errors: to the reference, by timestep and batch; empty for the reference itself.
        metrics: polygraphy's, over all those evaluations: the largest L2 norm of the
            difference, the smallest cosine similarity and the smallest PSNR in dB. One that
            is not finite is left out, such as the PSNR of outputs that are equal.
        passed: whether every output was finite, and within the tolerance.
    """

    depth: int
    latencies: tuple[EvaluationLatency, ...] = ()
    errors: tuple[OutputError, ...] = ()
    metrics: dict[str, float] = {}
    passed: bool = True

    @property
    def worst(self) -> float | None:
        """The largest difference, likewise."""
        return largest(point.worst for point in self.errors)

    @property
    def relative(self) -> float | None:
        """The largest relative error: infinity where outputs are not finite; None unknown."""
        return largest(point.relative for point in self.errors)


class Candidate(_Frozen, frozen=True, kw_only=True):
    """Something that evaluates the network.

    Attributes:
        name: such as ``cpu`` (a target's) or ``torch eager``.
        kind: ``engines`` for an engine set, ``torch`` for the trained network, ``peer``
            for what people would use instead.
        backend: library that evaluates.
        precision: of weights and activations.
        layout: of an engine set, else "".
        versions: of the libraries.
        bytes: on disk; None where that has no meaning.
        resident_mib: memory of the host that opening it and running every exit adds, in a
            process of its own; None where it was not measured.
        gpu_mib: memory of the GPUs likewise; None where it was not measured.
        exits: figures, shallowest first.
        skipped: why it was not compared, or what failed half-way; "" where all is there.
        quantisation: what of an engine set is quantised; None where nothing is.
    """

    name: str
    kind: Literal["engines", "torch", "peer"]
    backend: str
    precision: str
    layout: str = ""
    versions: dict[str, str] = {}
    bytes: int | None = None
    resident_mib: float | None = None
    gpu_mib: float | None = None
    exits: tuple[ExitFigures, ...] = ()
    skipped: str = ""
    quantisation: Quantisation | None = None


class TrajectoryFigures(_Frozen, frozen=True, kw_only=True):
    """Whole samplings by one candidate with one exit schedule.

    Attributes:
        candidate: its name.
        schedule: its name.
        choices: of each step.
        batch: samples at once.
        seconds_per_sample: median.
        speed_up: over the same candidate at full depth, measured in turn.
        ideal_speed_up: what the schedule's share of cost promises.
        psnr: in dB, to full depth of the same candidate at the same seeds; None for full
            depth itself.
        distance: root of the mean squared difference to it, in units of the data's range.
    """

    candidate: str
    schedule: str
    choices: tuple[Choice, ...]
    batch: int
    seconds_per_sample: float
    speed_up: float
    ideal_speed_up: float
    psnr: float | None = None
    distance: float | None = None

    @property
    def is_full(self) -> bool:
        """Whether it is full depth itself."""
        return self.psnr is None and self.distance is None

    @property
    def mean_depth(self) -> float | None:
        """Blocks that run in a step, on average; None without steps."""
        blocks = [choice.blocks for choice in self.choices]
        return sum(blocks) / len(blocks) if blocks else None


class ComparisonSettings(SampleFacts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it was measured, and which samples trajectories lead to.

    Attributes:
        batches: batch sizes; trajectories are sampled at the largest.
        rounds: of every figure; 0 where they were chosen by time.
        solver: of the trajectories, as are ``steps``.
        steps: number of steps.
        timesteps: at which outputs were compared.
        absolute: tolerance of what has no target, with ``relative``.
        relative: to the largest output.
    """

    batches: tuple[int, ...]
    rounds: int
    solver: str
    steps: int
    timesteps: tuple[float, ...]
    absolute: float
    relative: float


class Comparison(_Frozen, frozen=True, kw_only=True):
    """A comparison.

    Attributes:
        format: version of this form.
        eecompile: version that wrote it.
        network: name.
        bundle_digest: of the bundle.
        machine: its public facts: CPU model, cores, memory, system, GPUs.
        reference: name of the candidate that errors are relative to.
        settings: how it was measured.
        candidates: all that were asked for.
        trajectories: by candidate and schedule.
    """

    format: int = FORMAT
    eecompile: str
    network: str
    bundle_digest: str
    machine: dict[str, str]
    reference: str
    settings: ComparisonSettings
    candidates: tuple[Candidate, ...]
    trajectories: tuple[TrajectoryFigures, ...] = ()


def read_report(path: Path) -> Comparison:
    """The report in a file; see :func:`eecompile.store.files.read_form`."""
    return read_form(path, Comparison, FORMAT, what="report", command="compare")
