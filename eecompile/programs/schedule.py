"""Exit schedules: which depth runs at which timestep, and on which engine set."""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from eecompile.errors import ScheduleError

__all__ = ["REUSE", "ExitSchedule"]

REUSE = 0
"""The depth at which no block runs: the network's previous output is used again."""
_FORMAT = 1  # of a schedule's file


class ExitSchedule(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A depth for every timestep, constant between thresholds.

    Attributes:
        depths: the depth of each slice of time; slice 0 holds t = 0 (data). 0
            (:data:`REUSE`) where the previous output is used again; not in the last
            slice, with which sampling begins.
        thresholds: where slice i ends and slice i + 1 begins, as fractions of T,
            ascending within (0, 1); one fewer than ``depths``. Timestep t lies in the
            first slice whose threshold exceeds t / T.
        engines: for each slice the engine set, by its target's name, where several of
            one network are open; "" is the first of them, as is leaving them all out.

    Raises:
        ScheduleError: the lengths differ, a threshold is out of order, or a depth is
            negative.
    """

    depths: tuple[int, ...]
    thresholds: tuple[float, ...] = ()
    engines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            depths = tuple(operator.index(depth) for depth in self.depths)
            thresholds = tuple(float(threshold) for threshold in self.thresholds)
        except (TypeError, ValueError, OverflowError) as error:
            raise ScheduleError(
                found=f"depths {self.depths!r} and thresholds {self.thresholds!r}",
                expected="whole numbers, and fractions of T",
                remedy="name the exits to run, and where each slice of time ends",
            ) from error
        msgspec.structs.force_setattr(self, "depths", depths)
        msgspec.structs.force_setattr(self, "thresholds", thresholds)
        if len(self.depths) != len(self.thresholds) + 1:
            raise ScheduleError(
                found=f"{len(self.depths)} depths and {len(self.thresholds)} thresholds",
                expected="one depth more than thresholds",
                remedy="give a depth for each slice of time",
            )
        bounds = (0.0, *self.thresholds, 1.0)
        for low, high in pairwise(bounds):
            if not (math.isfinite(high) and low < high):
                raise ScheduleError(
                    found=f"thresholds {list(self.thresholds)}",
                    expected="ascending fractions of T between 0 and 1",
                    remedy="divide the timesteps where the depth changes by T",
                )
        if any(depth < 0 for depth in self.depths):
            raise ScheduleError(
                found=f"depths {list(self.depths)}",
                expected="positive depths, or 0 for the previous output once more",
                remedy="name the exits to run",
            )
        if self.depths[-1] == REUSE:
            raise ScheduleError(
                found=f"depths {list(self.depths)}",
                expected="an exit in the last slice, with which sampling begins: there is "
                "no previous output yet",
                remedy="name the exit to begin with",
            )
        self._check_engines()

    def _check_engines(self) -> None:
        engines = self.engines
        if isinstance(engines, str) or not all(isinstance(name, str) for name in engines):
            engines = ("",) * (len(self.depths) + 1)
        if engines and len(engines) != len(self.depths):
            raise ScheduleError(
                found=f"{len(self.depths)} depths and engines {self.engines!r}",
                expected="the name of an engine set for each depth, or none at all",
                remedy='give as many names as depths; "" is the engine set opened first',
            )
        msgspec.structs.force_setattr(self, "engines", tuple(engines) if any(engines) else ())

    @classmethod
    def constant(cls, depth: int) -> ExitSchedule:
        """The same depth at every timestep."""
        return cls((depth,))

    @classmethod
    def from_slices(cls, depths: Sequence[int]) -> ExitSchedule:
        """One depth a slice, over equal slices of [0, T), t = 0 first.

        The form in which the ASE paper (arXiv 2408.05927) and its code give schedules.
        """
        try:
            whole = tuple(operator.index(depth) for depth in depths)
        except TypeError as error:
            raise ScheduleError(
                found=f"exit schedule {depths!r}",
                expected="whole numbers, a depth for each slice of time",
                remedy="name the exits to run",
            ) from error
        count = len(whole)
        return cls(whole, tuple(index / count for index in range(1, count)))

    @classmethod
    def parse(cls, text: str) -> ExitSchedule:
        """The schedule in a line of text.

        ``6``: that depth at every timestep. ``12,9,6,3``: depths over equal slices of
        time, t = 0 first. ``12:0.2,6:0.5,3``: each depth up to a fraction of T.
        ``12@gpu-fp32,6``: a depth of the engine set for the target ``gpu-fp32``. A name
        that ends in ``.json``: the schedule in that file; see :meth:`read`.

        Raises:
            ScheduleError: the text has none of these forms.
        """
        if text.endswith(".json"):
            return cls.read(text)
        entries = [entry.strip().partition(":") for entry in text.split(",")]
        choices = [choice.partition("@") for choice, _, _ in entries]
        engines = tuple(name.strip() for _, _, name in choices)
        try:
            depths = tuple(int(depth) for depth, _, _ in choices)
            ends = tuple(float(end) for _, colon, end in entries if colon)
        except ValueError:
            depths, ends = (), ()
        explicit = bool(ends) and not entries[-1][1] and len(ends) == len(entries) - 1
        if depths and explicit:
            return cls(depths, ends, engines)
        unnamed = any(at and not name.strip() for _, at, name in choices)
        if not depths or ends or unnamed:
            raise ScheduleError(
                found=f"exit schedule {text!r}",
                expected="a name, a depth, depths such as 12,9,6,3, or 12:0.2,6:0.5,3, each "
                "with an engine set as in 12@cpu, or a schedule's file (.json)",
                remedy="list the schedules' names with 'eecompile inspect'",
            )
        return msgspec.structs.replace(cls.from_slices(depths), engines=engines)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> ExitSchedule:
        """The schedule in a file that :meth:`to_json` made, such as one of ``eecompile tune``.

        Raises:
            ScheduleError: the file is missing, or holds no schedule.
        """
        try:
            found = msgspec.json.decode(Path(path).read_bytes(), type=_File)
            if found.format != _FORMAT:
                raise ValueError(f"its format is {found.format}, not {_FORMAT}")
            return found.schedule
        except (OSError, ValueError, RecursionError, ScheduleError) as error:
            raise ScheduleError(
                found=f"{path}, which is no exit schedule ({error})",
                expected="a file that 'eecompile tune' or ExitSchedule.to_json wrote",
                remedy="check the path, or write the file again",
            ) from error

    def to_json(self, **about: Any) -> bytes:
        """This schedule as a file's content.

        Args:
            about: what else it is to say, for people: how it was found, what it costs.
        """
        made = _File(format=_FORMAT, schedule=self, about=about)
        return msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"

    def depth_at(self, timestep: float, timesteps: int) -> int:
        """The depth for ``timestep``, out of ``timesteps`` (T) in all."""
        return self.depths[self._slice(timestep, timesteps)]

    def engine_at(self, timestep: float, timesteps: int) -> str:
        """The engine set for ``timestep``, by name; "" for the first that is open."""
        return self.engines[self._slice(timestep, timesteps)] if self.engines else ""

    def _slice(self, timestep: float, timesteps: int) -> int:
        # Compared as timesteps, not as fractions, so that slice i of n starts exactly
        # at ceil(i * T / n) as in integer arithmetic; hence the rounding.
        ends = [round(threshold * timesteps, 9) for threshold in self.thresholds]
        return bisect_right(ends, timestep)

    def check(self, exits: Iterable[int]) -> ExitSchedule:
        """This schedule, when every depth in it is one of ``exits``, or 0.

        Raises:
            ScheduleError: a depth is no exit.
        """
        known = sorted(exits)
        for depth in self.depths:
            if depth not in known and depth != REUSE:
                raise ScheduleError(
                    found=f"depth {depth} in an exit schedule",
                    expected=f"one of the exits {known}",
                    remedy="use these exits, or export the network with that one too",
                )
        return self

    def mean(self, cost: Callable[[int], float]) -> float:
        """The mean over time of ``cost``, a function of the depth."""
        bounds = (0.0, *self.thresholds, 1.0)
        widths = (high - low for low, high in pairwise(bounds))
        return sum(w * cost(d) for w, d in zip(widths, self.depths, strict=True))


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A schedule's file."""

    format: int
    schedule: ExitSchedule
    about: dict[str, Any] = {}
