"""Programs: what solvers compile to.

Every solver step is linear in what it reads, so a whole trajectory is a flat list of
steps: evaluate the network at a depth and a timestep, then set buffers to linear
combinations of buffers. Coefficients are float64; the sums are float32, as the state is.
A runtime needs no solver, only this list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from eecompile.errors import UsageError
from eecompile.programs.process import Process
from eecompile.programs.schedule import REUSE, ExitSchedule

__all__ = ["OPEN", "REUSE", "Program", "Step", "Term", "Update"]

FORMAT = 3
OPEN = -1
"""The depth of a step for which an exit schedule has yet to be chosen."""
_LARGEST = 3.4e38  # of float32
RESERVED = frozenset({"output", "noise"})


class Term(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``coefficient`` times the buffer's content."""

    buffer: str
    coefficient: float


class Update(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Set buffer ``into`` to the sum of ``terms``, clipped to ``clip`` if given."""

    into: str
    terms: tuple[Term, ...]
    clip: tuple[float, float] | None = None


class Step(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One evaluation of the network, and the updates after it.

    Attributes:
        depth: the exit that runs; 0 (``REUSE``) where none does and buffer ``output``
            keeps what the last evaluation gave; -1 (``OPEN``) where a schedule has yet
            to choose it.
        timestep: t, as the network takes it.
        input: sum of buffers that is the network's input.
        updates: carried out in order, once buffer ``output`` holds the prediction and
            buffer ``noise``, if any term reads it, standard normal noise of this step.
        log_variances: logarithms of the variances that a learned variance of -1 and of
            1 stands for; the noise is then scaled by the standard deviation between
            them. None for plain noise.
        time: t on the process's own scale, [0, T), by which exit schedules go; None
            where that is ``timestep``.
        engine: the engine set that evaluates, by its target's name, where several of
            one network are open; "" for the first of them.
    """

    depth: Annotated[int, Meta(ge=OPEN)]
    timestep: float
    input: tuple[Term, ...]
    updates: tuple[Update, ...]
    log_variances: tuple[float, float] | None = None
    time: float | None = None
    engine: str = ""

    @property
    def evaluates(self) -> bool:
        """Whether the network is evaluated in this step."""
        return self.depth != REUSE

    @property
    def reads_noise(self) -> bool:
        """Whether this step needs noise."""
        return any(term.buffer == "noise" for update in self.updates for term in update.terms)

    @property
    def moment(self) -> float:
        """Time t on the process's own scale, [0, T)."""
        return self.timestep if self.time is None else self.time


class Program(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole trajectory, from noise to data.

    Buffer ``state`` starts as standard normal noise times ``initial``, and is the
    result after the last step. Buffers are float32 [B, ...], all shaped like the state.

    Attributes:
        solver: name of the solver and its options, for people.
        initial: scale of the initial noise.
        steps: one an evaluation, from large t to small.
        process: the process that it was compiled for; None where that is not known.
        format: version of this form.

    Raises:
        UsageError: there is no step, a buffer is read before it is written, a reserved
            buffer is written, or a figure is not finite.
    """

    solver: str
    initial: float
    steps: tuple[Step, ...]
    process: Process | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "steps", tuple(self.steps))
        if self.format != FORMAT:
            raise _malformed(f"a program of format {self.format}", f"format {FORMAT}")
        if not self.steps:
            raise _malformed("a program without steps", "at least one step")
        if not self.steps[0].evaluates:
            raise UsageError(
                found="a program whose first step uses the previous output again",
                expected="one that begins with an evaluation",
                remedy="give an exit to the largest times of the exit schedule",
            )
        written = {"state"}
        for index, step in enumerate(self.steps):
            for problem in _problems(step, written):
                raise _malformed(f"{problem} in step {index}", "a program that a solver made")
        if not abs(self.initial) < _LARGEST:
            raise _malformed(f"initial scale {self.initial}", "a finite number")

    @property
    def depths(self) -> tuple[int, ...]:
        """The depth of each step, in order."""
        return tuple(step.depth for step in self.steps)

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that it writes, ``state`` first."""
        names = (update.into for step in self.steps for update in step.updates)
        return tuple(dict.fromkeys(("state", *names)))

    def with_schedule(self, schedule: ExitSchedule, timesteps: int) -> Program:
        """This program with other depths and engine sets.

        Args:
            schedule: of depths, and of engine sets if it names any.
            timesteps: T of the process.

        Raises:
            UsageError: the first step would have no exit.
        """

        def engine(step: Step) -> str:
            return schedule.engine_at(step.moment, timesteps)

        chosen = self.with_depths(lambda time: schedule.depth_at(time, timesteps))
        steps = (msgspec.structs.replace(step, engine=engine(step)) for step in chosen.steps)
        return msgspec.structs.replace(chosen, steps=tuple(steps))

    def with_depths(self, depth_at: Callable[[float], int]) -> Program:
        """This program with other depths.

        Args:
            depth_at: the depth for a time t within [0, T), as an exit schedule gives it.
        """
        steps = (msgspec.structs.replace(s, depth=depth_at(s.moment)) for s in self.steps)
        return msgspec.structs.replace(self, steps=tuple(steps))

    def to_json(self) -> bytes:
        """This program as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def from_json(cls, data: bytes) -> Program:
        """The program that :meth:`to_json` wrote.

        Raises:
            UsageError: it is no such program.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise _malformed(f"JSON that is no program ({error})", "Program.to_json()") from error


def _problems(step: Step, written: set[str]) -> Iterator[str]:
    """What is wrong with one step; adds to ``written`` the buffers that it writes."""
    if not step.input or not all(update.terms for update in step.updates):
        yield "a sum of no terms"
    for term in step.input:
        if term.buffer not in written:
            yield f"buffer {term.buffer!r} read before it is written"
    for update in step.updates:
        for term in update.terms:
            if term.buffer not in written | RESERVED:
                yield f"buffer {term.buffer!r} read before it is written"
        if update.into in RESERVED:
            yield f"reserved buffer {update.into!r} written"
        bounds = update.clip or (0.0, 0.0)
        if not -_LARGEST < bounds[0] <= bounds[1] < _LARGEST:
            yield f"clip to {list(bounds)}"
        written.add(update.into)
    terms = [*step.input, *(term for update in step.updates for term in update.terms)]
    figures = [step.timestep, *(term.coefficient for term in terms), *(step.log_variances or ())]
    if not all(abs(figure) < _LARGEST for figure in (*figures, step.moment)):
        yield "a figure that is not finite in float32"


def _malformed(found: str, expected: str) -> UsageError:
    return UsageError(found=found, expected=expected, remedy="compile the program again")
