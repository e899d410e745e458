"""The sampler: runs programs on engines."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from eecompile.errors import (
    BackendError,
    ConditionError,
    EecompileError,
    NonFiniteError,
    ScheduleError,
    UsageError,
)
from eecompile.runtime.engine import Engine, open_engine
from eecompile.runtime.handle import Handle
from eecompile.runtime.interface import Interface
from eecompile.runtime.noise import normal_noise
from eecompile.runtime.program import Program, Step, combine
from eecompile.runtime.schedule import ExitSchedule
from eecompile.runtime.solvers import SOLVERS, Solver

__all__ = ["Sampler", "StepResult"]

Array = NDArray[np.float32]
Inputs = dict[str, NDArray[np.generic]]
Schedule = str | int | Sequence[int] | ExitSchedule


class StepResult(msgspec.Struct, frozen=True):
    """A step that has been taken.

    Attributes:
        index: of the step, from 0.
        timestep: at which the network was evaluated.
        depth: the exit that ran.
        state: the state after the step, float32 [n, ...]; read it, do not write to it.
        seconds: wall time of the step.
    """

    index: int
    timestep: float
    depth: int
    state: Array
    seconds: float


class _Request(msgspec.Struct, frozen=True):
    """What is sampled: indices, seed, shape, guidance, conditions with and without."""

    samples: range
    seed: int
    shape: tuple[int, ...]
    scale: float
    inputs: Inputs
    nulls: Inputs | None


class Sampler(Handle):
    """Samples a multi-exit diffusion network. May be used from several threads.

    Args:
        engine: evaluates the network; the sampler closes it.
        interface: what the network takes and gives.
    """

    def __init__(self, engine: Engine, interface: Interface) -> None:
        self.engine = engine
        self.interface = interface
        self._closed = False

    @classmethod
    def open(cls, path: str | PathLike[str], *, threads: int | None = None) -> Self:
        """Open an engine set.

        Args:
            path: the folder that ``eecompile build`` wrote.
            threads: threads of one evaluation, 0 for the physical cores; None takes the
                target's.

        Raises:
            BundleError: the folder is no intact engine set.
            BackendError: its backend is missing, or refuses an engine.
        """
        engine, manifest = open_engine(Path(path), threads)
        return cls(engine, manifest.interface)

    def close(self) -> None:
        """Release the engines; the sampler cannot be used afterwards."""
        self._closed = True
        self.engine.close()

    def schedule(self, schedule: Schedule | None = None) -> ExitSchedule:
        """An exit schedule for this network.

        Args:
            schedule: a name from the export recipe, ``full``, a depth for all timesteps,
                depths over equal slices of time (t = 0 first), or an ExitSchedule; None
                takes the recipe's default.

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
            solver: a name such as ``ddim``, a function such as
                ``functools.partial(ddim, eta=1.0)``, or a program, which is returned.
            steps: number of steps.
            schedule: see :meth:`schedule`.

        Raises:
            UsageError: the solver is unknown, ``steps`` is not within 1 to T, or a
                program came with steps or a schedule.
        """
        if isinstance(solver, Program):
            if steps is not None or schedule is not None:
                raise UsageError(
                    found="a program together with steps or a schedule",
                    expected="a program alone, which contains both",
                    remedy="give a solver instead, or drop steps and schedule",
                )
            for depth in set(solver.depths):
                ExitSchedule.constant(depth).check(self.interface.exits)
            learned = any(step.log_variances for step in solver.steps)
            if learned and "variance" not in self.interface.outputs:
                raise UsageError(
                    found="a program that reads a learned variance",
                    expected=f"one for a network that gives {list(self.interface.outputs)}",
                    remedy="compile the program for this network's process",
                )
            return solver
        defaults, process = self.interface.sampling, self.interface.process
        name = defaults.solver if solver is None else solver
        if isinstance(name, str) and name not in SOLVERS:
            raise UsageError(
                found=f"solver {name!r}",
                expected=f"one of {sorted(SOLVERS)}",
                remedy="choose one of these, or give a function",
            )
        chosen = SOLVERS[name] if isinstance(name, str) else name
        exits = self.schedule(schedule)
        count = defaults.steps if steps is None else _whole("steps", steps)
        return chosen(
            process,
            count,
            lambda timestep: exits.depth_at(timestep, process.timesteps),
            clip=self.interface.state.range,
        )

    def sample(
        self,
        n: int = 1,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        guidance: float | None = None,
        nulls: Mapping[str, ArrayLike] | None = None,
        shape: Sequence[int] | None = None,
        first: int = 0,
        **conditions: ArrayLike,
    ) -> Array:
        """Sample; float32 [n, *shape]. Arguments and errors are those of :meth:`steps`."""
        results = self.steps(
            n,
            solver=solver,
            steps=steps,
            schedule=schedule,
            seed=seed,
            guidance=guidance,
            nulls=nulls,
            shape=shape,
            first=first,
            **conditions,
        )
        *_, last = results
        return last.state

    def steps(
        self,
        n: int = 1,
        *,
        solver: str | Solver | Program | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        seed: int = 0,
        guidance: float | None = None,
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
            steps: number of steps, 1 to T.
            schedule: see :meth:`schedule`.
            seed: 0 to 2**64 - 1. Sample i of a seed is the same whatever batch it is in.
            guidance: scale of classifier-free guidance (arXiv 2207.12598); 1 is none.
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
        """
        if self._closed:
            raise _closed()
        n, seed, first = _counts(n, seed, first)
        samples = range(first, first + n)
        program = self.program(solver, steps, schedule)
        scale = self.interface.sampling.guidance if guidance is None else float(guidance)
        if not np.isfinite(scale):
            raise UsageError(
                found=f"guidance {scale}", expected="a finite scale", remedy="1 means no guidance"
            )
        state = self.interface.state
        self.interface.check_conditions(nulls or {}, "a null value for condition")
        for name, value in (nulls or {}).items():  # checked even where guidance is 1
            self.interface.conditions[name].nulls(name, samples, value)
        request = _Request(
            samples,
            seed,
            state.shape if shape is None else state.check_shape(shape),
            scale,
            self._conditions(samples, conditions),
            self._nulls(samples, nulls or {}) if scale != 1.0 else None,
        )
        return self._run(program, request)

    def _run(self, program: Program, request: _Request) -> Iterator[StepResult]:
        seed, samples, shape = request.seed, request.samples, request.shape
        started = time.perf_counter()
        state = normal_noise(seed, samples, 0, shape) * np.float32(program.initial)
        buffers = {"state": state}
        for index, step in enumerate(program.steps):
            x = np.ascontiguousarray(combine(step.input, buffers))
            outputs = self._predict(index, step, x, request)
            buffers["output"] = outputs[0]
            if step.reads_noise():
                noise = normal_noise(seed, samples, index + 1, shape)
                buffers["noise"] = _scaled(noise, step.log_variances, outputs)
            for update in step.updates:
                value = combine(update.terms, buffers)
                buffers[update.into] = value if update.clip is None else value.clip(*update.clip)
            now = time.perf_counter()
            result = buffers["state"]
            yield StepResult(index, step.timestep, step.depth, result, now - started)
            started = time.perf_counter()

    def _predict(self, index: int, step: Step, x: Array, request: _Request) -> list[Array]:
        """The (guided) outputs for all samples, in batches that the engine takes."""
        outputs = [np.empty_like(x) for _ in self.interface.outputs]
        nulls = request.nulls
        size = max(1, self.engine.max_batch // (1 if nulls is None else 2))
        for low in range(0, len(x), size):
            part = slice(low, low + size)
            given = {name: array[part] for name, array in request.inputs.items()}
            if nulls is None:
                found = self._evaluate(step, x[part], given)
            else:
                none = {name: array[part] for name, array in nulls.items()}
                found = self._guided(step, x[part], given, none, request.scale)
            for output, value in zip(outputs, found, strict=True):
                if not np.isfinite(value).all():
                    raise NonFiniteError(
                        found=f"NaN or infinity in the output of exit {step.depth} at step "
                        f"{index} (timestep {step.timestep:g}, {self.engine.precision})",
                        expected="finite predictions",
                        remedy="check the inputs, or build for a wider precision",
                    )
                output[part] = value
        return outputs

    def _guided(
        self, step: Step, x: Array, given: Inputs, none: Inputs, scale: float
    ) -> Sequence[Array]:
        """Outputs with the condition, of which the prediction is guided away from without."""
        if self.engine.max_batch < 2:
            conditioned = self._evaluate(step, x, given)
            without = self._evaluate(step, x, none)[0]
        else:
            both = {name: np.concatenate([given[name], none[name]]) for name in given}
            joined = self._evaluate(step, np.concatenate([x, x]), both)
            conditioned = [output[: len(x)] for output in joined]
            without = joined[0][len(x) :]
        prediction, *others = conditioned
        guided = without + np.float32(scale) * (prediction - without)
        if (channels := self.interface.sampling.guided_channels) is not None:
            guided[:, channels:] = prediction[:, channels:]
        return [guided, *others]

    def _evaluate(
        self, step: Step, x: Array, conditions: Mapping[str, NDArray[np.generic]]
    ) -> Sequence[Array]:
        if self._closed:
            raise _closed()
        t = np.full(len(x), step.timestep, np.float32)
        try:
            outputs = self.engine.evaluate(step.depth, x, t, conditions)
        except EecompileError:
            raise
        except Exception as error:  # backends' errors share no base class
            raise BackendError(
                found=f"exit {step.depth} failing at timestep {step.timestep:g}, batch {len(x)} "
                f"({' '.join(str(error).split())[:300]})",
                expected="an engine that evaluates these inputs",
                remedy="check the conditions' values against what the network was trained with",
            ) from error
        if any(output.shape != x.shape for output in outputs):
            raise BackendError(
                found=f"outputs of shapes {[list(o.shape) for o in outputs]} at exit {step.depth}",
                expected=f"the state's shape, {list(x.shape)}",
                remedy="mend state.shape, or the network, and export again",
            )
        return outputs

    def _conditions(self, samples: range, given: Mapping[str, ArrayLike]) -> Inputs:
        self.interface.check_conditions(given)
        known = self.interface.conditions
        return {name: spec.values(name, given.get(name), samples) for name, spec in known.items()}

    def _nulls(self, samples: range, given: Mapping[str, ArrayLike]) -> Inputs:
        known = self.interface.conditions
        if not known:
            raise ConditionError(
                found="guidance for a network without conditions",
                expected="guidance 1",
                remedy="sample without guidance",
            )
        return {name: spec.nulls(name, samples, given.get(name)) for name, spec in known.items()}


def _scaled(noise: Array, bounds: tuple[float, float] | None, outputs: Sequence[Array]) -> Array:
    """Noise with the standard deviation that the network chose between two bounds."""
    if bounds is None:
        return noise
    low, high = bounds
    between = low + (outputs[1] + 1) / 2 * (high - low)
    return np.asarray(noise * np.exp(between / 2), np.float32)


def _closed() -> UsageError:
    return UsageError(
        found="a sampler that is closed",
        expected="an open one",
        remedy="sample within its with statement, or open it again",
    )


def _counts(n: int, seed: int, first: int) -> tuple[int, int, int]:
    checks = (
        ("number of samples", n, 1, 2**32),
        ("seed", seed, 0, 2**64 - 1),
        ("index of the first sample", first, 0, 2**63),
    )
    for what, value, low, high in checks:
        if not low <= _whole(what, value) <= high:
            raise UsageError(
                found=f"{what} {value}",
                expected=f"{low} to {high}",
                remedy="choose another",
            )
    return int(n), int(seed), int(first)


def _whole(what: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise UsageError(
            found=f"{what} {value!r}", expected="a whole number", remedy="pass an int"
        ) from error
