"""One batch of samples on its way through a program.

A sampler divides what it is asked for into batches that the engine takes. Each becomes a
trajectory: buffers for a program at one batch size, and the steps on them. On the host the
buffers are numpy arrays; backends for GPUs bring trajectories of their own, whose buffers
stay on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from eecompile.errors import BackendError, EecompileError, NonFiniteError
from eecompile.runtime.engine import Engine
from eecompile.runtime.interface import Interface
from eecompile.runtime.noise import NoiseSource
from eecompile.runtime.program import Program, Step, Term

__all__ = ["HostTrajectory", "Plan", "Rows", "Trajectory", "non_finite"]

Array = NDArray[np.float32]
Inputs = Mapping[str, NDArray[np.generic]]
_Terms = list[tuple[str, np.float32]]
_Update = tuple[str, _Terms, tuple[np.float32, np.float32] | None]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is static of a trajectory.

    Attributes:
        program: the steps; every depth is chosen.
        interface: what the network takes and gives.
        shape: of one sample.
        size: number of samples, n.
        guided: how many of them are guided, g; those are the first. Where guidance acts,
            rows n to n + g of an evaluation's batch are the first g samples again, with
            the null conditions.
        interval: times within which guidance acts, both included (arXiv 2404.07724).
        apart: whether an evaluation takes one row at a time (engines of batch 1).
    """

    program: Program
    interface: Interface
    shape: tuple[int, ...]
    size: int
    guided: int = 0
    interval: tuple[float, float] | None = None
    apart: bool = False

    def acts(self, step: Step) -> bool:
        """Whether guidance acts in ``step``."""
        if not self.guided or not step.evaluates:
            return False
        return self.interval is None or self.interval[0] <= step.moment <= self.interval[1]

    def rows(self, step: Step) -> int:
        """Batch size of the evaluation in ``step``: n, or n + g; 0 where there is none."""
        if not step.evaluates:
            return 0
        return self.size + (self.guided if self.acts(step) else 0)


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What is particular to each sample of a trajectory.

    Attributes:
        seeds: of each sample, uint64 [n].
        samples: index of each sample under its seed, uint64 [n].
        scales: guidance of each guided sample, float32 [g].
        conditions: by name, for the n samples and then, without condition, for the g
            guided ones, [n + g, ...].
    """

    seeds: NDArray[np.uint64]
    samples: NDArray[np.uint64]
    scales: Array
    conditions: Mapping[str, NDArray[np.generic]]


class Trajectory(Protocol):
    """Buffers for a plan, and the steps on them; used by one thread at a time.

    Attributes:
        plan: what is static.
    """

    plan: Plan

    def start(self, rows: Rows) -> None:
        """Load the conditions and the initial noise; the next step is step 0."""
        ...

    def step(self, index: int) -> None:
        """Take one step. Steps are taken in order.

        Raises:
            NonFiniteError: the network returned NaN or infinity. A device may find that
                only when the state is read.
        """
        ...

    def run(self) -> None:
        """Take all steps."""
        ...

    def wait(self) -> None:
        """Return once the steps taken are done; on the host they always are."""
        ...

    def state(self) -> Array:
        """The state now, float32 [n, *shape]: a copy on the host.

        Raises:
            NonFiniteError: the network returned NaN or infinity on the way.
        """
        ...

    def close(self) -> None:
        """Release the buffers."""
        ...


class HostTrajectory:
    """A trajectory whose buffers are numpy arrays, made once and used for every step.

    Args:
        engine: evaluates the network.
        plan: what is static.
    """

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.plan = plan
        self._engine = engine
        n, g, shape = plan.size, plan.guided, plan.shape
        batch = (n + g, *shape)
        self._x = np.empty(batch, np.float32)
        self._t = np.empty(n + g, np.float32)
        self._conditions = {
            name: np.empty((n + g, *spec.shape), spec.dtype)
            for name, spec in plan.interface.conditions.items()
        }
        self._outputs = [np.empty(batch, np.float32) for _ in plan.interface.outputs]
        self._buffers = {
            name: np.empty((n, *shape), np.float32) for name in plan.program.buffers
        } | {"output": self._outputs[0][:n]}
        self._sum, self._product = (np.empty((n, *shape), np.float32) for _ in range(2))
        self._finite = np.empty(batch, np.bool_)
        self._scales = np.empty((g, *(1 for _ in shape)), np.float32)
        self._seeds, self._samples = [0] * n, [0] * n
        self._noise = NoiseSource(n, shape)
        self._last = 0
        # The same arrays, whole or without the rows that guidance adds.
        kinds = {(s.engine, plan.rows(s)) for s in plan.program.steps if s.evaluates}
        self._evaluate = {kind: self._bound(*kind) for kind in kinds}
        self._steps = [_prepared(step) for step in plan.program.steps]

    def start(self, rows: Rows) -> None:
        """Load the conditions and the initial noise; the next step is step 0."""
        self._seeds, self._samples = rows.seeds.tolist(), rows.samples.tolist()
        self._scales.flat[:] = rows.scales
        for name, array in self._conditions.items():
            array[:] = rows.conditions[name]
        noise = self._noise.draw(self._seeds, self._samples, 0)
        with np.errstate(over="ignore"):
            np.multiply(noise, np.float32(self.plan.program.initial), out=self._buffers["state"])

    def step(self, index: int) -> None:
        """Take one step.

        Raises:
            NonFiniteError: the network returned NaN or infinity.
            BackendError: the engine failed.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # the network's output will tell
            self._step(index)
        self._last = index

    def _step(self, index: int) -> None:
        plan, step = self.plan, self.plan.program.steps[index]
        inputs, updates, reads_noise = self._steps[index]
        if rows := plan.rows(step):  # otherwise the outputs stay as they are
            self._predict(index, step, inputs, rows)
        if reads_noise:
            self._draw(index, step)
        for update in updates:
            self._update(update)

    def _predict(self, index: int, step: Step, inputs: _Terms, rows: int) -> None:
        """Evaluate the network on ``rows`` rows, and guide what it predicts."""
        n, x = self.plan.size, self._x
        self._combine(inputs, x[:n])
        x[n:rows] = x[: rows - n]
        self._t[:rows] = step.timestep
        self._evaluate_step(step, rows)
        for output in self._outputs:
            finite = np.isfinite(output[:rows], out=self._finite[:rows])
            if not np.logical_and.reduce(finite, axis=None):
                raise non_finite(index, step, _member(self._engine, step.engine).precision)
        if rows > n:
            self._guide(rows - n)

    def run(self) -> None:
        """Take all steps."""
        for index in range(len(self.plan.program.steps)):
            self.step(index)

    def wait(self) -> None:
        """Return: what was taken is done."""

    def state(self) -> Array:
        """The state now, float32 [n, *shape]: a copy.

        Raises:
            NonFiniteError: it holds NaN or infinity.
        """
        state = self._buffers["state"]
        if not np.isfinite(state, out=self._finite[: len(state)]).all():
            step = self.plan.program.steps[self._last]
            raise non_finite(self._last, step, self._engine.precision, "the state after the step")
        return state.copy()

    def close(self) -> None:
        """Nothing: the garbage collector has the buffers."""

    def _bound(self, name: str, rows: int) -> list[Callable[[int], None]]:
        """Evaluations of the first ``rows`` rows at a depth: one, or one for each row."""
        engine = _member(self._engine, name)
        parts = [slice(0, rows)]
        if self.plan.apart:
            parts = [slice(row, row + 1) for row in range(rows)]
        return [
            _bind(
                engine,
                self._x[part],
                self._t[part],
                {name: array[part] for name, array in self._conditions.items()},
                [output[part] for output in self._outputs],
            )
            for part in parts
        ]

    def _evaluate_step(self, step: Step, rows: int) -> None:
        try:
            for evaluate in self._evaluate[step.engine, rows]:
                evaluate(step.depth)
        except EecompileError:
            raise
        except Exception as error:  # backends' errors share no base class
            raise BackendError(
                found=f"exit {step.depth} failing at timestep {step.timestep:g}, batch {rows} "
                f"({' '.join(str(error).split())[:300]})",
                expected="an engine that evaluates these inputs",
                remedy="check the conditions' values against what the network was trained with",
            ) from error

    def _guide(self, guided: int) -> None:
        """Lead the prediction away from what it is without conditions."""
        channels = self.plan.interface.sampling.guided_channels
        prediction = self._outputs[0]
        part = (slice(None),) if channels is None else (slice(None), slice(channels))
        given, without = prediction[:guided][part], prediction[self.plan.size :][part]
        np.subtract(given, without, out=given)
        np.multiply(given, self._scales, out=given)
        np.add(given, without, out=given)

    def _draw(self, index: int, step: Step) -> None:
        """Put the step's noise into its buffer."""
        noise = self._noise.draw(self._seeds, self._samples, index + 1)
        if step.log_variances is not None:
            low, high = step.log_variances
            share = (self._outputs[1][: self.plan.size] + 1) / 2
            noise *= np.exp(0.5 * (share * np.float32(high - low) + np.float32(low)))
        self._buffers["noise"] = noise

    def _update(self, update: _Update) -> None:
        buffers, total = self._buffers, self._sum
        into, terms, clip = update
        self._combine(terms, total)
        if clip is not None:
            np.maximum(total, clip[0], out=total)
            np.minimum(total, clip[1], out=total)
        # The sum becomes the buffer, and the buffer room for the next sum.
        buffers[into], self._sum = total, buffers[into]

    def _combine(self, terms: _Terms, out: Array) -> None:
        """Put the sum of ``terms`` into ``out``, which is none of the buffers."""
        buffers, product = self._buffers, self._product
        buffer, factor = terms[0]
        if factor == 1:
            np.copyto(out, buffers[buffer])
        else:
            np.multiply(buffers[buffer], factor, out=out)
        for buffer, factor in terms[1:]:
            np.multiply(buffers[buffer], factor, out=product)
            np.add(out, product, out=out)


def _prepared(step: Step) -> tuple[_Terms, list[_Update], bool]:
    """A step's input, its updates, and whether it reads noise, with coefficients in float32."""
    updates = [
        (
            update.into,
            _float32(update.terms),
            update.clip and (np.float32(update.clip[0]), np.float32(update.clip[1])),
        )
        for update in step.updates
    ]
    return _float32(step.input), updates, step.reads_noise


def _float32(terms: tuple[Term, ...]) -> _Terms:
    return [(term.buffer, np.float32(term.coefficient)) for term in terms]


def non_finite(index: int, step: Step, precision: str, what: str = "the output") -> NonFiniteError:
    """The error for NaN or infinity in step ``index``, in what the network returned or else."""
    return NonFiniteError(
        found=f"NaN or infinity in {what} of exit {step.depth} at step {index} "
        f"(timestep {step.timestep:g}, {precision})",
        expected="finite predictions",
        remedy="check the inputs, or build for a wider precision",
    )


def _member(engine: Engine, name: str) -> Engine:
    """The engine of that name in a group; a single one has every name."""
    members: Mapping[str, Engine] = getattr(engine, "engines", {})
    return members.get(name, engine)


def _bind(
    engine: Engine, x: Array, t: Array, conditions: Inputs, outputs: Sequence[Array]
) -> Callable[[int], None]:
    """A function of the depth that evaluates on these arrays, whatever they then hold."""
    bind = getattr(engine, "bind", None)
    if bind is not None:
        bound: Callable[[int], None] = bind(x, t, conditions, outputs)
        return bound

    def evaluate(depth: int) -> None:
        found = engine.evaluate(depth, x, t, conditions)
        if [output.shape for output in found] != [x.shape for _ in outputs]:
            raise BackendError(
                found=f"outputs of shapes {[list(o.shape) for o in found]} at exit {depth}",
                expected=f"the state's shape, {list(x.shape)}",
                remedy="mend state.shape, or the network, and export again",
            )
        for into, output in zip(outputs, found, strict=True):
            into[:] = output

    return evaluate
