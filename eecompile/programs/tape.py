"""How solvers write programs: arithmetic with values that stand for buffers.

A :class:`Value` is a linear combination of what buffers hold; sums and multiples of values
are worked out at once, in float64. A solver evaluates the network, combines, keeps what a
later step reads, and sets the next state. Buffers are assigned by lifetime: two kept
values share one if they are never needed at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from eecompile.programs.choice import OUTPUT, Choice
from eecompile.programs.process import Point, Process
from eecompile.programs.program import Program, Step, Term, Update

ChoiceAt = Callable[[float], Choice | None]
"""The choice for a time t within [0, T); None leaves it open."""
_STATE, _NOISE = "state", "noise"
_SPECIAL = frozenset({_STATE, OUTPUT, _NOISE})
_NEGLIGIBLE = 1e-13  # of the largest coefficient: what float64 arithmetic leaves of a zero


class Value:
    """A linear combination of nodes: what a buffer holds at one time."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[int, float]) -> None:
        self.terms = dict(terms)

    def __add__(self, other: Value) -> Value:
        total = dict(self.terms)
        for node, coefficient in other.terms.items():
            total[node] = total.get(node, 0.0) + coefficient
        return Value(total)

    def __sub__(self, other: Value) -> Value:
        return self + -other

    def __neg__(self) -> Value:
        return self * -1.0

    def __mul__(self, factor: float) -> Value:
        return Value({node: factor * coefficient for node, coefficient in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Value:
        return self * (1.0 / divisor)


class Prediction(NamedTuple):
    """What the network's output says of the state: the data in it, and the noise."""

    data: Value
    noise: Value


class _Node(msgspec.Struct):
    """Something that a buffer holds: its buffer's hint, when it is made and last read.

    Times count the sums of the program: inputs and updates.
    """

    hint: str
    made: int = 0
    last: int = 0
    buffer: str = ""


class _Draft(msgspec.Struct):
    choice: Choice | None
    point: Point
    input: Value
    updates: list[tuple[int, Value, tuple[float, float] | None]]
    log_variances: tuple[float, float] | None = None


class Tape:
    """Records one trajectory.

    Args:
        process: that the network was trained for.
        choice_at: the choice for a time.
        start: where the trajectory starts.
        clip: bounds of the predicted data, or None.

    Attributes:
        state: the current state.
    """

    def __init__(
        self,
        process: Process,
        choice_at: ChoiceAt,
        start: Point,
        clip: tuple[float, float] | None = None,
    ) -> None:
        self.process = process
        self._choice_at = choice_at
        self._clip = clip
        self._initial = process.initial(start)
        self._nodes: list[_Node] = []
        self._steps: list[_Draft] = []
        self._current: dict[str, int] = {}  # of state, output and noise: the node they hold
        self._state = self._node(_STATE)

    @property
    def state(self) -> Value:
        """The current state; after :meth:`advance`, another one."""
        return self._value(self._state)

    def evaluate(self, state: Value, point: Point) -> Prediction:
        """Evaluate the network on ``state``, which is at ``point``."""
        process = self.process
        output = self.raw(state * process.input_scale(point), point)
        alpha, sigma = point.alpha, point.sigma
        if process.prediction == "epsilon":
            data, noise = (state - sigma * output) / alpha, output
        elif process.prediction == "sample":
            data, noise = output, (state - alpha * output) / sigma
        elif process.prediction == "v_prediction" and process.family == "diffusion":
            data, noise = alpha * state - sigma * output, sigma * state + alpha * output
        elif process.prediction in ("flow", "flow_to_data"):
            total = alpha + sigma
            output = output if process.prediction == "flow" else -output
            data, noise = (state - sigma * output) / total, (state + alpha * output) / total
        else:  # edm; arXiv 2206.00364, table 1
            root = math.hypot(sigma, process.sigma_data)
            skip, out = (process.sigma_data / root) ** 2, sigma * process.sigma_data / root
            data = skip * state + (out if process.prediction == "edm" else -out) * output
            noise = (state - data) / sigma
        if self._clip is None:
            return Prediction(data, noise)
        data = self.keep(data, "data", self._clip)
        return Prediction(data, (state - alpha * data) / sigma)

    def raw(self, x: Value, point: Point) -> Value:
        """The network's output for the input ``x``, neither scaled nor clipped."""
        x = self._tidy(x)
        self._check(x)
        for hint in (OUTPUT, _NOISE):
            if self._current.get(hint) in x.terms:
                raise AssertionError(f"a solver evaluates the network on {hint}, not kept")
        self._current.pop(_NOISE, None)
        self._steps.append(_Draft(self._choice_at(point.time), point, x, []))
        return self._value(self._node(OUTPUT))

    def noise(self, log_variances: tuple[float, float] | None = None) -> Value:
        """This step's standard normal noise, independent of every other step's.

        Args:
            log_variances: scales it; see :class:`eecompile.programs.program.Step`.
        """
        if _NOISE not in self._current:
            self._node(_NOISE)
        self._steps[-1].log_variances = log_variances
        return self._value(self._current[_NOISE])

    def keep(self, value: Value, name: str, clip: tuple[float, float] | None = None) -> Value:
        """Put ``value`` into a buffer, so that later steps may read it.

        Args:
            value: what to keep; one that a buffer has already is not copied.
            name: of the buffer; a number is added where one is in use.
            clip: bounds, or None.
        """
        if name in _SPECIAL:
            raise AssertionError(f"a solver keeps a value under the reserved name {name!r}")
        [*nodes] = value.terms.items()
        kept = len(nodes) == 1 and nodes[0][1] == 1.0
        if kept and clip is None and self._nodes[nodes[0][0]].hint not in _SPECIAL:
            return value
        return self._value(self._write(value, name, clip))

    def advance(self, state: Value) -> None:
        """Set the state; values made of the former one can no longer be used."""
        self._state = self._write(state, _STATE, None)

    def finish(self, solver: str) -> Program:
        """The program; ``solver`` is its name and options, for people."""
        self._prune()
        self._date()
        self._assign()
        steps = []
        for draft in self._steps:
            updates = tuple(
                Update(self._nodes[node].buffer, self._terms(value), clip)
                for node, value, clip in draft.updates
            )
            point = draft.point
            time = None if point.time == point.timestep else point.time
            inputs = self._terms(draft.input)
            steps.append(
                Step(draft.choice, point.timestep, inputs, updates, draft.log_variances, time)
            )
        return Program(
            solver=solver, initial=self._initial, steps=tuple(steps), process=self.process
        )

    def _node(self, hint: str) -> int:
        self._nodes.append(_Node(hint))
        index = len(self._nodes) - 1
        if hint in _SPECIAL:
            self._current[hint] = index
        return index

    def _value(self, node: int) -> Value:
        return Value({node: 1.0})

    def _write(self, value: Value, name: str, clip: tuple[float, float] | None) -> int:
        value = self._tidy(value)
        self._check(value)
        node = self._node(name)
        self._steps[-1].updates.append((node, value, clip))
        return node

    def _check(self, value: Value) -> None:
        for node in value.terms:
            hint = self._nodes[node].hint
            if hint in _SPECIAL and self._current.get(hint) != node:
                raise AssertionError(f"a solver reads a former {hint}, which it did not keep")

    def _tidy(self, value: Value) -> Value:
        """Without the terms that cancelled, but never without any."""
        largest = max((abs(c) for c in value.terms.values()), default=0.0)
        kept = {n: c for n, c in value.terms.items() if abs(c) > _NEGLIGIBLE * largest}
        return Value(kept or dict([*value.terms.items()][:1]))

    def _terms(self, value: Value) -> tuple[Term, ...]:
        return tuple(Term(self._nodes[node].buffer, c) for node, c in value.terms.items())

    def _prune(self) -> None:
        """Drop the updates that nothing reads."""
        read = {self._state}
        for draft in reversed(self._steps):
            kept = []
            for update in reversed(draft.updates):
                if update[0] in read:
                    kept.append(update)
                    read.update(update[1].terms)
            draft.updates = kept[::-1]
            read.update(draft.input.terms)

    def _date(self) -> None:
        """Note when each node is made and when it is last read."""
        clock = 0
        for draft in self._steps:
            clock += 1
            for node in draft.input.terms:
                self._nodes[node].last = clock
            for made, value, _ in draft.updates:
                clock += 1
                for node in value.terms:
                    self._nodes[node].last = clock
                self._nodes[made].made = self._nodes[made].last = clock
        self._nodes[self._state].last = clock + 1

    def _assign(self) -> None:
        """Give each node a buffer that no other needs at the same time.

        An update may write where it reads for the last time, since sums are elementwise.
        """
        holders: dict[str, _Node] = {}
        for node in self._nodes:
            if node.hint in _SPECIAL:
                node.buffer = node.hint
                continue
            if not node.made:  # dropped
                continue
            free = [name for name, holder in holders.items() if holder.last <= node.made]
            alike = [name for name in free if name.partition(".")[0] == node.hint]
            if free:
                node.buffer = (alike or free)[0]
            else:
                taken = sum(name.partition(".")[0] == node.hint for name in holders)
                node.buffer = f"{node.hint}.{taken}" if taken else node.hint
            holders[node.buffer] = node
