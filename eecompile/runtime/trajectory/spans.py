"""Spans in a trajectory: which tensors are kept of which steps, where, and on how many rows.

What a span adds is kept from a step that ran its blocks until the last step that reads it. A
place is then used again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from eecompile.errors import ScheduleError
from eecompile.programs.choice import Choice
from eecompile.programs.forecasts import Weights, forecasts
from eecompile.programs.program import Program
from eecompile.runtime.trajectory.plan import Member, Plan
from eecompile.store.manifest import SpanTensor

_Cuts = tuple[int, int]


class Blend(NamedTuple):
    """Set the first rows of a span's tensor to a sum of products, in float32 and in their order.

    Attributes:
        into: the place, which is none of those that are read.
        terms: places and coefficients.
        rows: how many.
    """

    into: str
    terms: tuple[tuple[str, float], ...]
    rows: int


class TensorPlace(NamedTuple):
    """A place of a span's tensor, with room for the rows of the whole batch.

    Attributes:
        shape: of one sample.
        dtype: as in :class:`eecompile.store.manifest.SpanTensor`.
    """

    shape: tuple[int, ...]
    dtype: str


class _Kept(NamedTuple):
    """What a step keeps of a span: in which places, and which step reads it last."""

    places: tuple[str, ...]
    last: int


def rows_of_steps(plan: Plan, made_of: Sequence[Weights]) -> tuple[int, ...]:
    """How many rows each step evaluates: its own, and those that a later span needs of it.

    Guidance may act in a step and not in those that it extrapolates from; they then evaluate the
    rows without condition for that step alone.
    """
    rows = [plan.rows(step) for step in plan.program.steps]
    for index in reversed(range(len(rows))):
        if plan.program.steps[index].chosen.cuts:
            for source, _ in made_of[index]:
                rows[source] = max(rows[source], rows[index])
    return tuple(rows)


class SpanPlaces:
    """The places of a program's spans on an engine.

    Attributes:
        tensors: every place.
        crossing: the places of what enters and leaves spans, by engine set and name.
    """

    def __init__(self, program: Program, engine: Member, made_of: Sequence[Weights]) -> None:
        self.tensors: dict[str, TensorPlace] = {}
        self.crossing: dict[str, dict[str, str]] = {}
        self._program, self._engine, self._made_of = program, engine, made_of
        self._kept = self._placed()

    def extrapolated(self, index: int, rows: int) -> list[Blend]:
        """What brings into their places the tensors that leave the span which a step skips."""
        choice, made_of = self._choice(index), self._made_of[index]
        if not choice.cuts:
            return []
        found = []
        for which, tensor in enumerate(self._tensors(choice, _cuts(choice))):
            terms = [(self._kept[s, _cuts(choice)].places[which], w) for s, w in made_of]
            if tensor.enters:
                terms.insert(0, (self._place(choice, tensor.enters, tensor), 1.0))
            found.append(Blend(self._place(choice, tensor.leaves, tensor), tuple(terms), rows))
        return found

    def kept(self, index: int, rows: int) -> Iterator[Blend]:
        """What keeps what spans added in a step, for those that later steps skip."""
        choice = self._choice(index)
        for (source, cuts), kept in self._kept.items():
            if source != index:
                continue
            for tensor, into in zip(self._tensors(choice, cuts), kept.places, strict=True):
                terms = [(self._place(choice, tensor.leaves, tensor), 1.0)]
                if tensor.enters:
                    terms.append((self._place(choice, tensor.enters, tensor), -1.0))
                yield Blend(into, tuple(terms), rows)

    def _placed(self) -> dict[tuple[int, _Cuts], _Kept]:
        """Where what spans added is kept, by the step that ran their blocks and the span's cuts."""
        last: dict[tuple[int, _Cuts], int] = {}
        for index, made_of in enumerate(self._made_of):
            if self._choice(index).cuts:
                last |= {(source, _cuts(self._choice(index))): index for source, _ in made_of}
        found: dict[tuple[int, _Cuts], _Kept] = {}
        ends: dict[str, int] = {}  # of each place, the step that reads it last
        for (source, cuts), end in sorted(last.items()):
            places = []
            for which, tensor in enumerate(self._tensors(self._choice(source), cuts)):
                room = TensorPlace(tensor.shape, tensor.dtype)
                free = (p for p, used in ends.items() if used < source and self.tensors[p] == room)
                place = next(free, f"kept {which} of {cuts[0]}-{cuts[1]} in step {source}")
                ends[place], self.tensors[place] = end, room
                places.append(place)
            found[source, cuts] = _Kept(tuple(places), end)
        return found

    def _choice(self, index: int) -> Choice:
        return self._program.steps[index].chosen

    def _tensors(self, choice: Choice, cuts: _Cuts) -> Sequence[SpanTensor]:
        return self._engine.member(choice.engine).spans[cuts]

    def _place(self, choice: Choice, name: str, like: SpanTensor) -> str:
        place = f"tensor {name} of {choice.engine}"
        self.tensors[place] = TensorPlace(like.shape, like.dtype)
        self.crossing.setdefault(choice.engine, {})[name] = place
        return place


def check_spans(program: Program, engine: Member) -> None:
    """Pass when the engines that a program names can do what its spans ask of them.

    Raises:
        ScheduleError: an engine set has no spans, or not the same.
    """
    if not any(choice is not None and choice.cuts for choice in program.choices):
        return
    for index, made_of in enumerate(forecasts(program)):
        choice = program.steps[index].chosen
        if not choice.cuts:
            continue
        ours = _shapes(choice, choice, engine)
        for source, _ in made_of:
            if _shapes(program.steps[source].chosen, choice, engine) != ours:
                raise ScheduleError(
                    found=f"{choice.text!r} in an exit schedule, which reads what the blocks added "
                    f"in {program.steps[source].chosen.text!r}",
                    expected="engine sets in which the same tensors leave these blocks",
                    remedy="build both from one bundle with this version",
                )


def _shapes(made: Choice, skips: Choice, engine: Member) -> list[tuple[int, ...]]:
    """The shapes of what leaves the blocks that ``skips`` skips, in the engine set of ``made``."""
    spans = engine.member(made.engine).spans
    if _cuts(skips) not in spans:
        named = f"the engine set {made.engine!r}" if made.engine else "the engine set"
        raise ScheduleError(
            found=f"{skips.text!r} in an exit schedule, and {named}, which was built "
            f"{'without that span' if spans else 'without spans'}",
            expected=f"one of its spans {[f'{start}-{stop}' for start, stop in spans]}"
            if spans
            else "one in which blocks can be skipped",
            remedy="build with layout = 'chained' in the target, or choose a schedule of exits "
            "and forecasts",
        )
    return [tensor.shape for tensor in spans[_cuts(skips)]]


def _cuts(choice: Choice) -> _Cuts:
    start, stop = choice.cuts
    return start, stop
