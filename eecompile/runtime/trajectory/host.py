"""Trajectories on the host: their buffers are numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from eecompile.arrays import AnyArray, Array
from eecompile.errors import BackendError, EecompileError, NonFiniteError
from eecompile.programs.program import Step, Term
from eecompile.runtime.trajectory.noise import NoiseSource
from eecompile.runtime.trajectory.plan import Evaluator, Plan, Rows, Trajectory

__all__ = ["HostTrajectory", "non_finite"]

_Call = tuple[Callable[..., object], tuple[AnyArray, ...], Array]
# Of a step: rows to evaluate, their input, whether noise is read, updates.
_Prepared = tuple[int, list[_Call], bool, list[_Call]]
_SMALL = 8192  # elements of an output that one dot product checks


class HostTrajectory(Trajectory):
    """A trajectory whose buffers are numpy arrays, made once and used for every step.

    What a step does besides evaluating the network is a list of calls with their arrays,
    made once: on small states the rest of Python would take longer than the sums.

    Args:
        engine: evaluates the network.
        plan: what is static.
    """

    def __init__(self, engine: Evaluator, plan: Plan) -> None:
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
        self._finite = np.empty(batch, np.bool_)
        self._scales = np.empty((g, *(1 for _ in shape)), np.float32)
        self._seeds, self._samples = [0] * n, [0] * n
        steps = plan.program.steps
        noisy = [index + 1 for index, step in enumerate(steps) if step.reads_noise]
        self._noise = NoiseSource(n, shape, noisy)
        self._first = NoiseSource(n, shape) if noisy else self._noise
        self._last = -1
        # The same arrays, whole or without the rows that guidance adds.
        kinds = {(step.engine, plan.rows(step)) for step in steps if step.evaluates}
        self._evaluate = {kind: self._bound(*kind) for kind in kinds}
        self._checked = {rows: self._checks(rows) for _, rows in kinds}
        self._guiding = self._guidance() if g else []
        self._state = np.empty((n, *shape), np.float32)
        self._steps, self._states = self._prepared()

    def start(self, rows: Rows) -> None:
        """Load the conditions and the initial noise; the next step is step 0."""
        self._seeds, self._samples = rows.seeds.tolist(), rows.samples.tolist()
        self._scales.flat[:] = rows.scales
        for name, array in self._conditions.items():
            array[:] = rows.conditions[name]
        noise = self._first.draw(self._seeds, self._samples, 0)
        with np.errstate(over="ignore"):
            np.multiply(noise, np.float32(self.plan.program.initial), out=self._state)
        self._noise.restart()
        self._last = -1

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
        step = self.plan.program.steps[index]
        rows, inputs, noisy, updates = self._steps[index]
        if rows:  # otherwise the outputs stay as they are
            for call, given, out in inputs:
                call(*given, out=out)
            self._predict(index, step, rows)
        if noisy:
            self._draw(index, step)
        for call, given, out in updates:
            call(*given, out=out)

    def _predict(self, index: int, step: Step, rows: int) -> None:
        """Evaluate the network on ``rows`` rows, and guide what it predicts."""
        n, x = self.plan.size, self._x
        if rows > n:
            x[n:rows] = x[: rows - n]
        self._t[:rows] = step.timestep
        self._evaluate_step(step, rows)
        for output, quick in self._checked[rows]:
            # One sum tells, unless it overflows; large ones would start BLAS's threads.
            if quick and math.isfinite(output.dot(output)):
                continue
            finite = np.isfinite(output, out=self._finite.reshape(-1)[: output.size])
            if not np.logical_and.reduce(finite):
                raise non_finite(index, step, self._engine.member(step.engine).precision)
        if rows > n:
            for call, given, out in self._guiding:
                call(*given, out=out)

    def state(self) -> Array:
        """The state now, float32 [n, *shape]: a copy.

        Raises:
            NonFiniteError: it holds NaN or infinity.
        """
        state = self._state if self._last < 0 else self._states[self._last]
        if not np.isfinite(state, out=self._finite[: len(state)]).all():
            index = max(self._last, 0)
            step = self.plan.program.steps[index]
            raise non_finite(index, step, self._engine.precision, "the state after the step")
        return state.copy()

    def _bound(self, name: str, rows: int) -> list[Callable[[int], None]]:
        """Evaluations of the first ``rows`` rows at a depth: one, or one for each row."""
        engine = self._engine.member(name)
        parts = [slice(0, rows)]
        if self.plan.apart:
            parts = [slice(row, row + 1) for row in range(rows)]
        return [
            engine.bind(
                self._x[part],
                self._t[part],
                {name: array[part] for name, array in self._conditions.items()},
                [output[part] for output in self._outputs],
            )
            for part in parts
        ]

    def _checks(self, rows: int) -> list[tuple[Array, bool]]:
        """What an evaluation of ``rows`` rows wrote, flat, and whether one sum can check it."""
        flat = [output[:rows].reshape(-1) for output in self._outputs]
        return [(output, output.size <= _SMALL) for output in flat]

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

    def _guidance(self) -> list[_Call]:
        """Lead the prediction away from what it is without conditions."""
        n, guided = self.plan.size, self.plan.guided
        channels = self.plan.interface.sampling.guided_channels
        part = (slice(None),) if channels is None else (slice(None), slice(channels))
        prediction = self._outputs[0]
        given, without = prediction[:guided][part], prediction[n : n + guided][part]
        return [
            (np.subtract, (given, without), given),
            (np.multiply, (given, self._scales), given),
            (np.add, (given, without), given),
        ]

    def _draw(self, index: int, step: Step) -> None:
        """Put the step's noise where its updates read it."""
        noise = self._noise.draw(self._seeds, self._samples, index + 1)
        if step.log_variances is not None:
            low, high = step.log_variances
            share = (self._outputs[1][: self.plan.size] + 1) / 2
            noise *= np.exp(0.5 * (share * np.float32(high - low) + np.float32(low)))

    def _prepared(self) -> tuple[list[_Prepared], list[Array]]:
        """What every step does, and where the state lies after it."""
        n, shape, program = self.plan.size, self.plan.shape, self.plan.program
        buffers = {name: np.empty((n, *shape), np.float32) for name in program.buffers}
        buffers |= {"state": self._state, "output": self._outputs[0][:n]}
        spare, product = (np.empty((n, *shape), np.float32) for _ in range(2))
        steps: list[_Prepared] = []
        states = []
        for index, step in enumerate(program.steps):
            if step.reads_noise:
                buffers["noise"] = self._noise.place(index + 1)
            inputs = list(_sum(step.input, buffers, self._x[:n], product))
            updates: list[_Call] = []
            for update in step.updates:
                updates += _sum(update.terms, buffers, spare, product)
                if update.clip is not None:
                    low, high = (np.array(bound, np.float32) for bound in update.clip)
                    updates.append((np.maximum, (spare, low), spare))
                    updates.append((np.minimum, (spare, high), spare))
                # The sum becomes the buffer, and the buffer room for the next sum.
                buffers[update.into], spare = spare, buffers[update.into]
            steps.append((self.plan.rows(step), inputs, step.reads_noise, updates))
            states.append(buffers["state"])
        return steps, states


def _sum(
    terms: tuple[Term, ...], buffers: Mapping[str, Array], out: Array, product: Array
) -> Iterator[_Call]:
    """Put the sum of ``terms`` into ``out``, which is none of the buffers."""
    for index, term in enumerate(terms):
        buffer, factor = buffers[term.buffer], np.array(term.coefficient, np.float32)
        if factor == 1:  # adding is exact: it spares a product
            yield (np.add, (out, buffer), out) if index else (np.positive, (buffer,), out)
            continue
        yield np.multiply, (buffer, factor), product if index else out
        if index:
            yield np.add, (out, product), out


def non_finite(index: int, step: Step, precision: str, what: str = "the output") -> NonFiniteError:
    """The error for NaN or infinity in step ``index``, in what the network returned or else."""
    return NonFiniteError(
        found=f"NaN or infinity in {what} of exit {step.depth} at step {index} "
        f"(timestep {step.timestep:g}, {precision})",
        expected="finite predictions",
        remedy="check the inputs, or build for a wider precision",
    )
