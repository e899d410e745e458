"""The arguments of a comparison, checked before anything is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from eecompile.backends import PEERS
from eecompile.compare.candidates import DEFAULT, Spec, max_batch, peer
from eecompile.compare.measure import points
from eecompile.compare.report import Candidate, ComparisonSettings
from eecompile.compiler.verify import random_inputs
from eecompile.errors import EecompileError, ScheduleError, UsageError
from eecompile.programs.interface import Interface
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler

FULL = "full"
"""The schedule that every comparison samples: the deepest exit at every timestep."""


def schedules_of(
    interface: Interface,
    given: Sequence[str] | None,
    solver: str | None = None,
    steps: int | None = None,
) -> dict[str, ExitSchedule]:
    """The exit schedules by name, full depth first; see :func:`eecompile.compare.compare`.

    Where none are given, all of the recipe's that go with the solver and the number of steps.

    Raises:
        ScheduleError: one is unknown or malformed, or chooses among several engine sets.
    """
    chosen = {FULL: ExitSchedule.constant(interface.exits[-1])}
    if given is None:
        return chosen | interface.schedules_for(solver, steps)
    for text in given:
        if text == FULL:
            continue
        found = interface.schedules.get(text) or ExitSchedule.parse(text)
        if any(choice.engine for choice in found.choices):
            raise ScheduleError(
                found=f"exit schedule {text}, which chooses among engine sets",
                expected="depths alone: each candidate samples by itself",
                remedy="leave out the names of engine sets",
            )
        name = Path(text).stem if text.endswith(".json") else text
        chosen[text if name in chosen else name] = found.check(interface.exits, interface.cuts)
    return chosen


def settings_of(
    interface: Interface,
    schedules: Mapping[str, ExitSchedule],
    *,
    batches: Sequence[int],
    rounds: int,
    solver: str | None,
    steps: int | None,
    samples: SampleRequest,
) -> tuple[ComparisonSettings, SampleRequest]:
    """The settings, with the recipe's defaults for what is None; and what is sampled.

    Raises:
        UsageError: an argument is out of range, or nothing can be sampled so.
    """
    numbers = [("batch size", batch, 1) for batch in batches]
    for what, value, least in (*numbers, ("rounds", rounds, 0)):
        if value < least:
            raise UsageError(found=f"{what} {value}", expected=f"{least} or more", remedy="fix it")
    sizes = tuple(sorted(set(batches)))
    if not sizes:
        raise UsageError(
            found="no batch sizes", expected="at least one", remedy="for example --batch 1,16"
        )
    planner = Sampler(FakeEngine(interface.exits, lambda depth, x, t, given: x), interface)
    request = _completed(msgspec.structs.replace(samples, n=sizes[-1]), interface)
    planner.check(request)
    defaults = interface.sampling
    settings = ComparisonSettings(
        batches=sizes,
        rounds=rounds,
        solver=defaults.solver if solver is None else solver,
        steps=defaults.steps if steps is None else steps,
        timesteps=tuple(float(p["t"].flat[0]) for p in points(interface, sizes)[:-1]),
        absolute=DEFAULT.absolute,
        relative=DEFAULT.relative,
        **samples.facts(interface),
    )
    for schedule in schedules.values():
        planner.program(settings.solver, settings.steps, schedule)
    return settings, request


def _completed(samples: SampleRequest, interface: Interface) -> SampleRequest:
    """With what was not given made up: conditions without default, and nulls."""
    whole, specs = samples.part(interface, samples.first, samples.n), interface.conditions
    made = random_inputs(interface, whole.n, 0, seed=abs(whole.seed))  # refused below 0
    conditions = {k: made[k] for k, spec in specs.items() if spec.default is None}
    nulls = {k: np.zeros(spec.shape, spec.dtype) for k, spec in specs.items() if spec.null is None}
    return msgspec.structs.replace(
        whole, conditions=conditions | dict(whole.conditions), nulls=nulls | dict(whole.nulls)
    )


def check_batches(every: Sequence[Spec], batches: Sequence[int]) -> None:
    """Pass when every engine set takes such batches.

    Raises:
        UsageError: one does not.
    """
    for spec in every:
        most = max_batch(spec)
        if max(batches) > most:
            raise UsageError(
                found=f"batch size {max(batches)}, and engines of {spec.name} for at most {most}",
                expected=f"batch sizes up to {most}",
                remedy="choose smaller ones with --batch, or build for a target with a "
                "larger batch.max",
            )


def found_peers(
    bundle: Path, recipe: Path | None, all_: bool, named: Sequence[str]
) -> tuple[list[Spec], list[Candidate]]:
    """Peers that run here, of those named or of ``all_``; and the others, with the reason.

    Raises:
        UsageError: a name is none of theirs, or a named one needs the recipe.
        BackendError: a named one cannot run here.
    """
    for name in named:
        if name not in PEERS:
            raise UsageError(
                found=f"peer {name!r}",
                expected=f"one of {', '.join(PEERS)}",
                remedy="choose one of these",
            )
    found, skipped = [], []
    for source in PEERS:
        if not all_ and source not in named:
            continue
        try:
            found.append(peer(source, bundle, recipe))
        except EecompileError as error:
            if source in named:
                raise
            skipped.append(
                Candidate(
                    name=source,
                    kind="peer",
                    backend=source.removesuffix(".compile"),
                    precision="fp32",
                    skipped=f"{error.found}: {error.remedy}",
                )
            )
    return found, skipped


def named_once(every: Sequence[Spec]) -> None:
    """Pass when no two candidates have one name.

    Raises:
        UsageError: two have.
    """
    twice = [name for name, count in Counter(spec.name for spec in every).items() if count > 1]
    if twice:
        raise UsageError(
            found=f"two candidates named {twice[0]}",
            expected="engine sets of different targets, or folders of different names",
            remedy="name each engine set once, or rename the target or the folder",
        )
