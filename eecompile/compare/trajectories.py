"""Whole samplings: how long they take with each exit schedule, and what they lead to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np

from eecompile.arrays import Array
from eecompile.compare.arguments import FULL
from eecompile.compare.candidates import Opened
from eecompile.compare.report import ComparisonSettings, TrajectoryFigures
from eecompile.interrupt import check
from eecompile.measure.timing import interleaved
from eecompile.programs.choice import Choice
from eecompile.programs.interface import Interface
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler

_SHOWN = 8  # pictures a strip
_SEEN = 0.99  # share of a difference's pixels that are within black and white
_TILE = 128  # pixels of the side that small pictures are enlarged to
_LEAST = 3  # rounds


class Sampled(NamedTuple):
    """Trajectories, their samples by (candidate, schedule), and what failed."""

    trajectories: list[TrajectoryFigures]
    states: dict[tuple[str, str], Array]
    failures: dict[str, Exception]


class _Run:
    """One candidate with one schedule, warmed up: it samples when called, and keeps the states."""

    def __init__(
        self,
        sampler: Sampler,
        schedule: ExitSchedule,
        settings: ComparisonSettings,
        request: SampleRequest,
    ) -> None:
        self._sampler, self._request = sampler, request
        self._program = sampler.program(settings.solver, settings.steps, schedule)
        self.choices = tuple(step.chosen for step in self._program.steps)
        self.states: Array | None = None
        sampler.warmup(
            request.n,
            solver=self._program,
            guidance=settings.guidance,
            guidance_interval=request.guidance_interval,
            shape=request.shape,
        )

    def __call__(self) -> None:
        (self.states,) = self._sampler.sample_requests([self._request], solver=self._program)


def trajectories(
    candidates: Mapping[str, Opened],
    interface: Interface,
    schedules: Mapping[str, ExitSchedule],
    settings: ComparisonSettings,
    request: SampleRequest,
    *,
    seconds: float,
    report: Callable[[str, int, int], object],
) -> Sampled:
    """Sample with every candidate and schedule by name, full depth among them, in turns.

    It takes about so many ``seconds``, where ``settings.rounds`` is 0.
    """
    failures: dict[str, Exception] = {}
    runs: dict[tuple[str, str], _Run] = {}
    for index, (name, candidate) in enumerate(candidates.items()):
        report("preparing trajectories", index, len(candidates))
        try:
            sampler = Sampler(candidate.engine, interface)  # which its owner closes
            made = {
                (name, key): _Run(sampler, schedule, settings, request)
                for key, schedule in schedules.items()
            }
        except Exception as error:  # a library's errors share no base class
            check()
            failures[name] = error
        else:
            runs |= made
    report("sampling with each schedule", 0, 0)
    timings = interleaved(
        runs,
        rounds=settings.rounds or None,
        seconds=seconds,
        least=_LEAST,
        warm=True,
    )
    for (name, _), failure in timings.failures.items():
        failures.setdefault(name, failure)
    medians = {key: float(np.median(times)) for key, times in timings.seconds.items() if times}
    states = {key: run.states for key, run in runs.items() if run.states is not None}
    found = [
        _figures(key, runs[key].choices, medians, states, interface)
        for key in runs
        if key in medians and (key[0], FULL) in medians
    ]
    return Sampled(found, states, failures)


def _figures(
    key: tuple[str, str],
    choices: tuple[Choice, ...],
    medians: Mapping[tuple[str, str], float],
    states: Mapping[tuple[str, str], Array],
    interface: Interface,
) -> TrajectoryFigures:
    (name, schedule), batch = key, len(states[key])
    full = states[name, FULL]
    low, high = interface.state.range or (float(full.min()), float(full.max()))
    squares = np.square(np.subtract(states[key], full, dtype=np.float64))
    distance = math.sqrt(float(squares.mean())) / ((high - low) or 1.0)
    apart = schedule != FULL
    return TrajectoryFigures(
        candidate=name,
        schedule=schedule,
        choices=choices,
        batch=batch,
        seconds_per_sample=medians[key] / batch,
        speed_up=medians[name, FULL] / medians[key],
        ideal_speed_up=len(choices) / sum(map(interface.cost, choices)),
        psnr=-20 * math.log10(distance) if apart and distance else None,
        distance=distance if apart else None,
    )


def pictures(
    states: Mapping[tuple[str, str], Array], interface: Interface, chosen: Sequence[str]
) -> dict[str, bytes]:
    """A PNG strip of the first samples for each chosen candidate and schedule, by what it shows.

    Below samples of a schedule are their differences to full depth. Empty where samples are no
    pictures, or the package to draw them is missing.
    """
    from eecompile.errors import UsageError

    try:
        from eecompile.show.pictures import check_pictures, save_grid

        check_pictures(interface.state.shape)
    except (ImportError, UsageError):
        return {}
    apart = {
        (name, schedule): np.abs(samples - states[name, FULL])[:_SHOWN]
        for (name, schedule), samples in states.items()
        if name in chosen and schedule != FULL and (name, FULL) in states
    }
    # A few pixels may be brighter than white, so that the others are seen.
    farthest = max((float(np.quantile(each, _SEEN)) for each in apart.values()), default=0.0)
    made = {}
    for (name, schedule), samples in states.items():
        if name in chosen:
            bounds = interface.state.range or (float(samples.min()), float(samples.max()) + 1e-6)
            shown, title, png = samples[:_SHOWN], "", BytesIO()
            if (name, schedule) in apart and farthest:
                gain = (bounds[1] - bounds[0]) / farthest
                shown = np.concatenate([shown, bounds[0] + gain * apart[name, schedule]])
                title = f"below: difference to full depth, {gain:.3g} times as bright"
            save_grid(shown, bounds, png, title=title, columns=len(samples[:_SHOWN]), tile=_TILE)
            made[f"{name}, {schedule}"] = png.getvalue()
    return made
