"""What a tuning found: the documented form of ``front.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from eecompile.programs.choice import Choice
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleFacts
from eecompile.store.files import read_form
from eecompile.tune.latency import StepLatency

FORMAT = 3
USES = ("exits", "forecasts", "spans")
"""What schedules may use, beside full depth."""
Measure = Annotated[float, Meta(ge=0)]
Kind = Literal["full", "found", "exit", "linear", "ase", "recipe", "published", "steps", "alone"]


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of a front."""


class TuningSettings(SampleFacts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How schedules are looked for; tuning fills in the facts of the samples.

    Attributes:
        solver: its name and options.
        steps: as the solver counts them.
        budgets: shares of full depth's time; empty for the whole front.
        batch: samples at once, where time is measured.
        seeds: samples by which schedules are chosen.
        held_out: further samples, by which they are reported.
        use: what schedules may use beside full depth of every engine set: ``exits``,
            ``forecasts``, ``spans``; empty for all that the engine sets can do, which tuning
            fills in.
        monotone: whether the depth must not fall as t goes to 0.
        minutes: for trying changes on real distances, over all budgets; times are measured
            more often the more there are.
    """

    solver: str
    steps: int
    budgets: tuple[float, ...] = ()
    batch: int = 16
    seeds: int = 16
    held_out: int = 48
    use: tuple[str, ...] = ()
    monotone: bool = False
    minutes: float = 2.0


class FrontPoint(_Frozen, frozen=True, kw_only=True):
    """A program, measured on the held-out samples.

    Attributes:
        name: the schedule's file without ``.json``, or what a baseline is called.
        kind: ``full`` depth, ``found`` by tuning, one ``exit`` throughout, ``linear``,
            ``ase`` (the authors' shares of depth), of the ``recipe``, a ``published`` rule for
            forecasts, fewer ``steps``, or one kind of choice ``alone``.
        steps: as the solver counts them.
        schedule: of exits.
        choices: of each step.
        budget: for which it was looked for; None where for none.
        predicted_share: time over full depth's, by the measured cost of each step.
        time_share: the same, of whole samplings: the median of the rounds.
        spread: smallest and largest of the rounds.
        ideal_share: what the choices promise, by the network's costs or else by blocks.
        seconds_per_sample: median.
        distance: root of the mean squared difference to full depth at the same seeds, in
            units of the data's range, or of full depth's standard deviation where the
            data has none.
        interval: 95 % interval of the distance, by bootstrap over samples.
        psnr: in dB; None where the data has no range, and for full depth.
        chosen_by: distance at the samples that it was chosen by; None for baselines.
    """

    name: str
    kind: Kind
    steps: int
    schedule: ExitSchedule
    choices: tuple[Choice, ...]
    budget: float | None = None
    predicted_share: Measure
    time_share: Measure
    spread: tuple[Measure, Measure]
    ideal_share: Measure
    seconds_per_sample: Measure
    distance: Measure
    interval: tuple[Measure, Measure]
    psnr: float | None = None
    chosen_by: Measure | None = None


class BaselineComparison(_Frozen, frozen=True, kw_only=True):
    """A baseline beside what tuning found.

    Attributes:
        baseline: its name.
        found: the nearest found schedule that takes no more time, as measured.
        time_share: time of the found one over the baseline's.
        distance_ratio: distance of the found one over the baseline's.
        interval: 95 % interval of that ratio, by bootstrap over the samples of both.
        time_share_at_distance: time over the baseline's of the fastest found schedule that
            surely takes less and is no farther, by 95 % intervals; None without any.
    """

    baseline: str
    found: str
    time_share: Measure
    distance_ratio: Measure
    interval: tuple[Measure, Measure]
    time_share_at_distance: Measure | None = None


class Front(_Frozen, frozen=True, kw_only=True):
    """A tuning.

    Attributes:
        format: version of this form.
        eecompile: version that wrote it.
        network: name.
        engines: names of the engine sets, the first one first.
        identity: digest of what was measured: settings and engine sets.
        machine: its public facts.
        settings: how schedules were looked for.
        unit: what distances are in units of.
        seconds: that the tuning took, interruptions left out.
        latencies: of every choice.
        moments: t of each step.
        errors: by choice, in the order of ``error_terms``, distance that it leads to where it is
            taken at one step alone, by step.
        error_terms: names of the choices in ``errors``.
        points: full depth, what was found, and baselines.
        comparisons: with every baseline.
        warnings: what a reader must know.
    """

    format: int = FORMAT
    eecompile: str
    network: str
    engines: tuple[str, ...]
    identity: str
    machine: dict[str, str] = {}
    settings: TuningSettings
    unit: Literal["range", "deviation"]
    seconds: Measure
    latencies: tuple[StepLatency, ...]
    moments: tuple[float, ...]
    error_terms: tuple[str, ...]
    errors: tuple[tuple[Measure, ...], ...]
    points: tuple[FrontPoint, ...]
    comparisons: tuple[BaselineComparison, ...] = ()
    warnings: tuple[str, ...] = ()


def read_front(path: Path) -> Front:
    """The front in a file; see :func:`eecompile.store.files.read_form`."""
    return read_form(path, Front, FORMAT, what="front", command="tune")
