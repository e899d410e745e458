"""The sampler: runs programs on engines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, NoReturn, Self

from numpy.typing import ArrayLike

from eecompile.arrays import Array, DeviceArray
from eecompile.errors import UsageError
from eecompile.handle import Handle
from eecompile.notebook import facts_html
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.programs.solvers import Solver
from eecompile.runtime.companions import Companions, decoding, prompted
from eecompile.runtime.isolated import SECONDS, check_isolated
from eecompile.runtime.opening import engine_from_manifests, manifests_by_target
from eecompile.runtime.pool import TrajectoryPool
from eecompile.runtime.program_cache import ProgramCache, Schedule
from eecompile.runtime.prompts import count_of
from eecompile.runtime.protocol import Engine
from eecompile.runtime.request import (
    Interval,
    SampleRequest,
    batches,
    checked,
    common_interval,
    filled,
)
from eecompile.runtime.sampling import BatchRun, Hook, StepResult, progress_line

_log = logging.getLogger("eecompile.runtime")


class Sampler(Handle):
    """Samples a multi-exit diffusion network.

    May be used from several threads. On a CPU their samplings run side by side; where
    :attr:`concurrent` is false, as on a GPU, engines share memory, and one sampling waits
    for the other's evaluation, or for its whole trajectory.

    Args:
        engine: evaluates the network, or a group of engines; the sampler closes it.
        interface: what the network takes and gives.
        on_step: told of every step on every batch. What it raises is logged, not raised.
            On a GPU, steps are then taken and waited for one by one.
        name: of the engine set, for metrics and logs.
        companions: encodes prompts, and decodes samples; the sampler closes it.

    Attributes:
        engines: names of the engine sets that schedules may name: their targets'.
    """

    def __init__(
        self,
        engine: Engine,
        interface: Interface,
        *,
        on_step: Hook | None = None,
        name: str = "",
        companions: Companions | None = None,
    ) -> None:
        self.engine = engine
        self.companions = companions
        self.interface = interface
        self.on_step = on_step
        self.name = name or interface.name
        self.engines: tuple[str, ...] = tuple(engine.members)
        self._programs = ProgramCache(interface)
        self._pool = TrajectoryPool(lambda engine, plan: engine.trajectory(plan))

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *more: str | PathLike[str],
        threads: int | None = None,
        shared_pool: bool = False,
        on_step: Hook | None = None,
        check: Literal["isolated"] | None = None,
        check_seconds: float = SECONDS,
        signed_by: str | PathLike[str] | None = None,
    ) -> Self:
        """Open an engine set, or several of one network.

        Args:
            path: the folder that ``eecompile build`` wrote.
            more: engine sets of the same bundle for other targets, such as another
                precision. Schedules name them; what names none runs on the first.
            threads: threads of one evaluation, 0 for the physical cores; None takes the
                target's.
            shared_pool: of ONNX Runtime on a CPU: let all its sessions use the process's
                one thread pool. For a process that has no sessions of its own: ONNX
                Runtime then refuses those that want their own threads.
            on_step: see :class:`Sampler`.
            check: ``isolated``: let a process of its own open the engine sets first, and
                evaluate every exit. A damaged engine of which the backend's library dies
                is then a BackendError, and does not end this process.
            check_seconds: that this may take.
            signed_by: file of the public key that must have signed each folder; see
                ``eecompile sign``.

        Raises:
            BundleError: a folder is no intact engine set.
            SignatureError: a folder is not signed by that key.
            UsageError: the engine sets are not of the same bundle, or two are for the
                same target; or ``signed_by`` is no public key.
            BackendError: a backend is missing, or refuses an engine, or does not fit
                this machine; or the check failed.
        """
        started = time.perf_counter()
        if check not in (None, "isolated"):
            raise UsageError(
                found=f"check={check!r}",
                expected="'isolated', or None",
                remedy="choose one of them",
            )
        folders = [Path(folder) for folder in (path, *more)]
        manifests = manifests_by_target(folders, None if signed_by is None else Path(signed_by))
        if check is not None:
            check_isolated(
                folders, manifests, threads, shared_pool=shared_pool, seconds=check_seconds
            )
        engine = engine_from_manifests(folders, manifests, threads, shared_pool=shared_pool)
        manifest = next(iter(manifests.values()))
        name = f"{manifest.interface.name} for {' and '.join(manifests)}"
        where = ", ".join(map(str, folders))
        _log.info("opened %s (%s) in %.2f s", name, where, time.perf_counter() - started)
        companions = Companions(folders[0], manifest, threads) if manifest.companions else None
        sampler = cls(engine, manifest.interface, on_step=on_step, name=name, companions=companions)
        sampler.engines = tuple(manifests)
        return sampler

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: what engines hold belongs to their process.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            found=f"the sampler of {self.name} to be pickled, as for another process",
            expected="the path of its engine set",
            remedy="call Sampler.open(path) in the process that samples, such as in the "
            "initializer of its pool",
        )

    def __repr__(self) -> str:
        """The network, the engine sets, and the exits."""
        return f"<Sampler of {self.name}: exits {', '.join(map(str, self.interface.exits))}>"

    def _repr_html_(self) -> str:
        """For notebooks: what it samples, and the default schedule."""
        facts = {"exits": ", ".join(map(str, self.interface.exits)), **self.interface.facts()}
        default = self.interface.schedules.get(self.interface.sampling.schedule)
        shown = [default._repr_html_()] if default else []
        return facts_html(f"Sampler of {self.name}", facts, *shown)

    @property
    def concurrent(self) -> bool:
        """Whether samplings from several threads run side by side."""
        return self.engine.concurrent

    def close(self) -> None:
        """Release the engines; the sampler cannot be used afterwards.

        Samplings that other threads have under way end with a UsageError at their next step.
        """
        self._pool.close()
        self.engine.close()
        if self.companions is not None:
            self.companions.close()

    def schedule(self, schedule: Schedule | None = None) -> ExitSchedule:
        """An exit schedule for this network.

        Args:
            schedule: a name from the export recipe, ``full``, a depth or choice for all times,
                choices over equal slices of time (t = 0 first), or an ExitSchedule, such
                as ``ExitSchedule.read(file)``; None takes the recipe's default.

        Raises:
            ScheduleError: the name is unknown, or a depth is no exit.
        """
        return self._programs.schedule(schedule)

    def program(
        self,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
    ) -> Program:
        """The program for a solver, a number of steps and an exit schedule.

        Args:
            solver: a name such as ``ddim``, with options ``ddim:eta=0.5,grid=karras``; a
                function such as ``functools.partial(ddim, eta=0.5)``; or a program.
            steps: number of steps; a program has its own.
            schedule: see :meth:`schedule`; a program has its own, unless its choices
                are open.

        Raises:
            UsageError: the solver is unknown, ``steps`` is not what it can take, or a
                program came with steps or a schedule, or is for another process.
            ScheduleError: a depth is no exit.
        """
        return self._programs.program(solver, steps, schedule)

    def check(self, request: SampleRequest) -> None:
        """Pass when a request can be sampled.

        Raises:
            UsageError: an argument is out of range, a condition unknown or wrong.
        """
        checked(self.interface, request)
        common_interval(self.interface, [request])

    def prompted(
        self,
        request: SampleRequest,
        prompt: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
    ) -> SampleRequest:
        """A request with the conditions that stand for prompts; see :meth:`steps`.

        Where samples are guided, and neither the request nor the recipe says what stands for "no
        condition", the empty prompt does.

        Raises:
            UsageError: the network has no encoder, or what prompts give is given otherwise, too.
            BackendError: an encoder's package is missing, or its engine fails.
        """
        return prompted(request, self.interface, self.companions, prompt, negative)

    def decode(self, samples: Array, tile: int | None = None) -> Array:
        """What samples, float32 [n, *shape], are decoded to, float32.

        Pictures are [n, channels, H, W], videos [n, channels, frames, H, W], and waveforms
        [n, channels, values]; values are about those of ``interface.decoder.range``. Of text they
        are scores of all tokens, [n, length, tokens]: see :meth:`texts`.

        Args:
            samples: the samples.
            tile: length along the last two axes (of audio, the last) of the overlapping tiles in
                which longer samples are decoded, for which lengths must be free
                (``state.resizable``); None takes the recipe's ``decoder.tile``, or whole samples.

        Raises:
            UsageError: the network has no decoder, or it takes no such tiles.
            BackendError: the decoder's package is missing, or its engine fails.
        """
        return decoding(self.interface, self.companions).decoded(samples, tile)

    def texts(self, decoded: Array) -> list[str]:
        """The texts of the likeliest tokens, one a sample, without the tokenizer's marks.

        Args:
            decoded: what the decoder gave, float32 [n, length, tokens].

        Raises:
            UsageError: the network's decoder gives no text.
            BackendError: the package tokenizers is missing.
        """
        companions, decoder = self.companions, self.interface.decoder
        if companions is None or decoder is None or decoder.kind != "text":
            raise UsageError(
                found=f"decoded samples of {self.interface.name} to read",
                expected="a network whose decoder gives text",
                remedy="take what was decoded as it is",
            )
        return companions.texts(decoded)

    def sample(
        self,
        n: int | None = None,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        guidance: ArrayLike | None = None,
        guidance_interval: Interval | None = None,
        nulls: Mapping[str, ArrayLike] | None = None,
        shape: Sequence[int] | None = None,
        first: int = 0,
        prompt: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        decode: bool = False,
        progress: bool | Callable[[int, int], object] = False,
        **conditions: ArrayLike,
    ) -> Array:
        """Sample; float32 [n, *shape], or what the decoder makes of it where ``decode`` is true.

        Other arguments and errors are those of :meth:`steps` and :meth:`decode`.

        With ``progress``, a line on standard error counts the steps, in a terminal as in a
        notebook; a function is told instead how many are done, and of how many. On a GPU,
        steps are then taken and waited for one by one.
        """
        if decode:
            decoding(self.interface, self.companions)  # else fails now
        request = SampleRequest(
            n=count_of(n, prompt),
            seed=seed,
            guidance=guidance,
            guidance_interval=guidance_interval,
            conditions=conditions,
            nulls={} if nulls is None else nulls,
            shape=shape,
            first=first,
        )
        request = self.prompted(request, prompt, negative)
        run = self.planned([request], solver, steps, schedule)
        if progress:
            run = run.watched(progress_line if progress is True else progress)
        (samples,) = run.samples()
        return self.decode(samples) if decode else samples

    def sample_requests(
        self,
        requests: Sequence[SampleRequest],
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
    ) -> list[Array]:
        """Sample for several callers at once: their samples share the engine's batches.

        Arguments and errors are those of :meth:`steps`; requests may differ in
        everything but the program and the guidance interval.

        Returns:
            For each request, float32 [n, *shape].
        """
        return self.planned(list(requests), solver, steps, schedule).samples()

    def sample_on_device(
        self,
        request: SampleRequest,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
    ) -> DeviceArray:
        """Sample, and leave the result where it was computed.

        Arguments and errors are those of :meth:`steps`; the samples must fit into one batch.

        Returns:
            An object that speaks DLPack, float32 [n, *shape]: on a GPU, device memory that
            belongs to the caller; on a CPU, a numpy array.
        """
        return self.planned([request], solver, steps, schedule).state_on_device()

    def steps(
        self,
        n: int | None = None,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        guidance: ArrayLike | None = None,
        guidance_interval: Interval | None = None,
        nulls: Mapping[str, ArrayLike] | None = None,
        shape: Sequence[int] | None = None,
        first: int = 0,
        prompt: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        **conditions: ArrayLike,
    ) -> Iterator[StepResult]:
        """Sample step by step; stop whenever you like.

        Arguments are checked at once, before the first step is asked for.

        Args:
            n: number of samples; None takes one for each prompt, or one.
            solver: see :meth:`program`; None takes the recipe's, as for ``steps``,
                ``schedule`` and ``guidance``.
            steps: number of steps, as the solver counts them.
            schedule: see :meth:`schedule`.
            seed: 0 to 2**64 - 1. Sample i of a seed is the same whatever batch it is in.
            guidance: scale of classifier-free guidance (arXiv 2207.12598), one for all
                samples or one for each; 1 is none.
            guidance_interval: smallest and largest time t, of [0, T], at which guidance
                acts (arXiv 2404.07724); None takes the recipe's.
            nulls: by condition, what stands for "no condition" in guidance, such as the
                embedding of an empty text; None takes the recipe's.
            shape: of a sample, where the network allows a choice; None takes the recipe's.
            first: index of the first sample, so that samples can be made in portions.
            prompt: for all samples, or one for each; where the network has an encoder, it stands
                for the conditions that the encoder gives.
            negative: likewise, in the place of their nulls; None takes the recipe's, or the empty
                prompt where it has none.
            conditions: by name, a value for all samples or one for each.

        Yields:
            One result per step.

        Raises:
            UsageError: an argument is out of range, a condition unknown or wrong.
            NonFiniteError: the network returned NaN or infinity.
            BackendError: the engine failed, as for want of memory.
        """
        request = SampleRequest(
            n=count_of(n, prompt),
            seed=seed,
            guidance=guidance,
            guidance_interval=guidance_interval,
            conditions=conditions,
            nulls={} if nulls is None else nulls,
            shape=shape,
            first=first,
        )
        request = self.prompted(request, prompt, negative)
        return self.planned([request], solver, steps, schedule).step_by_step()

    def warmup(
        self,
        n: int = 1,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        guidance: float | None = None,
        guidance_interval: Interval | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        """Run one warm-up pass: allocate buffers, and capture the CUDA graph on a GPU.

        On a CPU, every exit is evaluated once at that batch size. Conditions are the
        defaults, or zeros. Arguments and errors are those of :meth:`steps`; of guidance, it
        counts whether there is any, which decides the size of the batch.
        """
        request = SampleRequest(
            n=n, guidance=guidance, guidance_interval=guidance_interval, shape=shape
        )
        self.planned([filled(self.interface, request)], solver, steps, schedule).warm_up()

    def planned(
        self,
        requests: Sequence[SampleRequest],
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
    ) -> BatchRun:
        """What was asked for, checked and divided into batches; nothing is evaluated yet.

        Arguments and errors are those of :meth:`sample_requests`.
        """
        self._pool.check_open()
        program = self._programs.program(solver, steps, schedule)
        program = self._programs.one_of_equals(program, self.engine, self.engines)
        rows = [checked(self.interface, request) for request in requests]
        interval = common_interval(self.interface, requests)
        parts = list(batches(rows, self.engine.max_batch, program, self.interface, interval))
        shapes = [(len(each.seeds), *each.shape) for each in rows]
        return BatchRun(self.engine, self._pool, program, parts, shapes, self.on_step, self.name)
