"""Trajectories on the host: their buffers are numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from eecompile.arrays import Array, Inputs
from eecompile.errors import BackendError, EecompileError, one_line
from eecompile.runtime.trajectory.lowering import (
    INPUT,
    Check,
    Draw,
    Evaluate,
    Guide,
    Lowered,
    Operation,
    Spread,
    Sum,
    lowered,
    non_finite,
)
from eecompile.runtime.trajectory.noise import NoiseSource
from eecompile.runtime.trajectory.plan import BoundEvaluation, Evaluator, Plan, Rows, Trajectory
from eecompile.runtime.trajectory.spans import Blend

_Action = Callable[[], object]
_SMALL = 8192  # elements of an output that one dot product checks
_PIECE = 32768  # elements of a span's tensor that are summed at a time: they stay in the cache


class HostEvaluation:
    """An evaluation that a trajectory on the host comes to; called, it is made.

    Its arrays may also be written by somebody who evaluates the same choice for several
    trajectories at once.

    Attributes:
        engine: which evaluates.
        operation: the exit, or the part of one, and how many rows.
        x: noisy input, float32 [rows, *shape].
        t: timestep, float32 [rows].
        conditions: by name, [rows, ...].
        outputs: to be written: the interface's, float32 [rows, *shape].
        alone: whether it cannot share a batch: it reads or writes tensors of spans, or the
            engine takes one row at a time.
        kind: equal for evaluations that can share a batch.
    """

    def __init__(
        self,
        engine: Evaluator,
        operation: Evaluate,
        x: Array,
        t: Array,
        conditions: Inputs,
        outputs: Sequence[Array],
        alone: bool,
        bound: Callable[[], Sequence[BoundEvaluation]],
    ) -> None:
        self.engine, self.operation = engine, operation
        self.x, self.t, self.conditions, self.outputs = x, t, conditions, outputs
        self.alone = alone
        self.kind = id(engine), operation.depth, x.shape[1:]
        self._bound = bound

    def __call__(self) -> None:
        """Evaluate.

        Raises:
            BackendError: the engine failed.
        """
        operation = self.operation
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # the outputs are checked
                for evaluate in self._bound():
                    evaluate(operation.depth, operation.stretch)
        except EecompileError:
            raise
        except Exception as error:  # backends' errors share no base class
            raise BackendError(
                found=f"exit {operation.depth} failing at timestep {operation.timestep:g}, batch "
                f"{operation.rows} ({one_line(error)})",
                expected="an engine that evaluates these inputs",
                remedy="check the conditions' values against what the network was trained with",
            ) from error


class HostTrajectory(Trajectory):
    """A trajectory whose buffers are numpy arrays, made once and used for every step.

    Operations become calls with their arrays, made once: on small states the rest of Python
    would take longer than the sums.
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
        self._last = -1
        self._state, self._spare, self._product = (
            np.empty((n, *shape), np.float32) for _ in range(3)
        )
        lower = lowered(plan, engine)
        self.rows = lower.rows
        self._tensors = {
            place: np.empty((n + g, *tensor.shape), tensor.dtype)
            for place, tensor in lower.tensors.items()
        }
        self._crossing = lower.crossing
        noisy = [index + 1 for index, _ in lower.draws]
        self._noise = NoiseSource(n, shape, noisy)
        self._first = NoiseSource(n, shape) if noisy else self._noise
        self._pieces = (np.empty(_PIECE, np.float32), np.empty(_PIECE, np.float32))
        self._evaluations: dict[tuple[str, int], list[BoundEvaluation]] = {}
        self._steps, self._states = self._prepared(lower)

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
        """Take one step; see :meth:`Trajectory.step`."""
        for evaluation in self.evaluations(index):
            evaluation()

    def evaluations(self, index: int) -> Iterator[HostEvaluation]:
        """Take one step, whose evaluations are the caller's to make.

        Each must have been made when the next is asked for; after the last, the step is taken.

        Raises:
            NonFiniteError: an evaluation gave NaN or infinity.
        """
        actions = iter(self._steps[index])
        while (evaluation := _up_to_evaluation(actions)) is not None:
            yield evaluation
        self._last = index

    def state(self) -> Array:
        """The state now, float32 [n, *shape]: a copy; see :meth:`Trajectory.state`."""
        state = self._state if self._last < 0 else self._states[self._last]
        if not np.isfinite(state, out=self._finite[: len(state)]).all():
            index = max(self._last, 0)
            step = self.plan.program.steps[index]
            raise non_finite(index, step, self._engine.precision, "the state after the step")
        return state.copy()

    def _prepared(self, lower: Lowered) -> tuple[list[list[_Action]], list[Array]]:
        """The actions of every step, and where the state lies after it."""
        n, shape = self.plan.size, self.plan.shape
        places = {name: np.empty((n, *shape), np.float32) for name in lower.buffers}
        places |= self._tensors
        places |= {"buffer state": self._state, "output 0": self._outputs[0][:n]}
        places[INPUT] = self._x[:n]
        actions, states = [], []
        for index, operations in enumerate(lower.steps):
            actions.append(
                [action for each in operations for action in self._actions(index, each, places)]
            )
            states.append(places["buffer state"])
        return actions, states

    def _actions(
        self, index: int, operation: Operation, places: dict[str, Array]
    ) -> Iterator[_Action]:
        """The calls that carry out an operation of a step."""
        match operation:
            case Sum():
                yield from self._sum(operation, places)
            case Blend(into, terms, rows):
                read = [places[name][:rows].reshape(-1) for name, _ in terms]
                factors = [np.array(factor, np.float32) for _, factor in terms]
                out = places[into][:rows].reshape(-1)
                yield partial(_blend, read, factors, out, self._pieces)
            case Evaluate():
                yield partial(self._t[: operation.rows].fill, operation.timestep)
                yield self._evaluation(operation)
            case Check(output, rows):
                yield partial(self._check, index, self._outputs[output][:rows].reshape(-1))
            case Guide():
                yield from self._guidance(operation)
            case Draw():
                places["noise"] = self._noise.place(index + 1)
                yield partial(self._draw, index + 1)
            case Spread(low, high):
                places["spread"] = places["noise"]
                yield partial(self._spread, places["spread"], np.float32(low), high - low)

    def _sum(self, operation: Sum, places: dict[str, Array]) -> Iterator[_Action]:
        """Work out a sum where nothing is read, and give the place its name."""
        into, clip = operation.into, operation.clip
        out = places[into] if into == INPUT else self._spare
        yield from _products(operation.terms, places, out, self._product)
        if clip is not None:
            low, high = (np.array(bound, np.float32) for bound in clip)
            yield partial(np.maximum, out, low, out=out)
            yield partial(np.minimum, out, high, out=out)
        if operation.repeated:
            n = self.plan.size
            copies = self._x[n : n + operation.repeated]
            yield partial(np.copyto, copies, self._x[: operation.repeated])
        if out is self._spare:  # the sum becomes the buffer, and the buffer room for the next
            places[into], self._spare = out, places[into]

    def _evaluation(self, operation: Evaluate) -> HostEvaluation:
        rows = operation.rows
        return HostEvaluation(
            self._engine.member(operation.engine),
            operation,
            self._x[:rows],
            self._t[:rows],
            {name: array[:rows] for name, array in self._conditions.items()},
            [output[:rows] for output in self._outputs],
            self.plan.apart or bool(self._crossing),
            partial(self._bound, operation.engine, rows),
        )

    def _bound(self, engine: str, rows: int) -> Sequence[BoundEvaluation]:
        """Evaluations of the first rows: one, or one for each row."""
        if (engine, rows) not in self._evaluations:
            tensors = self._crossing.get(engine, {})
            parts = [slice(0, rows)]
            if self.plan.apart:
                parts = [slice(row, row + 1) for row in range(rows)]
            self._evaluations[engine, rows] = [
                self._engine.member(engine).bind(
                    self._x[part],
                    self._t[part],
                    {name: array[part] for name, array in self._conditions.items()},
                    [output[part] for output in self._outputs],
                    {name: self._tensors[place][part] for name, place in tensors.items()},
                )
                for part in parts
            ]
        return self._evaluations[engine, rows]

    def _check(self, index: int, output: Array) -> None:
        # One sum tells, unless it overflows; large ones would start BLAS's threads.
        if output.size <= _SMALL and math.isfinite(output.dot(output)):
            return
        finite = np.isfinite(output, out=self._finite.reshape(-1)[: output.size])
        if not np.logical_and.reduce(finite):
            step = self.plan.program.steps[index]
            raise non_finite(index, step, self._engine.member(step.chosen.engine).precision)

    def _guidance(self, operation: Guide) -> Iterator[_Action]:
        n, rows = self.plan.size, operation.rows
        channels = (slice(None), slice(operation.channels)) if operation.channels else slice(None)
        given = self._outputs[0][:rows][channels]
        without = self._outputs[0][n : n + rows][channels]
        yield partial(np.subtract, given, without, given)
        yield partial(np.multiply, given, self._scales, given)
        yield partial(np.add, given, without, given)

    def _draw(self, draw: int) -> None:
        self._noise.draw(self._seeds, self._samples, draw)

    def _spread(self, noise: Array, low: np.float32, range_: float) -> None:
        share = (self._outputs[1][: self.plan.size] + 1) / 2
        noise *= np.exp(0.5 * (share * np.float32(range_) + low))


def _up_to_evaluation(actions: Iterator[_Action]) -> HostEvaluation | None:
    """Carry out actions until the next evaluation, or the last of them."""
    with np.errstate(over="ignore", invalid="ignore"):  # the network's output will tell
        for action in actions:
            if isinstance(action, HostEvaluation):
                return action
            action()
    return None


def _products(
    terms: Sequence[tuple[str, float]], places: Mapping[str, Array], out: Array, product: Array
) -> Iterator[_Action]:
    """Put the sum of ``terms`` into ``out``, which none of them reads."""
    for index, (name, coefficient) in enumerate(terms):
        array, factor = places[name], np.array(coefficient, np.float32)
        if factor == 1:  # adding is exact: it spares a product
            yield partial(np.add, out, array, out) if index else partial(np.positive, array, out)
            continue
        yield partial(np.multiply, array, factor, product if index else out)
        if index:
            yield partial(np.add, out, product, out)


def _blend(
    read: Sequence[Array], factors: Sequence[Array], out: Array, pieces: tuple[Array, Array]
) -> None:
    """Put a sum of products into ``out``, which is none of those that are read.

    All are flat. The sum is in float32, piece by piece, so that memory is passed over once.
    """
    wide = out.dtype == np.float32
    for start in range(0, out.size, _PIECE):
        into = out[start : start + _PIECE]
        product = pieces[0][: into.size]
        total = into if wide else pieces[1][: into.size]
        for index, (array, factor) in enumerate(zip(read, factors, strict=True)):
            piece = array[start : start + _PIECE]
            if factor == 1:  # adding is exact: it spares a product
                np.add(total, piece, total) if index else np.positive(piece, total)
                continue
            np.multiply(piece, factor, product if index else total)
            if index:
                np.add(total, product, total)
        if not wide:
            np.copyto(into, total, "same_kind")
