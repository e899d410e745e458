"""Programs: a solver, its timesteps and an exit schedule as a flat list of steps.

Every step of a solver is linear in what it reads (but for an optional clip), so a
program is data: which depth runs at which timestep, what the network's input is made
of, and what the buffers become. A runtime needs no solver, only this list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from eecompile.errors import UsageError

__all__ = ["Program", "Step", "Term", "Update", "combine"]

FORMAT = 1
RESERVED = frozenset({"output", "noise"})


class Term(msgspec.Struct, frozen=True, array_like=True):
    """``coefficient`` times the buffer's content."""

    buffer: str
    coefficient: float


class Update(msgspec.Struct, frozen=True, omit_defaults=True):
    """Set buffer ``into`` to the sum of ``terms``, clipped to ``clip`` if given."""

    into: str
    terms: tuple[Term, ...]
    clip: tuple[float, float] | None = None


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One evaluation of the network, and the updates after it.

    Attributes:
        depth: the exit that runs.
        timestep: t, as the network takes it.
        input: sum of buffers that is the network's input.
        updates: carried out in order, once buffer ``output`` holds the prediction and
            buffer ``noise``, if any term reads it, standard normal noise of this step.
        log_variances: logarithms of the variances that a learned variance of -1 and of
            1 stands for; the noise is then scaled by the standard deviation between
            them. None for plain noise.
    """

    depth: int
    timestep: float
    input: tuple[Term, ...]
    updates: tuple[Update, ...]
    log_variances: tuple[float, float] | None = None

    def reads_noise(self) -> bool:
        """Whether this step needs noise."""
        return any(term.buffer == "noise" for update in self.updates for term in update.terms)


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A whole trajectory, from noise to data.

    Buffer ``state`` starts as standard normal noise times ``initial``, and is the
    result after the last step. Buffers are float32 [B, ...], all shaped like the state.

    Attributes:
        solver: name of the solver and its options, for people.
        initial: scale of the initial noise.
        steps: from large t to small.
        format: version of this form.

    Raises:
        UsageError: there is no step, a buffer is read before it is written, a reserved
            buffer is written, or a figure is not finite.
    """

    solver: str
    initial: float
    steps: tuple[Step, ...]
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise _malformed(f"a program of format {self.format}", f"format {FORMAT}")
        if not self.steps:
            raise _malformed("a program without steps", "at least one step")
        written = {"state"}
        for index, step in enumerate(self.steps):
            for problem in _problems(step, written):
                raise _malformed(f"{problem} in step {index}", "a program that a solver made")
        if not math.isfinite(self.initial):
            raise _malformed(f"initial scale {self.initial}", "a finite number")

    @property
    def depths(self) -> tuple[int, ...]:
        """The depth of each step, in order."""
        return tuple(step.depth for step in self.steps)

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
        except msgspec.DecodeError as error:
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
        written.add(update.into)
    terms = [*step.input, *(term for update in step.updates for term in update.terms)]
    figures = [step.timestep, *(term.coefficient for term in terms), *(step.log_variances or ())]
    if not all(math.isfinite(figure) for figure in figures):
        yield "a figure that is not finite"


def _malformed(found: str, expected: str) -> UsageError:
    return UsageError(found=found, expected=expected, remedy="compile the program again")


def combine(
    terms: tuple[Term, ...], buffers: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The sum of ``terms`` over ``buffers``, a new float32 array.

    A single term with coefficient 1 returns the buffer itself.
    """
    first, *others = terms
    if not others and first.coefficient == 1.0:
        return buffers[first.buffer]
    total = buffers[first.buffer] * np.float32(first.coefficient)
    for term in others:
        total += buffers[term.buffer] * np.float32(term.coefficient)
    return total
