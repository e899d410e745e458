"""What an evaluation says."""

from __future__ import annotations

import msgspec

from eecompile.programs.choice import Choice
from eecompile.runtime.request import SampleFacts

FORMAT = 2


class SampleFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One set of samples against the reference.

    Attributes:
        name: the exit schedule, the file, or what the floor is made of.
        samples: how many.
        frechet_distance: on the features.
        error: its standard error from which samples were drawn.
        beyond: by how much the distance exceeds the first schedule's.
        beyond_error: standard error of that; less than of either, where seeds are the same.
        precision: share of the samples that lie in the reference's manifold.
        recall: share of the reference that lies in the samples' manifold.
        choices: of each step, where the samples were made here.
        cost_share: mean over the steps, of what full depth costs; by the recipe's costs or blocks.
        solver: where it is another than in the settings: a program's.
    """

    name: str
    samples: int
    frechet_distance: float
    error: float
    precision: float
    recall: float
    beyond: float | None = None
    beyond_error: float | None = None
    choices: tuple[Choice, ...] = ()
    cost_share: float | None = None
    solver: str | None = None


class EvaluationSettings(SampleFacts, frozen=True, kw_only=True):
    """How samples were made.

    Attributes:
        solver: and its options, of the first row that was made here.
        steps: of it; a row of other steps has other ``choices``.
    """

    solver: str
    steps: int


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What ``eecompile evaluate`` writes.

    Attributes:
        format: of this form.
        eecompile: version that wrote it.
        network: name; "" for ready samples alone.
        engines: the engine sets' targets.
        bundle_digest: of the network.
        features: the feature network.
        dimensions: of its features.
        reference: what samples are compared with.
        reference_samples: how many these are.
        floor: real data against real data.
        floor_kind: ``halves`` of the reference, or ``data`` of its own against it.
        rows: a row each schedule, then each file of ready samples.
        settings: of sampling.
        warnings: what limits the figures.
    """

    format: int = FORMAT
    eecompile: str = ""
    network: str = ""
    engines: tuple[str, ...] = ()
    bundle_digest: str = ""
    features: str
    dimensions: int
    reference: str
    reference_samples: int
    floor: SampleFigures
    floor_kind: str
    rows: tuple[SampleFigures, ...]
    settings: EvaluationSettings | None = None
    warnings: tuple[str, ...] = ()
