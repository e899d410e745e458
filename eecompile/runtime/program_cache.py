"""Programs for one network: compiled, checked, and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from eecompile.errors import EecompileError, ScheduleError, UsageError
from eecompile.programs.choice import Choice, check_choices
from eecompile.programs.interface import Interface
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.programs.solvers import Solver, solver_named
from eecompile.runtime.request import whole
from eecompile.runtime.trajectory.plan import Member
from eecompile.runtime.trajectory.spans import check_spans

Schedule = str | int | Choice | Sequence[Choice | int | str] | ExitSchedule
"""What callers may give for an exit schedule; see :meth:`ProgramCache.schedule`."""
_KEPT = 32  # programs


class ProgramCache:
    """Compiles solvers for a network, once each. May be used from several threads."""

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._lock = Lock()
        self._compiled = lru_cache(_KEPT)(self._named)
        self._equal: OrderedDict[Program, Program] = OrderedDict()
        self._seen: OrderedDict[int, tuple[Program, Program]] = OrderedDict()

    def schedule(self, schedule: Schedule | None) -> ExitSchedule:
        """See :meth:`eecompile.runtime.sampler.Sampler.schedule`."""
        chosen = self._interface.sampling.schedule if schedule is None else schedule
        if isinstance(chosen, str):
            known = self._interface.schedules
            if chosen not in known:
                raise ScheduleError(
                    found=f"exit schedule {chosen!r}",
                    expected=f"one of {sorted(known)}",
                    remedy="choose one of these, or give its depths",
                )
            chosen = known[chosen]
        elif isinstance(chosen, int | np.integer):
            chosen = ExitSchedule.constant(int(chosen))
        elif isinstance(chosen, Choice):
            chosen = ExitSchedule.constant(chosen)
        elif not isinstance(chosen, ExitSchedule):
            chosen = ExitSchedule.from_slices(chosen)
        return chosen.check(self._interface.exits, self._interface.cuts)

    def program(
        self,
        solver: str | Solver | Program | None,
        steps: int | None,
        schedule: Schedule | None,
    ) -> Program:
        """See :meth:`eecompile.runtime.sampler.Sampler.program`."""
        if isinstance(solver, Program):
            return self._checked(solver, steps, schedule)
        defaults = self._interface.sampling
        count = defaults.steps if steps is None else whole("steps", steps)
        name = defaults.solver if solver is None else solver
        if schedule is None:
            schedule = self._interface.default_schedule(name, count)
        exits = self.schedule(schedule)
        if not isinstance(name, str):
            return self._made(name, name, count, exits)
        return self._compiled(name, count, exits)

    def one_of_equals(self, program: Program, engine: Member, engines: Sequence[str]) -> Program:
        """The one of all equal programs that is used here, when it can be run.

        A program is large: to hash it takes as long as several steps.

        Raises:
            UsageError: the program names an engine set that is not among ``engines``, the
                names of those that are open, or skips blocks that ``engine`` cannot skip.
        """
        with self._lock:
            if (known := self._seen.get(id(program))) is not None:
                return known[1]  # what is kept keeps its id
        _check_engines(program, engines)
        check_spans(program, engine)
        with self._lock:
            chosen = self._equal.setdefault(program, program)
            self._seen[id(program)] = program, chosen
            _shorten(self._equal)
            _shorten(self._seen)
        return chosen

    def _named(self, name: str, steps: int, exits: ExitSchedule) -> Program:
        return self._made(solver_named(name), name, steps, exits)

    def _made(self, solver: Solver, name: object, steps: int, exits: ExitSchedule) -> Program:
        """The program of a solver; wrong types of its options are the caller's fault."""
        interface = self._interface
        process = interface.process
        clip = interface.state.range if interface.sampling.clip else None
        try:
            program = solver(
                process, steps, lambda time: exits.choice_at(time, process.timesteps), clip=clip
            )
            if not isinstance(program, Program):
                raise TypeError(f"it returned {type(program).__name__}")
        except EecompileError:
            raise
        except Exception as error:  # of anybody's function
            raise UsageError(
                found=f"solver {str(name)[:100]!r} that makes no program ({error})",
                expected="a solver, and options that it takes",
                remedy="docs/solvers.md lists both",
            ) from error
        return program

    def _checked(self, program: Program, steps: int | None, schedule: Schedule | None) -> Program:
        """A program that the caller brought, with its open choices made."""
        if steps is None and schedule is None and id(program) in self._seen:
            return program
        interface = self._interface
        is_open = None in program.choices
        if steps is not None or (schedule is not None and not is_open):
            raise UsageError(
                found="a program together with steps or a schedule",
                expected="a program alone, which contains both",
                remedy="give a solver instead, or drop steps and schedule",
            )
        if is_open:
            default = interface.default_schedule(program.solver, len(program.steps))
            exits = self.schedule(default if schedule is None else schedule)
            program = program.with_schedule(exits, interface.process.timesteps)
        check_choices(program.choices, interface.exits, interface.cuts)
        learned = any(step.log_variances for step in program.steps)
        if learned and "variance" not in interface.outputs:
            raise UsageError(
                found="a program that reads a learned variance",
                expected=f"one for a network that gives {list(interface.outputs)}",
                remedy="compile the program for this network's process",
            )
        if program.process is not None:
            _check_process(program.process, interface.process)
        return program


def _shorten(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) > _KEPT:
        kept.popitem(last=False)


def _check_engines(program: Program, engines: Sequence[str]) -> None:
    """Pass when every engine set that a program names is open."""
    for name in sorted({step.chosen.engine for step in program.steps} - {"", *engines}):
        known = ", ".join(engines)
        raise UsageError(
            found=f"engine set {name!r} in the exit schedule",
            expected=f"one that is open: {known}" if known else "none: only one is open",
            remedy="open that engine set too, or choose a schedule without it",
        )


def _check_process(made: Process, wanted: Process) -> None:
    """Pass when a program made for one process suits another: their states are alike."""
    if made == wanted:
        return
    for name, found, expected in (
        ("family", made.family, wanted.family),
        ("prediction", made.prediction, wanted.prediction),
        ("timesteps", made.timesteps, wanted.timesteps),
    ):
        if found != expected:
            raise _other_process(f"{name} {found}", f"{name} {expected}")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        one, other = made.at(share * made.timesteps), wanted.at(share * wanted.timesteps)
        alike = np.allclose(one[1:], other[1:], rtol=1e-4, atol=1e-7)
        if not alike or not np.isclose(made.input_scale(one), wanted.input_scale(other)):
            raise _other_process("other betas, sigmas or time scale", "the network's own")


def _other_process(found: str, expected: str) -> UsageError:
    return UsageError(
        found=f"a program made for a process with {found}",
        expected=expected,
        remedy="compile the program for this network's process",
    )
