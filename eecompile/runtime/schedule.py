"""Exit schedules: which depth runs at which timestep."""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import msgspec

from eecompile.errors import ScheduleError

__all__ = ["ExitSchedule"]


class ExitSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A depth for every timestep, constant between thresholds.

    Attributes:
        depths: the depth of each slice of time; slice 0 holds t = 0 (data).
        thresholds: where slice i ends and slice i + 1 begins, as fractions of T,
            ascending within (0, 1); one fewer than ``depths``. Timestep t lies in the
            first slice whose threshold exceeds t / T.

    Raises:
        ScheduleError: the lengths differ, a threshold is out of order, or a depth is
            not positive.
    """

    depths: tuple[int, ...]
    thresholds: tuple[float, ...] = ()

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
        if any(depth < 1 for depth in self.depths):
            raise ScheduleError(
                found=f"depths {list(self.depths)}",
                expected="positive depths",
                remedy="name the exits to run",
            )

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

        Raises:
            ScheduleError: the text has none of these forms.
        """
        entries = [entry.strip().partition(":") for entry in text.split(",")]
        try:
            depths = tuple(int(depth) for depth, _, _ in entries)
            ends = tuple(float(end) for _, colon, end in entries if colon)
        except ValueError:
            depths, ends = (), ()
        explicit = bool(ends) and not entries[-1][1] and len(ends) == len(entries) - 1
        if depths and explicit:
            return cls(depths, ends)
        if not depths or ends:
            raise ScheduleError(
                found=f"exit schedule {text!r}",
                expected="a name, a depth, depths such as 12,9,6,3, or 12:0.2,6:0.5,3",
                remedy="list the schedules' names with 'eecompile inspect'",
            )
        return cls.from_slices(depths)

    def depth_at(self, timestep: float, timesteps: int) -> int:
        """The depth for ``timestep``, out of ``timesteps`` (T) in all."""
        # Compared as timesteps, not as fractions, so that slice i of n starts exactly
        # at ceil(i * T / n) as in integer arithmetic; hence the rounding.
        ends = [round(threshold * timesteps, 9) for threshold in self.thresholds]
        return self.depths[bisect_right(ends, timestep)]

    def check(self, exits: Iterable[int]) -> ExitSchedule:
        """This schedule, when every depth in it is one of ``exits``.

        Raises:
            ScheduleError: a depth is no exit.
        """
        known = sorted(exits)
        for depth in self.depths:
            if depth not in known:
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
