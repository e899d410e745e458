"""Samples beside real data: the figures, the floor, and what limits them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

import eecompile
from eecompile.arrays import Array
from eecompile.compiler.progress import Report
from eecompile.errors import UsageError
from eecompile.evaluate.bench import FEWEST, Bench, space_of
from eecompile.evaluate.data import Source, Space
from eecompile.evaluate.metrics import Frechet
from eecompile.evaluate.report import Evaluation, EvaluationSettings, SampleFigures
from eecompile.evaluate.samples import SampleSource
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_engine_set
from eecompile.store.manifest import EngineManifest


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation compares, and on what.

    Attributes:
        reference: real data: a folder of pictures, .npy, .npz or an IDX file.
        request: which samples are made.
        batch: samples made, and kept, at a time.
        work: folder that keeps samples and features, for an evaluation that goes on.
        features: an ONNX feature network; None takes EfficientNet-Lite0.
        decoder: an ONNX graph that makes pictures of samples.
        reference_n: real samples that are looked at, spread over the reference; None for all.
        floor: more real data, compared with the reference; None compares its two halves.
        samples: files of ready samples.
        solver: a name; None takes the network's own, as for ``steps``.
        steps: of the solver.
        threads: of one evaluation, as for a sampler.
    """

    reference: Path
    request: SampleRequest
    work: Path
    batch: int = 256
    features: Path | None = None
    decoder: Path | None = None
    reference_n: int | None = None
    floor: Path | None = None
    samples: tuple[Path, ...] = ()
    solver: str | None = None
    steps: int | None = None
    threads: int | None = None


def evaluate(
    engines: Sequence[Path],
    schedules: Sequence[tuple[str, ExitSchedule | str | Program]],
    options: Options,
    report: Report,
) -> Evaluation:
    """Compare samples of engine sets, and ready ones, with real data.

    Args:
        engines: engine sets of one network; may be empty where there are ready samples.
        schedules: names for the table, and what they stand for; a program has a solver
            and steps of its own.
        options: what is compared, and on what.
        report: told of the progress.

    Raises:
        UsageError: there is nothing to evaluate, too few samples, or data of other shapes.
        BundleError: a folder is no intact engine set.
        NonFiniteError: the network returned NaN or infinity.
    """
    _check(engines, options)
    manifests = [open_engine_set(folder) for folder in engines]
    with ExitStack() as stack:
        made = None
        if engines:
            sampler = stack.enter_context(Sampler.open(*engines, threads=options.threads))
            made = _Made(sampler, manifests, schedules, options)
        space = made.space if made else space_of(options.samples[0])
        bench = Bench(space, options.features, options.decoder, options.work, report)
        real = bench.real(options.reference, options.reference_n)
        ready = [bench.ready(path) for path in options.samples]
        more = bench.real(options.floor) if options.floor else None
        reference = bench.of_real(real)
        floor = _floor(bench, reference, more)
        rows = list(made.rows(bench, reference)) if made else []
        rows += [
            bench.compare(path.name, bench.of_made(source), reference)[0]
            for path, source in zip(options.samples, ready, strict=True)
        ]
    return Evaluation(
        eecompile=eecompile.__version__,
        network=manifests[0].interface.name if manifests else "",
        engines=tuple(manifest.target.name for manifest in manifests),
        bundle_digest=manifests[0].bundle_digest if manifests else "",
        features=bench.name,
        dimensions=reference.shape[1],
        reference=options.reference.name,
        reference_samples=len(reference),
        floor=floor,
        floor_kind="data" if more else "halves",
        rows=tuple(rows),
        settings=made.settings if made else None,
        warnings=tuple(_warnings(reference, None if more else floor, rows)),
    )


class _Made:
    """Samples that are made here: a program for each schedule."""

    def __init__(
        self,
        sampler: Sampler,
        manifests: Sequence[EngineManifest],
        schedules: Sequence[tuple[str, ExitSchedule | str | Program]],
        options: Options,
    ) -> None:
        self._interface, request = sampler.interface, options.request
        sampler.check(request.part(self._interface, request.first, request.n))
        state = self._interface.state
        self.space = Space(state.check_shape(request.shape or state.shape), state.range)
        fingerprints = [manifest.fingerprint for manifest in manifests]
        self._sources = [
            SampleSource(
                sampler,
                fingerprints,
                sampler.program(given)
                if isinstance(given, Program)
                else sampler.program(options.solver, options.steps, given),
                request,
                batch=options.batch,
                name=name,
                work=options.work,
            )
            for name, given in schedules
        ]
        self._in_turns = not any(np.ndim(given) for given in request.conditions.values())
        first, facts = self._sources[0].program, request.facts(self._interface)
        self.settings = EvaluationSettings(solver=first.solver, steps=len(first.steps), **facts)

    def rows(self, bench: Bench, reference: Array) -> Iterator[SampleFigures]:
        first: Frechet | None = None
        for source in self._sources:
            source.make(bench.report)
            made, program = bench.of_made(source), source.program
            figures, found = bench.compare(source.name, made, reference, in_turns=self._in_turns)
            choices = tuple(step.chosen for step in program.steps)
            cost = sum(map(self._interface.cost, choices)) / len(choices)
            more = {"choices": choices, "cost_share": round(cost, 5)}
            if program.solver != self.settings.solver:
                more["solver"] = program.solver
            if first:
                beyond, error = found.beyond(first)
                more |= {"beyond": round(beyond, 4), "beyond_error": round(error, 4)}
            first = first or found
            yield msgspec.structs.replace(figures, **more)


def _floor(bench: Bench, reference: Array, more: Source | None) -> SampleFigures:
    """Real data against real data: against other data, or one half against the other."""
    if more:
        name, real = Path(more.name).name, bench.of_real(more, len(reference))
        return bench.compare(name, real, reference)[0]
    order = np.random.default_rng(0).permutation(len(reference))
    one, other = order[: len(order) // 2], order[len(order) // 2 :]
    return bench.compare("one half", reference[one], reference[other])[0]


def _warnings(
    reference: Array, halves: SampleFigures | None, rows: Sequence[SampleFigures]
) -> list[str]:
    features, told = reference.shape[1], []
    sizes = {"the reference": len(reference)} | {row.name: row.samples for row in rows}
    for name, count in sizes.items():
        if count <= features:
            told.append(
                f"{name} has {count} samples, fewer than {features} features need "
                f"({features + 1}): the Frechet distance is far too large, and good for a rough "
                "order only"
            )
    if halves:
        told.append(
            f"the floor is of {halves.samples} against {len(reference) - halves.samples} samples, "
            "and so higher than one of full size: give more real data with --floor"
        )
    return told


def _check(engines: Sequence[Path], options: Options) -> None:
    if not engines and not options.samples:
        raise UsageError(
            found="no engine set and no --samples",
            expected="something to evaluate",
            remedy="name an engine set, or a file of samples",
        )
    real = options.reference_n
    if min(options.request.n, FEWEST if real is None else real) < FEWEST or options.batch < 1:
        given = "" if real is None else f", --reference-n {real}"
        raise UsageError(
            found=f"-n {options.request.n}{given}, --batch {options.batch}",
            expected=f"{FEWEST} samples or more (10,000 are usual), and a batch of 1 or more",
            remedy="ask for more",
        )
