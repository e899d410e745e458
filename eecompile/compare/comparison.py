"""``eecompile compare``: engine sets beside the trained network and other ways to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from polygraphy.comparator import RunResults

import eecompile
from eecompile.compare.accuracy import accuracy, outputs_of
from eecompile.compare.arguments import (
    check_batches,
    found_peers,
    named_once,
    schedules_of,
    settings_of,
)
from eecompile.compare.candidates import (
    Opened,
    Spec,
    described,
    opened,
    peer,
    specs,
    tolerance,
)
from eecompile.compare.checks import checked_bundle
from eecompile.compare.child import Job, JobResult, in_child, memory
from eecompile.compare.measure import Point, latencies, latency, points, quiet, sentence
from eecompile.compare.report import (
    Candidate,
    Comparison,
    ComparisonSettings,
    EvaluationLatency,
    ExitFigures,
)
from eecompile.compare.trained import TrainedNetwork
from eecompile.compare.trajectories import Sampled, pictures, trajectories
from eecompile.compiler.progress import Report as Progress
from eecompile.compiler.progress import silent
from eecompile.errors import BackendError, EecompileError, NonFiniteError
from eecompile.interrupt import check
from eecompile.measure.machine import machine_facts
from eecompile.programs.interface import Interface
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleRequest
from eecompile.store.files import form_bytes, outline
from eecompile.store.folders import FolderKind, check_folder
from eecompile.store.results import PAGE, page_file, write_results
from eecompile.system import work_folder

REPORT = "report.json"
_CELL = 1.5  # seconds for one exit at one batch size, where the rounds are not given
_SAMPLING = 30.0  # seconds for all trajectories, where the rounds are not given


class ComparisonResult(NamedTuple):
    """A report, and a PNG strip of the same samples for each candidate and schedule."""

    report: Comparison
    images: dict[str, bytes]


class _Outline(msgspec.Struct):
    """What reports of every format have."""

    format: int
    eecompile: str


def _names(folder: Path) -> set[str]:
    return {REPORT, PAGE} if outline(folder / REPORT, _Outline) else set()


REPORTS = FolderKind("an older report", _names)


def check_output(folder: Path) -> None:
    """Pass when a report may be written there; see :func:`check_folder`."""
    check_folder(folder, replaces=True, kind=REPORTS)


def write(result: ComparisonResult, folder: Path) -> list[Path]:
    """Write ``report.json``, and ``report.html`` where the packages for it are installed.

    Returns:
        What was written.

    Raises:
        OutputExistsError: the folder holds something else.
    """

    def page() -> str:
        from eecompile.compare.page import page_of

        return page_of(result.report, result.images)

    files = {REPORT: form_bytes(result.report), **page_file(page)}
    return write_results(folder, files, REPORTS, replaces=True)


class _Entry:
    """A candidate and what has been found of it so far."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.opened: Opened | None = None
        self.exits: dict[int, ExitFigures] = {}
        self.memory = JobResult()
        self.failed = ""

    def fail(self, doing: str, error: Exception | str) -> None:
        """Keep what has been found; the candidate takes no further part."""
        text = error if isinstance(error, str) else sentence(error)
        self.failed = self.failed or f"{doing}: {text}"

    def add(self, depth: int, *latencies: EvaluationLatency) -> None:
        """Keep latencies of an exit, beside those that are there."""
        exit_ = self.exits.get(depth, ExitFigures(depth=depth))
        latencies = (*exit_.latencies, *latencies)
        self.exits[depth] = msgspec.structs.replace(exit_, latencies=latencies)

    def candidate(self) -> Candidate:
        return msgspec.structs.replace(
            described(self.spec),
            exits=tuple(exit_ for _, exit_ in sorted(self.exits.items())),
            resident_mib=self.memory.resident_mib,
            gpu_mib=self.memory.gpu_mib,
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
    samples: SampleRequest | None = None,
    report: Progress = silent,
) -> ComparisonResult:
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
        schedules: names, files, or depths as the command line takes them; None takes the
            recipe's.
        samples: which ones trajectories lead to; their number is that of the largest batch.
            Conditions that have no default are made up where they are not given.
        report: told of each phase and its steps.

    Raises:
        UsageError: an engine set is not the bundle's, a peer is unknown, or an argument
            is out of range.
        BackendError: what was asked for by name cannot run here, or the reference fails.
        NonFiniteError: the reference's outputs are not finite.
    """
    report("checking digests")
    interface = checked_bundle(bundle).interface
    chosen = schedules_of(interface, schedules, solver, steps)
    settings, request = settings_of(
        interface,
        chosen,
        batches=batches,
        rounds=rounds,
        solver=solver,
        steps=steps,
        samples=samples or SampleRequest(),
    )
    wanted = specs(bundle, engines, recipe)
    check_batches(wanted, settings.batches)
    found, skipped = found_peers(bundle, recipe, peers, named)
    if recipe is None and not any(spec.source == "onnxruntime" for spec in found):
        found = [peer("onnxruntime", bundle, None), *found]
    every = wanted + found
    named_once(every)
    reference = next(s for s in every if s.source == ("torch" if recipe else "onnxruntime"))
    work = _Comparing(every, reference.name, interface, settings, report)
    with ExitStack() as stack, quiet():
        work.open(recipe, stack)
        work.compare_outputs()
        work.measure()
        sampled = work.sample(chosen, request)
        images = pictures(sampled.states, interface, list(work.entries))
    work.measure_memory()
    made = Comparison(
        eecompile=eecompile.__version__,
        network=interface.name,
        bundle_digest=checked_bundle(bundle).digest,
        machine=machine_facts(),
        reference=reference.name,
        settings=settings,
        candidates=(*(entry.candidate() for entry in work.entries.values()), *skipped),
        trajectories=tuple(sampled.trajectories),
    )
    return ComparisonResult(made, images)


class _Comparing:
    """A comparison under way: its candidates by name, one of which is the reference."""

    def __init__(
        self,
        specs: Sequence[Spec],
        reference: str,
        interface: Interface,
        settings: ComparisonSettings,
        report: Progress,
    ) -> None:
        self.entries = {spec.name: _Entry(spec) for spec in specs}
        self.reference, self.interface = reference, interface
        self.settings, self.report = settings, report

    def _alive(self) -> dict[str, Opened]:
        """Those that can still be measured in this process."""
        return {n: e.opened for n, e in self.entries.items() if e.opened and not e.failed}

    def open(self, recipe: Path | None, stack: ExitStack) -> None:
        """Open the candidates; what was asked for by name must open."""
        network = None
        for index, (name, entry) in enumerate(self.entries.items()):
            self.report("opening candidates", index, len(self.entries))
            if entry.spec.apart:
                continue
            if entry.spec.source in ("torch", "torch.compile") and network is None:
                network = TrainedNetwork(entry.spec.bundle, entry.spec.path)
            try:
                entry.opened = stack.enter_context(opened(entry.spec, network))
            except BackendError as error:
                error.found = f"{name}: {error.found}"
                raise

    def compare_outputs(self) -> None:
        """Every exit's outputs against the reference's."""
        largest = min(candidate.engine.max_batch for candidate in self._alive().values())
        inputs = points(self.interface, [min(max(2, *self.settings.batches), largest)])
        right = {}
        for index, depth in enumerate(self.interface.exits):
            self.report("comparing outputs", index, len(self.interface.exits))
            right[depth] = self._reference_outputs(depth, inputs)
            for name, candidate in self._alive().items():
                if name == self.reference:
                    continue
                entry = self.entries[name]
                try:
                    found = outputs_of(candidate.runner(depth), inputs)
                    bound = tolerance(entry.spec)
                    entry.exits[depth] = accuracy(depth, right[depth], found, inputs, bound)
                except Exception as error:  # a library's errors share no base class
                    check()
                    entry.fail(f"exit {depth}", error)
        apart = [entry for entry in self.entries.values() if entry.spec.apart]
        for index, entry in enumerate(apart):
            self.report("in processes of their own", index, len(apart))
            self._apart(entry, right, inputs)

    def _reference_outputs(self, depth: int, inputs: Sequence[Point]) -> RunResults:
        """The outputs that all others are compared with.

        Raises:
            BackendError: it fails; there is nothing to compare then.
            NonFiniteError: they are not finite.
        """
        reference = self.entries[self.reference].opened
        assert reference is not None
        try:
            made = outputs_of(reference.runner(depth), inputs)
            for point, outputs in zip(inputs, made[0][1], strict=True):
                if not all(np.isfinite(array).all() for array in outputs.values()):
                    raise NonFiniteError(
                        found=f"NaN or infinity from the reference ({self.reference}) at exit "
                        f"{depth}, t = {point['t'].flat[0]:g}",
                        expected="finite outputs, to compare others with",
                        remedy="look into the trained network",
                    )
            return made
        except EecompileError:
            raise
        except Exception as error:  # a library's errors share no base class
            check()
            raise BackendError(
                found=f"the reference ({self.reference}) failing at exit {depth} "
                f"({sentence(error)})",
                expected="its outputs, which all others are compared with",
                remedy="free memory, or choose the other reference (with or without --torch)",
            ) from error

    def _apart(
        self, entry: _Entry, right: Mapping[int, RunResults], inputs: Sequence[Point]
    ) -> None:
        """A candidate in a process of its own, its outputs joined through saved results."""
        with work_folder() as folder:
            job = Job(
                spec=entry.spec,
                batches=self.settings.batches,
                largest=max(len(point["x"]) for point in inputs),
                rounds=self.settings.rounds or None,
            )
            entry.memory = answer = in_child(job, folder)
            try:
                for depth, expected in right.items():
                    path = folder / f"outputs-{depth}.json"
                    if not path.is_file():
                        break
                    found, bound = RunResults.load(str(path)), tolerance(entry.spec)
                    entry.exits[depth] = accuracy(depth, expected, found, inputs, bound)
            except EecompileError as error:
                entry.fail(f"exit {depth}", error)
        for depth, rows in answer.latencies.items():
            entry.add(depth, *rows)
        if answer.error:
            entry.fail("in a process of its own", answer.error)

    def measure(self) -> None:
        """Every exit at every batch size, all candidates in turns."""
        exits, rounds = self.interface.exits, self.settings.rounds or None
        cells = [(depth, batch) for batch in self.settings.batches for depth in exits]
        for index, (depth, batch) in enumerate(cells):
            self.report("measuring latency", index, len(cells))
            timings = latencies(
                self._alive(), self.interface, depth, batch, rounds=rounds, seconds=_CELL
            )
            for name, error in timings.failures.items():
                self.entries[name].fail(f"exit {depth}, batch {batch}", error)
            for name, seconds in timings.seconds.items():
                if seconds:
                    self.entries[name].add(depth, latency(batch, seconds))

    def sample(self, schedules: Mapping[str, ExitSchedule], request: SampleRequest) -> Sampled:
        """Whole trajectories, all candidates and schedules in turns."""
        sampled = trajectories(
            self._alive(),
            self.interface,
            schedules,
            self.settings,
            request,
            seconds=_SAMPLING,
            report=self.report,
        )
        for name, error in sampled.failures.items():
            self.entries[name].fail("sampling", error)
        return sampled

    def measure_memory(self) -> None:
        """Memory of each candidate, once nothing else is in it."""
        for index, entry in enumerate(self.entries.values()):
            self.report("measuring memory", index, len(self.entries))
            # To compile in one more process would take minutes, and add nothing to torch's own.
            if entry.spec.source != "torch.compile" and not entry.spec.apart and not entry.failed:
                entry.memory = memory(entry.spec, self.settings.batches)
