"""``eecompile compare``: engine sets beside the trained network and other ways to run it."""

from __future__ import annotations

import importlib
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
from polygraphy.comparator import RunResults

import eecompile
from eecompile.compare.accuracy import Accuracy, accuracy, outputs_of
from eecompile.compare.candidates import (
    DEFAULT,
    PEERS,
    Opened,
    Source,
    Spec,
    described,
    opened,
    peer,
    specs,
    tolerance,
)
from eecompile.compare.measure import (
    Job,
    Point,
    in_child,
    latencies,
    latency,
    points,
    quiet,
    resident_mib,
    sentence,
)
from eecompile.compare.report import (
    Candidate,
    ExitFigures,
    Latency,
    Report,
    Settings,
    write_report,
)
from eecompile.compare.runners import TrainedNetwork, checked_bundle
from eecompile.compare.trajectories import Sampled, pictures, trajectories
from eecompile.compiler.progress import Report as Progress
from eecompile.compiler.progress import silent
from eecompile.errors import BackendError, EecompileError, OutputExistsError, UsageError
from eecompile.interrupt import check
from eecompile.probes import cpu, gpus
from eecompile.runtime.fake import FakeEngine
from eecompile.runtime.interface import Interface
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.schedule import ExitSchedule

__all__ = ["PAGE", "REPORT", "Comparison", "check_output", "compare", "write"]

REPORT, PAGE = "report.json", "report.html"
_CELL = 1.5  # seconds for one exit at one batch size, where the rounds are not given
_SAMPLING = 30.0  # seconds for all trajectories, where the rounds are not given


class Comparison(NamedTuple):
    """A report, and a PNG strip of the same samples for each candidate and schedule."""

    report: Report
    images: dict[str, bytes]


class _Entry:
    """A candidate and what has been found of it so far."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.opened: Opened | None = None
        self.latencies: dict[int, tuple[Latency, ...]] = {}
        self.accuracies: dict[int, Accuracy] = {}
        self.resident_mib: float | None = None
        self.failed = ""

    def fail(self, doing: str, error: Exception | str) -> None:
        """Keep what has been found; the candidate takes no further part."""
        text = error if isinstance(error, str) else sentence(error)
        self.failed = self.failed or f"{doing}: {text}"

    def candidate(self) -> Candidate:
        """What the report says of it."""
        exits = []
        for depth in sorted({*self.latencies, *self.accuracies}):
            found = self.accuracies.get(depth, Accuracy((), {}, True))
            exits.append(
                ExitFigures(
                    depth=depth,
                    latencies=self.latencies.get(depth, ()),
                    errors=found.errors,
                    metrics=found.metrics,
                    passed=found.passed,
                )
            )
        return msgspec.structs.replace(
            described(self.spec),
            exits=tuple(exits),
            resident_mib=self.resident_mib,
            skipped=self.failed,
        )


def compare(
    bundle: Path,
    engines: Sequence[Path] = (),
    *,
    recipe: Path | None = None,
    peers: bool = False,
    named: Sequence[str] = (),
    batches: Sequence[int] = (1, 16),
    rounds: int = 0,
    solver: str | None = None,
    steps: int | None = None,
    schedules: Sequence[str] | None = None,
    seed: int = 0,
    report: Progress = silent,
) -> Comparison:
    """Measure engine sets of a bundle beside one another and beside a reference.

    The reference is the trained torch network where ``recipe`` is given, else the bundle's
    graphs in ONNX Runtime.

    Args:
        bundle: what ``eecompile export`` wrote.
        engines: what ``eecompile build`` wrote, from that bundle.
        recipe: the export recipe, which names the trained network.
        peers: also what people would use instead, as far as it is installed.
        named: peers that must be there; of :data:`eecompile.compare.candidates.PEERS`.
        batches: batch sizes; trajectories are sampled at the largest.
        rounds: how often each figure is measured; 0 for as often as about two minutes allow.
        solver: of the trajectories; None takes the recipe's.
        steps: of the trajectories; None takes the recipe's.
        schedules: names, or depths as the command line takes them; None takes the
            recipe's.
        seed: of the trajectories.
        report: told of each phase and its steps.

    Raises:
        UsageError: an engine set is not the bundle's, a peer is unknown, or an argument
            is out of range.
        BackendError: what was asked for by name cannot run here.
    """
    report("checking digests")
    interface = checked_bundle(bundle).interface
    chosen = _schedules(interface, schedules)
    settings = _settings(interface, batches, rounds, solver, steps, seed, chosen)
    wanted = specs(bundle, engines, recipe)
    found, skipped = _peers(bundle, recipe, peers, named)
    if recipe is None and not any(spec.source == "onnxruntime" for spec in found):
        found = [peer("onnxruntime", bundle, None), *found]
    every = _named_once(wanted + found)
    reference = next(s for s in every if s.source == ("torch" if recipe else "onnxruntime"))
    entries = {spec.name: _Entry(spec) for spec in every}
    with ExitStack() as stack, quiet():
        _open(entries, recipe, stack, report)
        _compare_outputs(entries, entries[reference.name], interface, settings, report)
        _measure(entries, interface, settings, report)
        sampled = _sample(entries, interface, chosen, settings, report)
        images = pictures(sampled.states, interface, list(entries))
    _measure_memory(entries, settings, report)
    candidates = [entry.candidate() for entry in entries.values()]
    made = Report(
        eecompile=eecompile.__version__,
        network=interface.name,
        bundle_digest=checked_bundle(bundle).digest,
        machine=_machine(),
        reference=reference.name,
        settings=settings,
        candidates=(*candidates, *skipped),
        trajectories=tuple(sampled.trajectories),
    )
    return Comparison(made, images)


def check_output(folder: Path) -> None:
    """Pass when a report may be written into a folder.

    Raises:
        OutputExistsError: it holds something else, or is none.
    """
    if not folder.exists():
        return
    others = (
        sorted({path.name for path in folder.iterdir()} - {REPORT, PAGE})
        if folder.is_dir()
        else [folder.name]
    )
    if others:
        raise OutputExistsError(
            found=f"{folder}, which holds {', '.join(others[:3])}"
            + (", ..." if len(others) > 3 else ""),
            expected="an empty folder, or one with an older report",
            remedy="choose another output folder",
        )


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``report.json``, and ``report.html`` where its packages are installed.

    Returns:
        What was written.

    Raises:
        OutputExistsError: the folder holds something else.
    """
    check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / REPORT]
    write_report(comparison.report, written[0])
    page = "eecompile.compare.page"
    if find_spec(page) and find_spec("plotly"):
        importlib.import_module(page).write_page(
            comparison.report, comparison.images, folder / PAGE
        )
        written.append(folder / PAGE)
    else:  # one of another report would mislead
        (folder / PAGE).unlink(missing_ok=True)
    return written


def _schedules(interface: Interface, given: Sequence[str] | None) -> dict[str, ExitSchedule]:
    if given is None:
        return dict(interface.schedules)
    return {
        text: interface.schedules.get(text) or ExitSchedule.parse(text).check(interface.exits)
        for text in given
    }


def _settings(
    interface: Interface,
    batches: Sequence[int],
    rounds: int,
    solver: str | None,
    steps: int | None,
    seed: int,
    schedules: dict[str, ExitSchedule],
) -> Settings:
    """The arguments, checked before anything is measured."""
    for what, value, least in (
        *(("batch size", batch, 1) for batch in batches),
        ("rounds", rounds, 0),
    ):
        if value < least:
            raise UsageError(
                found=f"{what} {value}",
                expected=f"{least} or more",
                remedy="mend it",
            )
    sizes = tuple(sorted(set(batches)))
    if not sizes:
        raise UsageError(
            found="no batch sizes", expected="at least one", remedy="for example --batch 1,16"
        )
    defaults = interface.sampling
    chosen = defaults.solver if solver is None else solver
    count = defaults.steps if steps is None else steps
    planner = Sampler(FakeEngine(interface.exits, lambda depth, x, t, given: x), interface)
    for schedule in schedules.values():
        planner.program(chosen, count, schedule)  # refuses what it cannot do
    return Settings(
        batches=sizes,
        rounds=rounds,
        solver=chosen,
        steps=count,
        seed=seed,
        timesteps=tuple(float(p["t"].flat[0]) for p in points(interface, sizes)[:-1]),
        absolute=DEFAULT.absolute,
        relative=DEFAULT.relative,
    )


def _peers(
    bundle: Path, recipe: Path | None, all_: bool, named: Sequence[str]
) -> tuple[list[Spec], list[Candidate]]:
    """Peers that run here; and the others, with the reason, unless they were named."""
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
            skipped.append(_skipped(source, error))
    return found, skipped


def _skipped(source: Source, error: EecompileError) -> Candidate:
    return Candidate(
        name=source,
        kind="peer",
        backend="torch" if source == "torch.compile" else source,
        precision="fp32",
        skipped=f"{error.found}: {error.remedy}",
    )


def _named_once(every: list[Spec]) -> list[Spec]:
    twice = [name for name, count in Counter(spec.name for spec in every).items() if count > 1]
    if twice:
        raise UsageError(
            found=f"two candidates named {twice[0]}",
            expected="a target with a name of its own",
            remedy="rename the target, and build for it again",
        )
    return every


def _open(
    entries: dict[str, _Entry], recipe: Path | None, stack: ExitStack, report: Progress
) -> None:
    """Open the candidates; what was asked for by name must open."""
    network = None
    for index, (name, entry) in enumerate(entries.items()):
        report("opening candidates", index, len(entries))
        if entry.spec.apart:
            continue
        if entry.spec.source in ("torch", "torch.compile") and network is None:
            network = TrainedNetwork(entry.spec.bundle, entry.spec.path)
        try:
            entry.opened = stack.enter_context(opened(entry.spec, network))
        except BackendError as error:
            raise BackendError(
                found=f"{name}: {error.found}", expected=error.expected, remedy=error.remedy
            ) from error


def _alive(entries: dict[str, _Entry]) -> dict[str, Opened]:
    """Those that can still be measured in this process."""
    return {n: e.opened for n, e in entries.items() if e.opened is not None and not e.failed}


def _compare_outputs(
    entries: dict[str, _Entry],
    reference: _Entry,
    interface: Interface,
    settings: Settings,
    report: Progress,
) -> None:
    """Every exit's outputs against the reference's."""
    assert reference.opened is not None
    largest = min(candidate.max_batch for candidate in _alive(entries).values())
    inputs = points(interface, [min(max(settings.batches), largest)])
    right = {}
    for index, depth in enumerate(interface.exits):
        report("comparing outputs", index, len(interface.exits))
        right[depth] = _reference_outputs(reference, depth, inputs)
        for name, candidate in _alive(entries).items():
            if name == reference.spec.name:
                continue
            try:
                found = outputs_of(candidate.runners[depth], inputs)
                bound = tolerance(entries[name].spec)
                entries[name].accuracies[depth] = accuracy(right[depth], found, inputs, bound)
            except Exception as error:  # a library's errors share no base class
                check()
                entries[name].fail(f"exit {depth}", error)
    apart = [entry for entry in entries.values() if entry.spec.apart]
    for index, entry in enumerate(apart):
        report("in processes of their own", index, len(apart))
        _apart(entry, right, settings, inputs)


def _reference_outputs(reference: _Entry, depth: int, inputs: Sequence[Point]) -> RunResults:
    """The outputs that all others are compared with.

    Raises:
        BackendError: it fails; there is nothing to compare then.
    """
    assert reference.opened is not None
    try:
        return outputs_of(reference.opened.runners[depth], inputs)
    except EecompileError:
        raise
    except Exception as error:  # a library's errors share no base class
        check()
        raise BackendError(
            found=f"the reference ({reference.spec.name}) failing at exit {depth} "
            f"({sentence(error)})",
            expected="its outputs, which all others are compared with",
            remedy="free memory, or choose the other reference (with or without --torch)",
        ) from error


def _apart(
    entry: _Entry, right: Mapping[int, RunResults], settings: Settings, inputs: Sequence[Point]
) -> None:
    """A candidate in a process of its own, its outputs joined through saved results."""
    with TemporaryDirectory() as folder:
        job = Job(
            spec=entry.spec,
            batches=settings.batches,
            largest=max(len(point["x"]) for point in inputs),
            rounds=settings.rounds or None,
        )
        answer = in_child(job, Path(folder))
        entry.latencies = answer.latencies
        try:
            for depth, expected in right.items():
                path = Path(folder) / f"outputs-{depth}.json"
                if not path.is_file():
                    break
                found = RunResults.load(str(path))
                entry.accuracies[depth] = accuracy(expected, found, inputs, tolerance(entry.spec))
        except EecompileError as error:
            entry.fail(f"exit {depth}", error)
        if answer.error:
            entry.fail("in a process of its own", answer.error)


def _measure(
    entries: dict[str, _Entry], interface: Interface, settings: Settings, report: Progress
) -> None:
    """Every exit at every batch size, all candidates in turns."""
    cells = [(depth, batch) for batch in settings.batches for depth in interface.exits]
    for index, (depth, batch) in enumerate(cells):
        report("measuring latency", index, len(cells))
        timings = latencies(
            _alive(entries),
            interface,
            depth,
            batch,
            rounds=settings.rounds or None,
            seconds=_CELL,
        )
        for name, error in timings.failures.items():
            entries[name].fail(f"exit {depth}, batch {batch}", error)
        for name, seconds in timings.seconds.items():
            if seconds:
                before = entries[name].latencies.get(depth, ())
                entries[name].latencies[depth] = (*before, latency(batch, seconds))


def _sample(
    entries: dict[str, _Entry],
    interface: Interface,
    schedules: dict[str, ExitSchedule],
    settings: Settings,
    report: Progress,
) -> Sampled:
    """Whole trajectories, all candidates and schedules in turns."""
    sampled = trajectories(
        _alive(entries), interface, schedules, settings, seconds=_SAMPLING, report=report
    )
    for name, error in sampled.failures.items():
        entries[name].fail("sampling", error)
    return sampled


def _measure_memory(entries: dict[str, _Entry], settings: Settings, report: Progress) -> None:
    """Memory of each candidate, once nothing else is in it."""
    for index, entry in enumerate(entries.values()):
        report("measuring memory", index, len(entries))
        # To compile in one more process would take minutes, and add nothing to torch's own.
        if entry.spec.source != "torch.compile" and not entry.spec.apart and not entry.failed:
            entry.resident_mib = resident_mib(entry.spec, settings.batches)


def _machine() -> dict[str, str]:
    """Public facts of this machine."""
    facts = {"cpu": cpu().model, "cores": str(cpu().cores)}
    with suppress(AttributeError, OSError, ValueError):  # not on every system
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts["memory"] = f"{memory / 2**30:.0f} GiB"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["python"] = platform.python_version()
    if names := [gpu.name for gpu in gpus()]:
        facts["gpus"] = ", ".join(names)
    return facts
