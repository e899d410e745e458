"""Programs: what solvers compile to.

Every solver step is linear in what it reads, so a whole trajectory is a flat list of
steps: what a choice says is evaluated at a timestep, then buffers are set to linear
combinations of buffers. Coefficients are float64; the sums are float32, as the state is.
A runtime needs no solver, only this list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, islice

import msgspec

from eecompile.decoding import MalformedError, from_json
from eecompile.errors import UsageError
from eecompile.notebook import bars_html, facts_html
from eecompile.programs.choice import OUTPUT, Choice
from eecompile.programs.process import Process
from eecompile.programs.schedule import ExitSchedule

FORMAT = 4
_LARGEST = 3.4e38  # of float32
_TOLD = 8  # runs of choices that a repr tells
RESERVED = frozenset({OUTPUT, "noise"})


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
        choice: what is evaluated; None where an exit schedule has yet to choose it.
        timestep: t, as the network takes it.
        input: sum of buffers that is the network's input.
        updates: carried out in order, once buffer ``output`` holds the prediction and
            buffer ``noise``, if any term reads it, standard normal noise of this step.
        log_variances: logarithms of the variances that a learned variance of -1 and of
            1 stands for; the noise is then scaled by the standard deviation between
            them. None for plain noise.
        time: t on the process's own scale, [0, T), by which exit schedules go; None
            where that is ``timestep``.
    """

    choice: Choice | None
    timestep: float
    input: tuple[Term, ...]
    updates: tuple[Update, ...]
    log_variances: tuple[float, float] | None = None
    time: float | None = None

    @property
    def chosen(self) -> Choice:
        """The choice of a step that is not open."""
        assert self.choice is not None, "the program's choices are open"
        return self.choice

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
        steps: from large t to small.
        process: the process that it was compiled for; None where that is not known.
        format: version of this form.

    Raises:
        UsageError: there is no step, a buffer is read before it is written, a reserved
            buffer is written, a forecast comes after too few evaluations, or a figure is
            not finite.
    """

    solver: str
    initial: float
    steps: tuple[Step, ...]
    process: Process | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "steps", tuple(self.steps))
        if self.format != FORMAT:
            raise _other_format(self.format)
        if not self.steps:
            raise _malformed("a program without steps", "at least one step")
        written = {"state"}
        for index, step in enumerate(self.steps):
            self._check_memory(index)
            for problem in _problems(step, written):
                raise _malformed(f"{problem} in step {index}", "a program that a solver made")
        if not abs(self.initial) < _LARGEST:
            raise _malformed(f"initial scale {self.initial}", "a finite number")

    def _check_memory(self, index: int) -> None:
        """Raise a UsageError unless enough steps made what step ``index`` extrapolates."""
        choice = self.steps[index].choice
        if choice is None or (memory := choice.memory) is None:
            return
        earlier = (step.choice for step in reversed(self.steps[:index]))
        made = (each for each in earlier if each is None or each.makes(memory))  # open: it may
        if (count := sum(1 for _ in islice(made, choice.order + 1))) <= choice.order:
            raise UsageError(
                found=f"a program whose step {index} is {choice.text!r}, after {count} "
                f"evaluation{'s' * (count != 1)}",
                expected=f"at least {choice.order + 1} before it to extrapolate from",
                remedy="give exits to the largest times of the exit schedule"
                + (", or forecast with a lower order" if choice.order and count else ""),
            )

    def __repr__(self) -> str:
        """Solver, number of steps, and the choices, runs of equal ones told once."""
        names = ("open" if each is None else each.text for each in self.choices)
        runs = [(name, sum(1 for _ in run)) for name, run in groupby(names)]
        told = [name if count == 1 else f"{name} x {count}" for name, count in runs]
        if len(told) > _TOLD:
            told = [*told[: _TOLD - 1], "..."]
        return f"<Program {self.solver}, {len(self.steps)} steps: {', '.join(told)}>"

    def _repr_html_(self) -> str:
        """For notebooks: facts, and the blocks that run at each step."""
        bars = [
            (1.0, 0, f"step {index}, t = {step.timestep:g}: open")
            if step.choice is None
            else (
                1.0,
                step.choice.blocks,
                f"step {index}, t = {step.timestep:g}: {step.choice.text}",
            )
            for index, step in enumerate(self.steps, 1)
        ]
        full = max(blocks for _, blocks, _ in bars)
        facts = {"steps": len(self.steps), "buffers": ", ".join(self.buffers)}
        below = f"blocks at each step, of {full} (left: noise, right: data)"
        shown = bars_html(bars, full, below) if full else "its choices are open"
        return facts_html(f"Program {self.solver}", facts, shown)

    @property
    def choices(self) -> tuple[Choice | None, ...]:
        """The choice of each step, in order."""
        return tuple(step.choice for step in self.steps)

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that it writes, ``state`` first."""
        names = (update.into for step in self.steps for update in step.updates)
        return tuple(dict.fromkeys(("state", *names)))

    def with_schedule(self, schedule: ExitSchedule, timesteps: int) -> Program:
        """This program with a schedule's choices; see :meth:`with_choices`, ``timesteps`` is T."""
        return self.with_choices(lambda time: schedule.choice_at(time, timesteps))

    def with_choices(self, choice_at: Callable[[float], Choice | None]) -> Program:
        """This program with other choices.

        Args:
            choice_at: the choice for a time t within [0, T); None leaves it open.

        Raises:
            UsageError: a step would read what none before it wrote.
        """
        steps = (msgspec.structs.replace(s, choice=choice_at(s.moment)) for s in self.steps)
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
            if (found := from_json(data, _Header).format) != FORMAT:
                raise _other_format(found)
            return from_json(data, cls)
        except MalformedError as error:
            raise _malformed(f"JSON that is no program ({error})", "Program.to_json()") from error


class _Header(msgspec.Struct):
    format: int = FORMAT


def _other_format(found: int) -> UsageError:
    return _malformed(f"a program of format {found}", f"format {FORMAT}")


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
