"""What a scheduler's steps do, read off unit vectors.

Each step runs once, in float64, on unit vectors that stand for the state, the network's output,
each draw of noise, and each tensor that the scheduler kept from earlier steps; the coefficients
are read off what it returns and what it keeps now.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eecompile.arrays import Floats
from eecompile.compiler.schedulers.config import OTHER, refuse
from eecompile.errors import EecompileError, summary

Row = dict[int, float]
"""A linear combination: the coefficient of each node."""
Draw = Callable[[tuple[int, ...]], Tensor]
CHANNELS = 3
"""Of the tensors that schedulers are tried with; all treated alike, or it is no sum."""
_DRAWS = 4  # most draws of noise in a step that are told apart
_NEGLIGIBLE = 1e-10  # of a row's largest coefficient: what rounding leaves of a zero
_ALIKE = 1e-6  # relative: channels that differ by no more are treated alike
_RANDOM = frozenset(
    {
        *(torch.rand, torch.rand_like, torch.normal, torch.bernoulli, torch.multinomial),
        *(torch.poisson, torch.randint, torch.randperm, Tensor.normal_, Tensor.uniform_),
        *(Tensor.exponential_, Tensor.bernoulli_, Tensor.multinomial, Tensor.random_),
    }
)
_CASTS = frozenset({Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16})


class TracedStep(msgspec.Struct):
    """A step of a scheduler over nodes: tensors, numbered, each written once.

    Attributes:
        start: node of the state before it.
        output: node of the network's output.
        noises: node of each draw of noise.
        input: the network's input.
        kept: new nodes, the name of what holds them, and their content.
        state: the state after it.
        weights: share of each draw in the noise that is left, [draws].
    """

    start: int
    output: int
    noises: list[int]
    input: Row
    kept: list[tuple[int, str, Row]]
    state: Row
    weights: Floats = msgspec.field(default_factory=lambda: np.zeros(_DRAWS))


def traced(scheduler: Any, options: Mapping[str, float]) -> list[TracedStep]:
    """The steps of a scheduler, without what nothing reads, each with at most one noise."""
    steps = _live(_Trace(scheduler, options).run())
    for index, step in enumerate(steps):
        _leave_one_noise(scheduler, index, step)
    return steps


class _Trace:
    """Runs a copy of ``scheduler`` on unit vectors, step by step."""

    def __init__(self, scheduler: Any, options: Mapping[str, float]) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        self._options = options
        self._nodes = 1  # node 0 is the initial state
        self._shape: tuple[int, ...] = ()
        self._state: Tensor | None = None  # that the scheduler has returned
        self._held: dict[int, tuple[int | None, Tensor]] = {}  # by id of tensor: its node

    def run(self) -> list[TracedStep]:
        return [self._step(t) for t in self._scheduler.timesteps]

    def _new(self, count: int = 1) -> list[int]:
        self._nodes += count
        return [*range(self._nodes - count, self._nodes)]

    def _step(self, t: Tensor) -> TracedStep:
        start = self._nodes - 1  # the newest node is the state
        output, *noises = self._new(1 + _DRAWS)
        hidden = [node for node, _ in self._held.values() if node is not None]
        basis = [*dict.fromkeys((start, output, *hidden, *noises))]
        width = len(basis) + 1  # the last component is 0, and shows what is added to a sum
        units = {node: _unit(index, width) for index, node in enumerate(basis)}
        sample = self._refill(units, width, units[start])
        self._shape = tuple(sample.shape)
        draws = iter(noises)

        def draw(_: tuple[int, ...]) -> Tensor:
            node = next(draws, None)
            if node is None:
                refuse(self._scheduler, f"draws noise more than {_DRAWS} times a step", OTHER)
            return units[node].clone()

        with Substituted(self._scheduler, self._shape, draw, keep=True):
            network_input = self._row(input_of(self._scheduler, sample, t), basis)
            result = state_after(self._scheduler, units[output].clone(), t, sample, self._options)
        state = self._row(result, basis)
        kept, self._held = self._collect(basis, state, set(hidden))
        if not network_input or not state:
            refuse(self._scheduler, "returns zeros", OTHER)
        self._state = result
        return TracedStep(start, output, noises, network_input, kept, state)

    def _refill(self, units: Mapping[int, Tensor], width: int, start: Tensor) -> Tensor:
        """Put unit vectors where the scheduler keeps tensors; the state to pass to it.

        Tensors that were one object stay one: some schedulers write into what they keep.
        """
        fresh: dict[int, Tensor] = {}

        def replace(_: str, tensor: Tensor) -> Tensor:
            node, _old = self._held[id(tensor)]
            if id(tensor) not in fresh:
                unit = _unit(None, width) if node is None else units[node]
                fresh[id(tensor)] = unit.clone()
            return fresh[id(tensor)]

        _visit(self._scheduler, self._shape, replace)
        return fresh.get(id(self._state), start)

    def _collect(
        self, basis: list[int], state: Row, hidden: set[int]
    ) -> tuple[list[tuple[int, str, Row]], dict[int, tuple[int | None, Tensor]]]:
        """What the scheduler keeps now: new nodes, and the node of each tensor."""
        found: list[tuple[str, Tensor, Row]] = []

        def look(name: str, tensor: Tensor) -> Tensor:
            found.append((name, tensor, self._row(tensor, basis)))
            return tensor

        _visit(self._scheduler, self._shape, look)
        kept: list[tuple[int, str, Row]] = []
        made: dict[tuple[tuple[int, float], ...], int] = {}
        pending: list[tuple[Tensor, Row]] = []
        held: dict[int, tuple[int | None, Tensor]] = {}
        for name, tensor, row in found:
            only = next(iter(row)) if len(row) == 1 else -1
            if not row:
                held[id(tensor)] = None, tensor
            elif row == state:
                pending.append((tensor, row))
            elif only in hidden and row[only] == 1.0:
                held[id(tensor)] = only, tensor
            else:
                key = tuple(sorted(row.items()))
                if key not in made:
                    (made[key],) = self._new()
                    kept.append((made[key], name, row))
                held[id(tensor)] = made[key], tensor
        (following,) = self._new()  # the next state, the newest node
        held |= {id(tensor): (following, tensor) for tensor, _ in pending}
        return kept, held

    def _row(self, tensor: Tensor, basis: list[int]) -> Row:
        """The coefficients in ``tensor``, without those that are nearly 0."""
        values = tensor.detach().to(torch.float64).reshape(CHANNELS, -1).numpy()
        largest = float(np.abs(values).max())
        if not math.isfinite(largest):
            refuse(
                self._scheduler,
                "computes with infinity or NaN",
                "choose other options, such as another final_sigmas_type or timestep_spacing",
            )
        if np.abs(values - values[0]).max() > _ALIKE * largest:
            refuse(self._scheduler, "treats channels differently", OTHER)
        if abs(values[0, -1]) > _NEGLIGIBLE * largest:
            refuse(self._scheduler, "adds a constant to the state", OTHER)
        return {
            node: float(value)
            for node, value in zip(basis, values[0, :-1], strict=True)
            if abs(value) > _NEGLIGIBLE * largest
        }


def _unit(index: int | None, width: int) -> Tensor:
    """The unit vector along ``index``, or zeros; float64 [1, 3, 1, width]."""
    unit = torch.zeros(1, CHANNELS, 1, width, dtype=torch.float64)
    if index is not None:
        unit[..., index] = 1.0
    return unit


def input_of(scheduler: Any, sample: Tensor, t: Tensor) -> Tensor:
    """What the network is given."""
    if not hasattr(scheduler, "scale_model_input"):
        return sample
    with _explained(scheduler, "scale_model_input"):
        scaled: Tensor = scheduler.scale_model_input(sample, t)
    return scaled


def state_after(
    scheduler: Any, output: Tensor, t: Tensor, sample: Tensor, options: Mapping[str, float]
) -> Tensor:
    """The state after the scheduler's step."""
    with _explained(scheduler, "step"):
        made = scheduler.step(model_output=output, timestep=t, sample=sample, **options)
        result = made[0] if isinstance(made, tuple) else made.prev_sample
        if result.shape != sample.shape:
            raise ValueError(f"shape {tuple(result.shape)} from {tuple(sample.shape)}")
    return result if isinstance(result, Tensor) else torch.as_tensor(result)


@contextmanager
def _explained(scheduler: Any, what: str) -> Iterator[None]:
    """Turns whatever a scheduler raises into a refusal."""
    try:
        yield
    except EecompileError:
        raise
    except Exception as error:
        refuse(scheduler, f"fails in {what} on state and output alone ({summary(error)})", OTHER)


def _visit(owner: Any, shape: tuple[int, ...], change: Callable[[str, Tensor], Tensor]) -> None:
    """Put ``change(name, tensor)`` in place of each tensor of ``shape`` that ``owner`` keeps."""
    if not shape:
        return

    def changed(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(name, value) if tuple(value.shape) == shape else value
        if type(value) is list:
            value[:] = [changed(name, item) for item in value]
        elif type(value) is tuple:
            return tuple(changed(name, item) for item in value)
        elif type(value) is deque:
            return deque((changed(name, item) for item in value), value.maxlen)
        elif type(value) is dict:
            value.update({key: changed(name, item) for key, item in value.items()})
        elif type(value).__module__.startswith("diffusers.schedulers"):  # UniPC's solver_p
            _visit(value, shape, change)
        return value

    for name, value in [*vars(owner).items()]:
        if name != "_internal_dict":  # the config
            vars(owner)[name] = changed(name, value)


class Substituted(TorchFunctionMode):
    """Within it, in this thread, normal noise is what ``draw`` makes, and nothing has gradients.

    With ``keep``, tensors of the state's ``shape`` stay float64 where the scheduler converts them.
    """

    def __init__(self, scheduler: Any, shape: tuple[int, ...], draw: Draw, *, keep: bool) -> None:
        super().__init__()
        self._scheduler, self._shape, self._draw, self._keep = scheduler, shape, draw, keep

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in (torch.randn, torch.randn_like):
            return self._noise(func, args, named)
        if func in _RANDOM:
            refuse(self._scheduler, "draws random numbers that are not normal noise", OTHER)
        with torch.no_grad():
            result = func(*args, **named)
        if self._keep and func in _CASTS:
            (value, *_) = args
            wide = value.dtype == torch.float64 and value.shape == self._shape
            if wide and isinstance(result, Tensor) and result.is_floating_point():
                return value if result.dtype == torch.float64 else value.clone()
        return result

    def _noise(
        self, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]
    ) -> Tensor:
        size = named.get("size", args)
        if func is torch.randn_like:
            size = (args or (named["input"],))[0].shape
        elif len(size) == 1 and not isinstance(size[0], int):
            (size,) = size
        shape = tuple(size)
        if shape != self._shape:
            refuse(self._scheduler, f"draws noise of shape {shape} for {self._shape}", OTHER)
        noise = self._draw(shape)
        return noise if self._keep else noise.to(named.get("dtype") or noise.dtype)


def _live(steps: list[TracedStep]) -> list[TracedStep]:
    """The steps without the nodes that nothing reads."""
    read: set[int] = set()
    kept = []
    for step in reversed(steps):
        alive = [made for made in step.kept if made[0] in read]
        for row in (step.input, step.state, *(row for _, _, row in alive)):
            read.update(row)
        kept.append(msgspec.structs.replace(step, kept=alive))
    return kept[::-1]


def _leave_one_noise(scheduler: Any, index: int, step: TracedStep) -> None:
    """Leave at most one noise in ``step``, and set its weights.

    Draws that occur only as one sum are one normal noise, as large as their root sum of squares.
    """
    rows = [step.state, *(row for _, _, row in step.kept)]
    matrix = np.array([[row.get(node, 0.0) for node in step.noises] for row in rows])
    drawn = np.abs(matrix).max(axis=0) > 0
    if drawn.sum() <= 1:
        step.weights = drawn.astype(np.float64)
        return
    _, sizes, directions = np.linalg.svd(matrix)
    if len(sizes) > 1 and sizes[1] > _NEGLIGIBLE * sizes[0]:
        refuse(scheduler, f"needs two independent noises in step {index}", OTHER)
    step.weights = directions[0]
    for row, shares in zip(rows, matrix, strict=True):
        for node in step.noises:
            row.pop(node, None)
        row[step.noises[0]] = float(shares @ step.weights)
