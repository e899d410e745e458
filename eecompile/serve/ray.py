"""Engine sets on Ray: a deployment that answers requests, and data sets made by many workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from eecompile.arrays import AnyArray
from eecompile.decoding import MalformedError, from_json
from eecompile.errors import BackendError, OutputExistsError, UsageError
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program
from eecompile.runtime.companions import Companions, NotEncoded, check_decoder, prompted
from eecompile.runtime.opening import manifests_by_target
from eecompile.runtime.program_cache import ProgramCache
from eecompile.runtime.prompts import prompts_of
from eecompile.runtime.request import SampleRequest, checked, common_interval
from eecompile.runtime.sampler import Sampler
from eecompile.serve.limits import Limits
from eecompile.store.files import written

__all__ = ["DatasetFacts", "DatasetReport", "deployment", "sample_dataset"]

_DEFAULT = Limits()
_RESTARTS = 3  # of one worker: what kills it each time ends the job
_ABOUT = "dataset.json"
_Place = str | PathLike[str]
_Texts = dict[str, list[str]]  # prompts by what they are


class DatasetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What ``dataset.json`` says of a data set, which decides every sample.

    Attributes:
        n: samples.
        block: samples of a file.
        engines: digests of the engine sets' manifests.
        program: digest of the solver's steps and the schedule.
        request: see :meth:`eecompile.SampleRequest.digest`; of prompts, too.
    """

    n: int
    block: int
    engines: tuple[str, ...]
    program: str
    request: str


class DatasetReport(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`sample_dataset` did.

    Attributes:
        files: of the data set, in the samples' order.
        kept: how many of them were there before.
    """

    files: tuple[Path, ...]
    kept: int


def sample_dataset(
    engines: _Place | Sequence[_Place],
    request: SampleRequest,
    output: _Place,
    *,
    solver: str | None = None,
    steps: int | None = None,
    schedule: str | int | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str | Sequence[str] | None = None,
    decode: bool = False,
    block: int = 256,
    workers: int | None = None,
    threads: int = 1,
) -> DatasetReport:
    """Sample a data set with workers of Ray, in files of ``block`` samples.

    ``samples-000000000.npz`` and so on hold ``samples``, float32 [<= block, *shape], or decoded,
    and the conditions by name, or the texts that they were made of as ``prompt`` and ``negative``;
    the number is that of the first sample. A list of conditions or of prompts is repeated
    in turn. Every sample depends on the seed and its index alone, so what was interrupted goes on
    with the files that are missing, and gives the same bytes. A worker that dies is started
    again, three times, and its block made anew.

    Call ``ray.init`` before, for a cluster or for options; else Ray starts on this machine. All
    machines must see the engine sets and the output at the same paths.

    Args:
        engines: an engine set, or several of one bundle.
        request: which samples.
        output: a folder, which may hold a part of the same data set.
        solver: a name with options; None takes the recipe's, as for ``steps`` and ``schedule``.
        steps: number of steps.
        schedule: a name or a depth.
        prompt: of all samples or a list, where the network has an encoder; each text is encoded
            by itself, and those of a block are held at once.
        negative: likewise, what samples are guided away from.
        decode: whether samples are decoded, where the network has a decoder.
        block: samples of a file.
        workers: processes; None is one for each ``threads`` cores that Ray has free.
        threads: of a worker, and cores that Ray counts for it.

    Raises:
        BundleError: a folder is no intact engine set.
        OutputExistsError: ``output`` holds another data set.
        UsageError: an argument is out of range, a condition or a prompt is wrong or missing.
        BackendError: Ray is missing, or a worker died again and again.
    """
    ray = _ray()
    folders = [engines] if isinstance(engines, str | PathLike) else list(engines)
    paths = [Path(each).resolve() for each in folders]
    for name, value in (("block", block), ("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(found=f"{name} {value}", expected="1 or more", remedy="choose another")
    manifests = manifests_by_target(paths)
    interface = next(iter(manifests.values())).interface
    program = ProgramCache(interface).program(solver, steps, schedule)
    texts = _texts(request, prompt=prompt, negative=negative)
    _check(interface, request, texts, decode=decode)
    facts = DatasetFacts(
        n=request.n,
        block=block,
        engines=tuple(each.digest for each in manifests.values()),
        program=hashlib.sha256(program.to_json()).hexdigest(),
        request=_digest(request, texts, decode=decode),
    )
    place = Path(output).resolve()
    _begin(place, facts)
    blocks = [
        _Block(request, first, min(block, request.first + request.n - first), place, texts, decode)
        for first in range(request.first, request.first + request.n, block)
    ]
    missing = [each for each in blocks if not each.file.exists()]
    if missing:
        if not ray.is_initialized():
            ray.init(include_dashboard=False, logging_level="warning")
        free = int(ray.cluster_resources().get("CPU", 1)) // threads
        count = min(len(missing), workers or max(1, free))
        options = {"num_cpus": threads, "max_restarts": _RESTARTS, "max_task_retries": _RESTARTS}
        kind = ray.remote(**options)(_Worker)
        pool = [kind.remote([str(path) for path in paths], threads) for _ in range(count)]
        try:
            _make(ray, pool, missing, ray.put(program.to_json()))
        finally:
            for actor in pool:
                ray.kill(actor)
    return DatasetReport(files=tuple(each.file for each in blocks), kept=len(blocks) - len(missing))


def deployment(
    engines: _Place | Sequence[_Place],
    *,
    limits: Limits = _DEFAULT,
    joining: bool | None = None,
    max_batch: int | None = None,
    max_waiting: int = 1024,
    threads: int | None = None,
    **options: Any,
) -> Any:
    """An application for ``ray.serve.run``: replicas of what ``eecompile serve`` serves.

    Each replica opens the engine sets, and its scheduler lets requests join.

    Args:
        engines: an engine set, or several of one bundle, at paths that all machines see.
        limits: of a request.
        joining: see :class:`eecompile.serve.Scheduler`.
        max_batch: likewise; None measures it, see :func:`eecompile.serve.rows_that_pay`.
        max_waiting: likewise, of each replica.
        threads: of an evaluation; see :meth:`eecompile.Sampler.open`.
        options: of ``ray.serve.deployment``: ``num_replicas``, ``autoscaling_config``,
            ``ray_actor_options`` and so on. ``max_ongoing_requests`` is 256 unless given: the
            scheduler holds what waits.

    Raises:
        BackendError: Ray Serve is missing.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise _missing() from error
    folders = [engines] if isinstance(engines, str | PathLike) else list(engines)
    paths = [str(Path(each).resolve()) for each in folders]

    def application() -> Any:
        from eecompile.serve.app import app_from_sampler
        from eecompile.serve.rows import rows_that_pay

        sampler = Sampler.open(*paths, threads=threads)
        sampler.warmup()
        if sampler.companions is not None:
            sampler.companions.open_all()
        rows = rows_that_pay(sampler) if max_batch is None else max_batch
        return app_from_sampler(
            sampler, limits=limits, joining=joining, max_batch=rows, max_waiting=max_waiting
        )

    options.setdefault("max_ongoing_requests", 256)

    class Samples:
        """A replica."""

    return serve.deployment(**options)(serve.ingress(application)(Samples)).bind()


class _Block(msgspec.Struct, frozen=True):
    """A file of the data set, and the samples that it holds."""

    request: SampleRequest
    first: int
    n: int
    folder: Path
    texts: _Texts
    decode: bool

    @property
    def file(self) -> Path:
        return self.folder / f"samples-{self.first:09d}.npz"

    def prompts(self) -> dict[str, list[str]]:
        """Of each of its samples; the lists are repeated in turn."""
        start = self.first - self.request.first
        return {
            what: [texts[index % len(texts)] for index in range(start, start + self.n)]
            for what, texts in self.texts.items()
        }


class _Apart:
    """Encodes prompts one by one, so that a sample does not depend on what was encoded before."""

    def __init__(self, companions: Companions) -> None:
        self._companions = companions

    def encoded(self, prompts: Sequence[str], *, negative: bool = False) -> dict[str, AnyArray]:
        """See :meth:`eecompile.runtime.companions.Companions.encoded`."""
        made = {
            text: self._companions.encoded([text], negative=negative)
            for text in dict.fromkeys(prompts)
        }
        names = made[prompts[0]]
        return {name: np.concatenate([made[text][name] for text in prompts]) for name in names}


class _Worker:
    """An actor: makes blocks, whose files appear whole."""

    def __init__(self, engines: list[str], threads: int) -> None:
        self._sampler = Sampler.open(*engines, threads=threads)

    def make(self, block: _Block, program: bytes) -> None:
        """Write a block's file, sampled by a program's JSON."""
        interface = self._sampler.interface
        part = block.request.part(interface, block.first, block.n)
        arrays = _conditions(interface, part)
        if self._sampler.companions is not None:
            texts = block.prompts()
            arrays |= {what: np.array(listed) for what, listed in texts.items()}
            one = {what: listed[:1] if len(set(listed)) == 1 else listed
                   for what, listed in texts.items()}  # fmt: skip
            part = prompted(part, interface, _Apart(self._sampler.companions), **one)
        (samples,) = self._sampler.sample_requests([part], solver=Program.from_json(program))
        arrays["samples"] = self._sampler.decode(samples) if block.decode else samples
        with written(block.file) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def _conditions(interface: Interface, part: SampleRequest) -> dict[str, AnyArray]:
    """Those that no prompt stands for."""
    samples = range(part.first, part.first + part.n)
    return {
        name: spec.values(name, part.conditions.get(name), samples)
        for name, spec in interface.conditions.items()
        if name in part.conditions or name not in interface.prompted
    }


def _texts(request: SampleRequest, **given: str | Sequence[str] | None) -> _Texts:
    """The lists of texts that were given, by what they are."""
    texts = {what: prompts_of(each, what) for what, each in given.items() if each is not None}
    for what, listed in texts.items():
        if len(listed) > request.n:
            raise UsageError(
                found=f"{len(listed)} {what}s for {request.n} samples",
                expected="as many or fewer, which are repeated in turn",
                remedy=f"ask for more samples, or pass fewer {what}s",
            )
    return texts


def _check(interface: Interface, request: SampleRequest, texts: _Texts, *, decode: bool) -> None:
    """Whether the sampler will take such samples.

    Raises:
        UsageError: it will not.
    """
    if decode:
        check_decoder(interface)
    one = {what: listed[0] for what, listed in texts.items()}
    encoding = NotEncoded(interface) if interface.encoders else None
    whole = request.part(interface, request.first, request.n)
    checked(interface, prompted(whole, interface, encoding, **one))
    common_interval(interface, [request])


def _digest(request: SampleRequest, texts: _Texts, *, decode: bool) -> str:
    if not texts and not decode:
        return request.digest()
    told = msgspec.json.encode([request.digest(), texts, decode], order="deterministic")
    return hashlib.sha256(told).hexdigest()


def _begin(output: Path, facts: DatasetFacts) -> None:
    """Make the folder, or find a part of the same data set in it."""
    about = output / _ABOUT
    if about.exists():
        try:
            before = from_json(about.read_bytes(), DatasetFacts)
        except MalformedError:
            before = None
        if before != facts:
            raise OutputExistsError(
                found=f"{output} with another data set",
                expected="a part of the same: engine sets, solver, schedule, request and block",
                remedy="choose another output folder, or ask for the same",
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputExistsError(
            found=f"{output}, which holds something else",
            expected="no such folder, an empty one, or a part of the same data set",
            remedy="choose another output folder",
        )
    output.mkdir(parents=True, exist_ok=True)
    with written(about) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")


def _make(ray: Any, pool: list[Any], blocks: list[_Block], program: Any) -> None:
    """Have all blocks made by a program in Ray's store, two on their way to each worker."""
    left = iter(blocks)
    under_way: dict[Any, Any] = {}

    def give(actor: Any) -> None:
        block = next(left, None)
        if block is not None:
            under_way[actor.make.remote(block, program)] = actor

    for actor in (*pool, *pool):
        give(actor)
    while under_way:
        (done, *_), _ = ray.wait(list(under_way))
        actor = under_way.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.RayActorError as error:
            raise BackendError(
                found=f"a worker that died {_RESTARTS + 1} times",
                expected="workers that can make every block",
                remedy="see Ray's logs; ask for smaller blocks if memory was short, and start "
                "again: what is made is kept",
            ) from error
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        give(actor)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise _missing() from error
    return ray


def _missing() -> BackendError:
    return BackendError(
        found="no package ray",
        expected="it, with Ray Serve",
        remedy="pip install 'eecompile[ray]'",
    )
