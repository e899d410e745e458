"""The sampler: runs programs on engines."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from eecompile.arrays import Array
from eecompile.errors import BackendError, EecompileError, ScheduleError, UsageError
from eecompile.handle import Handle
from eecompile.programs.choice import Choice, check_exits
from eecompile.programs.interface import Interface
from eecompile.programs.process import Process
from eecompile.programs.program import Program, Step
from eecompile.programs.schedule import ExitSchedule
from eecompile.programs.solvers import Solver, solver_named
from eecompile.runtime.opening import open_engines
from eecompile.runtime.protocol import Engine
from eecompile.runtime.request import Batch, SampleRequest, batches, checked, whole
from eecompile.runtime.trajectory.plan import Plan, Trajectory

__all__ = ["Sampler", "StepMetrics", "StepResult"]

Schedule = str | int | Sequence[Choice | int | str] | ExitSchedule
Interval = tuple[float, float]
_IDLE = 8  # trajectories that wait for the next request of their kind
_PROGRAMS = 32  # compiled programs that are kept
_log = logging.getLogger("eecompile.runtime")


class StepResult(msgspec.Struct, frozen=True):
    """A step that has been taken.

    Attributes:
        index: of the step, from 0.
        timestep: at which the network was evaluated.
        choice: what was evaluated.
        state: the state after the step, float32 [n, ...].
        seconds: wall time of the step.
    """

    index: int
    timestep: float
    choice: Choice
    state: Array
    seconds: float


class StepMetrics(msgspec.Struct, frozen=True):
    """What a hook is told of a step on one batch.

    Attributes:
        engine: the engine set's network and target.
        program: the solver and its options.
        index: of the step, from 0.
        timestep: at which the network was evaluated.
        choice: what was evaluated.
        samples: in the batch.
        rows: that the network was evaluated on, those of guidance included; 0 for none.
        seconds: wall time of the step.
    """

    engine: str
    program: str
    index: int
    timestep: float
    choice: Choice
    samples: int
    rows: int
    seconds: float


Hook = Callable[[StepMetrics], object]


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
    ) -> None:
        self.engine = engine
        self.interface = interface
        self.on_step = on_step
        self.name = name or interface.name
        self.engines: tuple[str, ...] = tuple(engine.members)
        self._closed = False
        self._lock = Lock()
        self._idle: OrderedDict[object, list[Trajectory]] = OrderedDict()
        self._programs: OrderedDict[object, Program] = OrderedDict()
        self._equal: OrderedDict[Program, Program] = OrderedDict()
        self._seen: OrderedDict[int, tuple[Program, Program]] = OrderedDict()

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *more: str | PathLike[str],
        threads: int | None = None,
        shared_pool: bool = False,
        on_step: Hook | None = None,
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

        Raises:
            BundleError: a folder is no intact engine set.
            UsageError: the engine sets are not of the same bundle, or two are for the
                same target.
            BackendError: a backend is missing, or refuses an engine, or does not fit
                this machine.
        """
        started = time.perf_counter()
        folders = [Path(folder) for folder in (path, *more)]
        engine, manifests = open_engines(folders, threads, shared_pool=shared_pool)
        manifest = next(iter(manifests.values()))
        name = f"{manifest.interface.name} for {' and '.join(manifests)}"
        where = ", ".join(map(str, folders))
        _log.info("opened %s (%s) in %.2f s", name, where, time.perf_counter() - started)
        made = cls(engine, manifest.interface, on_step=on_step, name=name)
        made.engines = tuple(manifests)
        return made

    @property
    def concurrent(self) -> bool:
        """Whether samplings from several threads run side by side."""
        return self.engine.concurrent

    def close(self) -> None:
        """Release the engines; the sampler cannot be used afterwards.

        Samplings that other threads have under way end with a UsageError at their next step.
        """
        with self._lock:
            self._closed = True  # from here on, nothing is put back
        self._clear()
        self.engine.close()

    def schedule(self, schedule: Schedule | None = None) -> ExitSchedule:
        """An exit schedule for this network.

        Args:
            schedule: a name from the export recipe, ``full``, a depth for all timesteps,
                choices over equal slices of time (t = 0 first), or an ExitSchedule, such
                as ``ExitSchedule.read(file)``; None takes the recipe's default.

        Raises:
            ScheduleError: the name is unknown, or a depth is no exit.
        """
        chosen = self.interface.sampling.schedule if schedule is None else schedule
        if isinstance(chosen, str):
            known = self.interface.schedules
            if chosen not in known:
                raise ScheduleError(
                    found=f"exit schedule {chosen!r}",
                    expected=f"one of {sorted(known)}",
                    remedy="choose one of these, or give its depths",
                )
            chosen = known[chosen]
        elif isinstance(chosen, int | np.integer):
            chosen = ExitSchedule.constant(int(chosen))
        elif not isinstance(chosen, ExitSchedule):
            chosen = ExitSchedule.from_slices(chosen)
        return chosen.check(self.interface.exits)

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
        if isinstance(solver, Program):
            return self._checked_program(solver, steps, schedule)
        defaults, process = self.interface.sampling, self.interface.process
        name = defaults.solver if solver is None else solver
        exits = self.schedule(schedule)
        count = defaults.steps if steps is None else whole("steps", steps)
        clip = self.interface.state.range
        if not isinstance(name, str):
            return _compiled(name, name, process, count, exits, clip)
        key = (name, count, exits)
        with self._lock:
            if (known := self._programs.get(key)) is not None:
                return known
        made = _compiled(solver_named(name), name, process, count, exits, clip)
        with self._lock:
            self._programs[key] = made
            while len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        return made

    def check(self, request: SampleRequest) -> None:
        """Pass when a request can be sampled.

        Raises:
            UsageError: an argument is out of range, a condition unknown or wrong.
        """
        checked(self.interface, request)

    def sample(
        self,
        n: int = 1,
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
        **conditions: ArrayLike,
    ) -> Array:
        """Sample; float32 [n, *shape]. Arguments and errors are those of :meth:`steps`."""
        request = SampleRequest(
            n=n,
            seed=seed,
            guidance=guidance,
            conditions=conditions,
            nulls=nulls or {},
            shape=shape,
            first=first,
        )
        (samples,) = self.sample_requests(
            [request],
            solver=solver,
            steps=steps,
            schedule=schedule,
            guidance_interval=guidance_interval,
        )
        return samples

    def sample_requests(
        self,
        requests: Sequence[SampleRequest],
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        guidance_interval: Interval | None = None,
    ) -> list[Array]:
        """Sample for several callers at once: their samples share the engine's batches.

        Args:
            requests: they may differ in everything but the program.
            solver: see :meth:`program`, as for ``steps`` and ``schedule``.
            steps: number of steps.
            schedule: see :meth:`schedule`.
            guidance_interval: see :meth:`steps`.

        Returns:
            For each request, float32 [n, *shape].

        Raises:
            UsageError: an argument is out of range, a condition unknown or wrong.
            NonFiniteError: the network returned NaN or infinity.
            BackendError: the engine failed, as for want of memory.
        """
        requests = list(requests)
        program, interval, parts = self._asked(requests, solver, steps, schedule, guidance_interval)
        found = [np.empty((r.n, *self._shape(r)), np.float32) for r in requests]
        started, evaluations = time.perf_counter(), 0
        for part in parts:
            with self._trajectory(program, interval, part) as trajectory:
                trajectory.start(part.rows)
                self._run(trajectory, program, part)
                for (request, row), sample in zip(part.places, trajectory.state(), strict=True):
                    found[request][row] = sample
            evaluations += len(program.steps)
        _log.debug(
            "%s: %d samples, %s, %d evaluations in %.3f s",
            self.name,
            sum(len(samples) for samples in found),
            program.solver,
            evaluations,
            time.perf_counter() - started,
        )
        return found

    def sample_on_device(
        self,
        request: SampleRequest,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        guidance_interval: Interval | None = None,
    ) -> Any:
        """Sample, and leave the result where it was computed.

        Args:
            request: no more samples than the engine takes at once.
            solver: see :meth:`program`, as for ``steps`` and ``schedule``.
            steps: number of steps.
            schedule: see :meth:`schedule`.
            guidance_interval: see :meth:`steps`.

        Returns:
            An object that speaks DLPack, float32 [n, *shape]: on a GPU, device memory that
            belongs to the caller; on a CPU, a numpy array.

        Raises:
            UsageError: the request is too large; and as :meth:`sample_requests`.
        """
        program, interval, parts = self._asked(
            [request], solver, steps, schedule, guidance_interval
        )
        if len(parts) > 1:
            raise UsageError(
                found=f"{request.n} samples to be left on the device",
                expected=f"no more than fit into a batch of {self.engine.max_batch}",
                remedy="ask for fewer at a time (first=...), or build for larger batches",
            )
        with self._trajectory(program, interval, parts[0]) as trajectory:
            trajectory.start(parts[0].rows)
            self._run(trajectory, program, parts[0])
            return trajectory.state_dlpack()

    def steps(
        self,
        n: int = 1,
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
        **conditions: ArrayLike,
    ) -> Iterator[StepResult]:
        """Sample step by step; stop whenever you like.

        Arguments are checked at once, before the first step is asked for.

        Args:
            n: number of samples.
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
            conditions: by name, a value for all samples or one for each.

        Yields:
            One result a step.

        Raises:
            UsageError: an argument is out of range, a condition unknown or wrong.
            NonFiniteError: the network returned NaN or infinity.
            BackendError: the engine failed, as for want of memory.
        """
        request = SampleRequest(
            n=n,
            seed=seed,
            guidance=guidance,
            conditions=conditions,
            nulls=nulls or {},
            shape=shape,
            first=first,
        )
        program, interval, parts = self._asked(
            [request], solver, steps, schedule, guidance_interval
        )
        return self._step_by_step(program, interval, parts, (request.n, *self._shape(request)))

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
        """Do what the first request of a kind would have to wait for.

        Every exit is evaluated once at that batch size, buffers are made and kept; on a GPU
        the trajectory is run, and captured as a graph. Conditions are the defaults, or
        zeros.

        Args:
            n: number of samples that requests will ask for.
            solver: see :meth:`program`, as for ``steps`` and ``schedule``.
            steps: number of steps.
            schedule: see :meth:`schedule`.
            guidance: scale; whether there is any decides the size of the batch.
            guidance_interval: see :meth:`steps`.
            shape: of a sample.

        Raises:
            UsageError: an argument is out of range.
            BackendError: the engine failed, as for want of memory.
        """
        conditions = {
            name: np.full(c.shape, c.range[0] if c.range else 0, c.dtype)
            for name, c in self.interface.conditions.items()
            if c.default is None
        }
        nulls = {
            name: np.zeros(c.shape, c.dtype)
            for name, c in self.interface.conditions.items()
            if c.null is None
        }
        request = SampleRequest(
            n=n, guidance=guidance, conditions=conditions, nulls=nulls, shape=shape
        )
        program, interval, parts = self._asked(
            [request], solver, steps, schedule, guidance_interval
        )
        for part in {(p.guided, len(p.places)): p for p in parts}.values():
            with self._trajectory(program, interval, part) as trajectory:
                trajectory.start(part.rows)
                if self.engine.runs_trajectories:
                    trajectory.run()
                else:  # each exit once, whichever the schedule names
                    moment = program.steps[0]
                    for engine in (self.engine.members or {"": self.engine}).values():
                        for depth in self.interface.exits:
                            self._warm(engine, moment, depth, part)
                    trajectory.step(0)

    def _warm(self, engine: Engine, moment: Step, depth: int, part: Batch) -> None:
        rows = len(part.places) + (0 if part.apart else part.guided)
        x = np.zeros((rows, *part.shape), np.float32)
        given = {name: array[:rows] for name, array in part.rows.conditions.items()}
        engine.evaluate(depth, x, np.full(rows, moment.timestep, np.float32), given)

    def _asked(
        self,
        requests: Sequence[SampleRequest],
        solver: str | Solver | Program | None,
        steps: int | None,
        schedule: Schedule | None,
        interval: Interval | None,
    ) -> tuple[Program, Interval | None, list[Batch]]:
        """What is to be run, checked."""
        self._check_open()
        program = self._one_of_equals(self.program(solver, steps, schedule))
        chosen = self.interface.sampling.guidance_interval if interval is None else interval
        chosen = None if chosen is None else _interval(chosen, self.interface.process)
        rows = [checked(self.interface, request) for request in requests]
        return program, chosen, list(batches(rows, self.engine.max_batch))

    def _step_by_step(
        self,
        program: Program,
        interval: Interval | None,
        parts: Sequence[Batch],
        shape: tuple[int, ...],
    ) -> Iterator[StepResult]:
        with ExitStack() as stack:
            trajectories = [
                stack.enter_context(self._trajectory(program, interval, part)) for part in parts
            ]
            for trajectory, part in zip(trajectories, parts, strict=True):
                trajectory.start(part.rows)
            for index, step in enumerate(program.steps):
                started = time.perf_counter()
                state = np.empty(shape, np.float32)
                for trajectory, part in zip(trajectories, parts, strict=True):
                    self._step(trajectory, program, index, part)
                    state[[row for _, row in part.places]] = trajectory.state()
                seconds = time.perf_counter() - started
                yield StepResult(index, step.timestep, step.chosen, state, seconds)

    def _run(self, trajectory: Trajectory, program: Program, part: Batch) -> None:
        """Take all steps: at once where a device does that, unless someone watches."""
        if self.on_step is None and self.engine.runs_trajectories:
            self._check_open()
            trajectory.run()
            return
        for index in range(len(program.steps)):
            self._step(trajectory, program, index, part)

    def _step(self, trajectory: Trajectory, program: Program, index: int, part: Batch) -> None:
        self._check_open()
        if self.on_step is None:
            trajectory.step(index)
            return
        step, started = program.steps[index], time.perf_counter()
        trajectory.step(index)
        trajectory.wait()
        engine = step.chosen.engine
        metrics = StepMetrics(
            f"{self.interface.name} for {engine}" if engine else self.name,
            program.solver,
            index,
            step.timestep,
            step.chosen,
            len(part.places),
            trajectory.plan.rows(step),
            time.perf_counter() - started,
        )
        try:
            self.on_step(metrics)
        except Exception:  # whatever a caller's hook may raise
            _log.exception("the hook on_step failed")

    @contextmanager
    def _trajectory(
        self, program: Program, interval: Interval | None, part: Batch
    ) -> Iterator[Trajectory]:
        """A trajectory for a batch; kept for the next of its kind, unless something fails."""
        interval = interval if part.guided else None
        # The trajectory keeps the program, so that its id stays its own.
        key = (id(program), part.shape, len(part.places), part.guided, interval, part.apart)
        with self._lock:
            waiting = self._idle.get(key)
            trajectory = waiting.pop() if waiting else None
            if waiting == []:
                del self._idle[key]
        if trajectory is None:
            plan = Plan(
                program=program,
                interface=self.interface,
                shape=part.shape,
                size=len(part.places),
                guided=part.guided,
                interval=interval,
                apart=part.apart,
            )
            trajectory = self._opened(plan)
        try:
            yield trajectory
        except BaseException as error:
            with suppress(Exception):  # what went wrong first is what is told
                trajectory.close()
            if self._closed and isinstance(error, Exception):
                raise _closed() from error  # whatever closing brought about
            raise
        self._put_back(key, trajectory)

    def _opened(self, plan: Plan) -> Trajectory:
        try:
            return self.engine.trajectory(plan)
        except BackendError:
            self._clear()  # memory that waits for other requests may be what is missing
            return self.engine.trajectory(plan)

    def _put_back(self, key: object, trajectory: Trajectory) -> None:
        surplus = []
        with self._lock:
            if self._closed:
                surplus.append(trajectory)
            else:
                self._idle.setdefault(key, []).append(trajectory)
                self._idle.move_to_end(key)
            while sum(map(len, self._idle.values())) > _IDLE:
                oldest = next(iter(self._idle))
                surplus.append(self._idle[oldest].pop())
                if not self._idle[oldest]:
                    del self._idle[oldest]
        for each in surplus:
            each.close()

    def _clear(self) -> None:
        with self._lock:
            idle = [trajectory for waiting in self._idle.values() for trajectory in waiting]
            self._idle.clear()
        for trajectory in idle:
            trajectory.close()

    def _checked_program(
        self, program: Program, steps: int | None, schedule: Schedule | None
    ) -> Program:
        if steps is None and schedule is None and id(program) in self._seen:
            return program
        interface = self.interface
        is_open = None in program.choices
        if steps is not None or (schedule is not None and not is_open):
            raise UsageError(
                found="a program together with steps or a schedule",
                expected="a program alone, which contains both",
                remedy="give a solver instead, or drop steps and schedule",
            )
        if is_open:
            exits = self.schedule(schedule)
            program = program.with_schedule(exits, interface.process.timesteps)
        check_exits(program.choices, interface.exits)
        if (
            any(step.log_variances for step in program.steps)
            and "variance" not in interface.outputs
        ):
            raise UsageError(
                found="a program that reads a learned variance",
                expected=f"one for a network that gives {list(interface.outputs)}",
                remedy="compile the program for this network's process",
            )
        if program.process is not None:
            _check_process(program.process, interface.process)
        return program

    def _one_of_equals(self, program: Program) -> Program:
        """The one of all equal programs that is used here, when it can be run.

        A program is large: to hash it takes as long as several steps.
        """
        with self._lock:
            if (known := self._seen.get(id(program))) is not None:
                return known[1]  # what is kept keeps its id
        self._check_engines(program)
        with self._lock:
            chosen = self._equal.setdefault(program, program)
            self._seen[id(program)] = program, chosen
            while len(self._equal) > _PROGRAMS:
                self._equal.popitem(last=False)
            while len(self._seen) > _PROGRAMS:
                self._seen.popitem(last=False)
        return chosen

    def _check_engines(self, program: Program) -> None:
        """Pass when every engine set that a program names is open."""
        for name in sorted({step.chosen.engine for step in program.steps} - {"", *self.engines}):
            known = ", ".join(self.engines)
            raise UsageError(
                found=f"engine set {name!r} in the exit schedule",
                expected=f"one that is open: {known}" if known else "none: only one is open",
                remedy="open that engine set too, or choose a schedule without it",
            )

    def _shape(self, request: SampleRequest) -> tuple[int, ...]:
        return self.interface.state.shape if request.shape is None else tuple(request.shape)

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()


def _closed() -> UsageError:
    return UsageError(
        found="a sampler that is closed",
        expected="an open one",
        remedy="sample within its with statement, or open it again",
    )


def _compiled(
    solver: Solver,
    name: object,
    process: Process,
    steps: int,
    exits: ExitSchedule,
    clip: Interval | None,
) -> Program:
    """The program of a solver; wrong types of its options are the caller's fault."""
    try:
        made = solver(
            process, steps, lambda time: exits.choice_at(time, process.timesteps), clip=clip
        )
        if not isinstance(made, Program):
            raise TypeError(f"it returned {type(made).__name__}")
        return made
    except EecompileError:
        raise
    except Exception as error:  # of anybody's function
        raise UsageError(
            found=f"solver {str(name)[:100]!r} that makes no program ({error})",
            expected="a solver, and options that it takes",
            remedy="docs/solvers.md lists both",
        ) from error


def _check_process(made: Process, wanted: Process) -> None:
    """Pass when a program made for one process suits another: their states are alike."""
    if made == wanted:
        return
    for name in ("family", "prediction", "timesteps"):
        found, expected = getattr(made, name), getattr(wanted, name)
        if found != expected:
            raise _other_process(f"{name} {found}", f"{name} {expected}")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        one, other = made.at(share * made.timesteps), wanted.at(share * wanted.timesteps)
        alike = np.allclose(one[1:], other[1:], rtol=1e-4, atol=1e-7)
        if not alike or not np.isclose(made.input_scale(one), wanted.input_scale(other)):
            raise _other_process("other betas, sigmas or time scale", "the network's own")


def _other_process(found: str, expected: str) -> UsageError:
    return UsageError(
        found=f"a program made for a process with {found}",
        expected=expected,
        remedy="compile the program for this network's process",
    )


def _interval(given: Interval, process: Process) -> Interval:
    try:
        low, high = (float(bound) for bound in given)
    except (TypeError, ValueError, OverflowError):
        low, high = 1.0, 0.0
    if isinstance(given, str) or not 0 <= low <= high <= process.timesteps:
        raise UsageError(
            found=f"guidance interval {given!r}",
            expected="two ascending times within [0, T]",
            remedy="give the smallest and the largest t at which guidance is to act",
        )
    return low, high
