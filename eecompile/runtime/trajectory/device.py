"""Trajectories on a GPU: nothing leaves it between the initial noise and the result."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from eecompile.arrays import AnyArray, Array, DeviceArray, Inputs
from eecompile.errors import UsageError
from eecompile.runtime.cuda.device import CudaDevice, RecordedWork
from eecompile.runtime.trajectory.lowering import (
    Check,
    Draw,
    Evaluate,
    Guide,
    Operation,
    Spread,
    Sum,
    lowered,
    non_finite,
)
from eecompile.runtime.trajectory.noise import NoiseSource
from eecompile.runtime.trajectory.plan import WHOLE, Plan, Rows, Spans, Stretch, Trajectory
from eecompile.runtime.trajectory.spans import Blend

LOG = logging.getLogger("eecompile.runtime")
NOISE_BYTES = 256 << 20
"""GPU memory for noise; a trajectory that needs more is taken in several parts."""
_TERMS = 8  # that one launch of the kernel adds
_BLENDED = 4  # the same of a span's tensors
_TYPES = {"float32": (0, 4), "float16": (1, 2), "bfloat16": (2, 2)}  # their code; bytes
_NONE: Mapping[str, int] = MappingProxyType({})
_FINE = int(np.iinfo(np.int32).max)
_OF_OUTPUT, _OF_STATE = 0, 1  # where the first step with NaN or infinity is noted
_ALIGNED = 256  # bytes; TensorRT asks for it


class DeviceEvaluation(NamedTuple):
    """An evaluation of a network on what lies on a GPU.

    Attributes:
        depth: one of the engine's ``exits``.
        batch: shape of ``x``: the number of rows, and a sample's.
        inputs: addresses of ``x`` and ``t`` and of each condition.
        outputs: addresses for the interface's outputs.
        tensors: addresses of tensors that enter and leave spans, by their names.
        stretch: the part of the exit that is evaluated; what runs above a cut reads what the
            evaluation before ran up to it, or what has been put into ``tensors`` since.
    """

    depth: int
    batch: tuple[int, ...]
    inputs: Mapping[str, int]
    outputs: Sequence[int]
    tensors: Mapping[str, int] = _NONE
    stretch: Stretch = WHOLE


class DeviceEvaluator(ABC):
    """What an engine, or a group of engines, is besides if its work is queued on one GPU.

    Attributes:
        device: the GPU.
        precision: see :class:`eecompile.runtime.protocol.Engine`.
        spans: likewise.
    """

    device: CudaDevice
    precision: str
    spans: Spans
    runs_trajectories = True

    @abstractmethod
    def member(self, name: str) -> DeviceEvaluator:
        """See :meth:`eecompile.runtime.protocol.Engine.member`."""

    @abstractmethod
    def enqueue(self, evaluation: DeviceEvaluation) -> None:
        """Queue an evaluation.

        Raises:
            BackendError: the library refuses.
        """

    def settle(self) -> bool:
        """Do what is left to do once evaluations of every size have been queued.

        Returns:
            Whether such evaluations can now be recorded in a CUDA graph.
        """
        return False

    def trajectory(self, plan: Plan) -> DeviceTrajectory:
        """A trajectory whose buffers stay on the GPU; see :class:`DeviceTrajectory`."""
        return DeviceTrajectory(self, plan)


def arena_of(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Offsets of pieces of memory in one, each aligned, and its size; all in bytes."""
    offsets, total = {}, 0
    for name, size in sizes.items():
        offsets[name] = total
        total += -(-size // _ALIGNED) * _ALIGNED
    return offsets, max(total, _ALIGNED)


class DeviceTrajectory(Trajectory):
    """Buffers for a plan on a GPU; see :class:`eecompile.runtime.trajectory.plan.Trajectory`.

    The first :meth:`run` queues every step, then records all as a CUDA graph, which later
    ones replay: one graph, or several where the noise of all steps would take more than
    :data:`NOISE_BYTES`.

    Raises:
        BackendError: there is not enough GPU memory.
        UsageError: the plan's shape has no elements.
    """

    def __init__(self, engine: DeviceEvaluator, plan: Plan) -> None:
        if not math.prod(plan.shape):
            raise UsageError(
                found=f"samples of shape {list(plan.shape)}",
                expected="at least one element",
                remedy="choose another shape",
            )
        self.plan = plan
        self._engine, self._device = engine, engine.device
        self._row = math.prod(plan.shape)
        self._count = plan.size * self._row
        lower = lowered(plan, engine)
        if plan.apart and lower.tensors:
            raise UsageError(
                found="spans with guidance, on engines that take one row at a time",
                expected="batches of at least 2",
                remedy="build with a larger batch.max, or choose a schedule without spans",
            )
        self.rows, self._tensors, self._crossing = lower.rows, lower.tensors, lower.crossing
        self._steps, self._draws = lower.steps, lower.draws
        self._room = min(len(self._draws), max(1, NOISE_BYTES // (4 * self._count)))
        self._parts = tuple(self._divided())
        self._graphs: dict[range, RecordedWork | None] = {}  # None: it cannot be captured
        self._noise = NoiseSource(plan.size, plan.shape)
        self._seeds, self._samples = [0] * plan.size, [0] * plan.size
        self._last = 0
        self._closed = False
        offsets, total = arena_of(self._sizes(lower.buffers))
        with self._device.using():
            self._base = self._device.allocate(total)
        self._places = {name: self._base + offset for name, offset in offsets.items()}

    def start(self, rows: Rows) -> None:
        """See :meth:`Trajectory.start`; a UsageError where an array has not the plan's shape."""
        plan = self.plan
        loads: dict[str, AnyArray] = {}
        if plan.guided:
            loads["scales"] = np.asarray(rows.scales, np.float32)
        for name, condition in plan.interface.conditions.items():
            loads[f"input {name}"] = np.asarray(rows.conditions[name], condition.dtype)
        self._check(loads)
        self._seeds, self._samples = rows.seeds.tolist(), rows.samples.tolist()
        noise = self._noise.draw(self._seeds, self._samples, 0)
        loads["buffer state"] = noise * np.float32(plan.program.initial)
        loads["first"] = np.full(2, _FINE, np.int32)
        with self._using():
            for name, array in loads.items():
                self._device.upload(self._places[name], array)
        self._last = 0

    def step(self, index: int) -> None:
        """See :meth:`Trajectory.step`."""
        self._draw(range(index, index + 1))
        with self._using():
            self._enqueue(index)
        self._last = index

    def run(self) -> None:
        """Take all steps; errors are those of :meth:`step`."""
        for part in self._parts:
            self._draw(part)  # while the GPU does the part before
            with self._using():
                graph = self._graphs.get(part)
                if graph is not None:
                    graph.launch()
                    continue
                for index in part:
                    self._enqueue(index)
                if part not in self._graphs:  # what libraries do only once is done now
                    self._graphs[part] = self._captured(part)
        self._last = len(self.plan.program.steps) - 1

    def wait(self) -> None:
        """Return once the steps taken are done."""
        with self._using():
            self._device.synchronize()

    def state(self) -> Array:
        """See :meth:`Trajectory.state`."""
        state = np.empty((self.plan.size, *self.plan.shape), np.float32)
        with self._using():
            self._check_finite()
            self._device.download(self._places["buffer state"], state)
        return state

    def state_dlpack(self) -> DeviceArray:
        """See :meth:`Trajectory.state_dlpack`; the copy is on the GPU."""
        with self._using():
            self._check_finite()
            shape = (self.plan.size, *self.plan.shape)
            return self._device.export(self._places["buffer state"], shape)

    def close(self) -> None:
        """Release the buffers and graphs."""
        if self._closed:
            return
        self._closed = True
        with self._device.using():
            for graph in self._graphs.values():
                if graph is not None:
                    graph.close()
            self._graphs.clear()
            self._device.release(self._base)

    def _using(self) -> AbstractContextManager[object]:
        if self._closed:
            raise UsageError(
                found="a trajectory that is closed",
                expected="an open one",
                remedy="ask the engine for another",
            )
        return self._device.using()

    def _sizes(self, buffers: Sequence[str]) -> dict[str, int]:
        """Bytes of every piece of memory, by name."""
        plan, interface = self.plan, self.plan.interface
        rows = plan.size + plan.guided
        state, batch = 4 * self._count, 4 * self._row * rows
        sizes = dict.fromkeys(buffers, state)
        sizes |= {"input x": batch, "input t": 4 * rows, "scales": 4 * plan.guided, "first": 8}
        for name in interface.conditions:
            sizes[f"input {name}"] = rows * self._condition_bytes(name)
            if plan.apart:
                sizes[f"single {name}"] = self._condition_bytes(name)
        for index in range(len(interface.outputs)):
            sizes[f"output {index}"] = batch
            if plan.apart:
                sizes[f"single {index}"] = 4 * self._row
        if plan.apart:
            sizes |= {"single x": 4 * self._row, "single t": 4}
        sizes |= {f"noise {slot}": state for slot in range(self._room)}
        for place, tensor in self._tensors.items():
            sizes[place] = rows * _TYPES[tensor.dtype][1] * math.prod(tensor.shape)
        for operation in (operation for step in self._steps for operation in step):
            if isinstance(operation, Spread):
                sizes["spread"] = state
            if isinstance(operation, Sum) and len(operation.terms) > _TERMS:
                sizes["partial"] = state
        return sizes

    def _condition_bytes(self, name: str) -> int:
        condition = self.plan.interface.conditions[name]
        return np.dtype(condition.dtype).itemsize * math.prod(condition.shape)

    def _check(self, loads: Inputs) -> None:
        """Pass when arrays fill their memory exactly."""
        plan = self.plan
        for name, array in loads.items():
            kind, _, which = name.partition(" ")
            shape: tuple[int, ...] = (plan.guided,)
            if kind == "buffer":
                shape = (plan.size, *plan.shape)
            elif kind == "input":
                shape = (plan.size + plan.guided, *plan.interface.conditions[which].shape)
            if array.shape != shape:
                raise UsageError(
                    found=f"{which or name} of shape {list(array.shape)} for a trajectory",
                    expected=f"{list(shape)}, as planned",
                    remedy="plan a trajectory for what is to be sampled",
                )

    def _divided(self) -> Iterator[range]:
        """Ranges of steps, each with no more noise than there is room for."""
        starts = [index for index, order in self._draws if order and not order % self._room]
        yield from (range(low, high) for low, high in pairwise([0, *starts, len(self._steps)]))

    def _draw(self, part: range) -> None:
        """Load the noise of some steps."""
        for index, order in self._draws:
            if index in part:
                noise = self._noise.draw(self._seeds, self._samples, index + 1)
                with self._using():
                    self._device.upload(self._places[f"noise {order % self._room}"], noise)

    def _captured(self, part: range) -> RecordedWork | None:
        if not self._engine.settle():
            return None

        def work() -> None:
            for index in part:
                self._enqueue(index)

        try:
            return self._device.capture(work)
        except Exception as error:  # each library has errors of its own
            LOG.warning("no CUDA graph; the steps are queued one by one (%s)", error)
            return None

    def _enqueue(self, index: int) -> None:
        """Queue a step."""
        for operation in self._steps[index]:
            self._execute(index, operation)

    def _execute(self, index: int, operation: Operation) -> None:
        """Queue an operation of a step."""
        match operation:
            case Sum():
                self._combine(operation)
            case Blend():
                self._blend(operation)
            case Evaluate():
                self._evaluate(operation)
            case Check(output, rows):
                self._inspect(f"output {output}", rows, index, _OF_OUTPUT)
            case Guide(rows, channels):
                self._guide(rows * self._row, channels)
            case Draw(order):  # loaded before; see _draw
                self._places["noise"] = self._places[f"noise {order % self._room}"]
            case Spread(low, high):
                self._spread(low, high)

    def _guide(self, count: int, channels: int | None) -> None:
        """Queue guidance, which acts on the leading channels of each sample."""
        row, shape, first = self._row, self.plan.shape, self._places["output 0"]
        if channels is not None and shape:
            row = min(channels, shape[0]) * math.prod(shape[1:])
        self._device.launch(
            "guide",
            count,
            first,
            first + 4 * self._count,
            self._places["scales"],
            np.int64(count),
            np.int64(self._row),
            np.int64(row),
        )

    def _spread(self, low: float, high: float) -> None:
        """Queue the scaling of the noise by what the network chose."""
        self._device.launch(
            "deviate",
            self._count,
            self._places["spread"],
            self._places["noise"],
            self._places["output 1"],
            np.int64(self._count),
            np.float32(low),
            np.float32(high - low),
        )

    def _combine(self, operation: Sum) -> None:
        """Queue a sum, in its terms' order; what it reads may be what it writes."""
        terms, clip, out = operation.terms, operation.clip, self._places[operation.into]
        repeated, base = operation.repeated * self._row, 0
        for low in range(0, len(terms), _TERMS):
            some = [(self._places[place], factor) for place, factor in terms[low:][:_TERMS]]
            last = low + _TERMS >= len(terms)
            target = out if last else self._places["partial"]
            bounds = clip if last and clip is not None else (0.0, 0.0)
            pairs = some + [(some[0][0], 0.0)] * (_TERMS - len(some))
            self._device.launch(
                "combine",
                self._count,
                target,
                base,
                np.int64(self._count),
                out + 4 * self._count if last and repeated else 0,
                np.int64(repeated if last else 0),
                np.int32(last and clip is not None),
                np.float32(bounds[0]),
                np.float32(bounds[1]),
                np.int32(len(some)),
                *(part for at, factor in pairs for part in (at, np.float32(factor))),
            )
            base = target

    def _blend(self, operation: Blend) -> None:
        """Queue a sum of a span's tensors, of whatever types they are."""
        terms = [*operation.terms]
        assert len(terms) <= _BLENDED
        count = operation.rows * math.prod(self._tensors[operation.into].shape)
        places = [operation.into, *(place for place, _ in terms)]
        codes = [_TYPES[self._tensors[place].dtype][0] for place in places]
        terms += [(terms[0][0], 0.0)] * (_BLENDED - len(terms))
        self._device.launch(
            "blend",
            count,
            self._places[operation.into],
            np.int64(count),
            np.int32(sum(code << 2 * index for index, code in enumerate(codes))),
            np.int32(len(operation.terms)),
            *(part for at, c in terms for part in (self._places[at], np.float32(c))),
        )

    def _evaluate(self, operation: Evaluate) -> None:
        """Queue an evaluation of the first rows, or one of each."""
        engine, depth, rows = self._engine.member(operation.engine), operation.depth, operation.rows
        names = ("x", "t", *self.plan.interface.conditions)
        count = len(self.plan.interface.outputs)
        times = np.float32(operation.timestep)
        self._device.launch("fill", rows, self._places["input t"], np.int64(rows), times)
        if not self.plan.apart:
            inputs = {name: self._places[f"input {name}"] for name in names}
            outputs = [self._places[f"output {which}"] for which in range(count)]
            crossing = self._crossing.get(operation.engine, {})
            tensors = {name: self._places[place] for name, place in crossing.items()}
            batch = (rows, *self.plan.shape)
            engine.enqueue(
                DeviceEvaluation(depth, batch, inputs, outputs, tensors, operation.stretch)
            )
            return
        copy, size = self._device.copy, 4 * self._row
        inputs = {name: self._places[f"single {name}"] for name in names}
        outputs = [self._places[f"single {which}"] for which in range(count)]
        sizes = {name: self._condition_bytes(name) for name in names[2:]} | {"x": size, "t": 4}
        for row in range(rows):
            for name in names:
                offset = row * sizes[name]
                copy(inputs[name], self._places[f"input {name}"] + offset, sizes[name])
            engine.enqueue(DeviceEvaluation(depth, (1, *self.plan.shape), inputs, outputs))
            for which in range(count):
                copy(self._places[f"output {which}"] + row * size, outputs[which], size)

    def _inspect(self, name: str, rows: int, step: int, which: int) -> None:
        """Queue a check of the first ``rows`` rows of an output, or of the state."""
        count = rows * self._row
        self._device.launch(
            "inspect",
            count,
            self._places[name],
            np.int64(count),
            np.int32(step),
            self._places["first"] + 4 * which,
        )

    def _check_finite(self) -> None:
        self._inspect("buffer state", self.plan.size, self._last, _OF_STATE)
        first = np.empty(2, np.int32)
        self._device.download(self._places["first"], first)
        for which, what in ((_OF_OUTPUT, "the output"), (_OF_STATE, "the state after the step")):
            index = int(first[which])
            if index != _FINE:
                step = self.plan.program.steps[index]
                raise non_finite(
                    index, step, self._engine.member(step.chosen.engine).precision, what
                )
