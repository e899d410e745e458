"""Exit schedules: what is evaluated at which timestep, and on which engine set."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from eecompile.decoding import from_json
from eecompile.errors import ScheduleError
from eecompile.notebook import bars_html, facts_html
from eecompile.programs.choice import (
    Choice,
    Forecast,
    check_choices,
    choice_from_text,
    choice_of,
    is_span,
)

_FORMAT = 2  # of a schedule's file
_TOLD = 80  # characters of a schedule that a notebook shows above its bars


class ExitSchedule(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A choice for every timestep, constant between thresholds.

    Attributes:
        choices: of each slice of time; slice 0 holds t = 0 (data). A depth or a text is
            taken for the choice that it stands for. The last slice, with which sampling
            begins, must extrapolate nothing from earlier steps.
        thresholds: where slice i ends and slice i + 1 begins, as fractions of T,
            ascending within (0, 1); one fewer than ``choices``. Timestep t lies in the
            first slice whose threshold exceeds t / T.

    Raises:
        ScheduleError: the lengths differ, a threshold is out of order, or a choice is none.
    """

    choices: tuple[Choice, ...]
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        try:
            choices = _choices(self.choices)
            thresholds = tuple(float(threshold) for threshold in self.thresholds)
        except (TypeError, ValueError, OverflowError) as error:
            raise ScheduleError(
                found=f"choices {self.choices!r} and thresholds {self.thresholds!r}",
                expected="exits' depths, and fractions of T",
                remedy="name the exits to run, and where each slice of time ends",
            ) from error
        msgspec.structs.force_setattr(self, "choices", choices)
        msgspec.structs.force_setattr(self, "thresholds", thresholds)
        if len(choices) != len(thresholds) + 1:
            raise ScheduleError(
                found=f"{len(choices)} choices and {len(thresholds)} thresholds",
                expected="one choice more than thresholds",
                remedy="give a choice for each slice of time",
            )
        bounds = (0.0, *thresholds, 1.0)
        for low, high in pairwise(bounds):
            if not (math.isfinite(high) and low < high):
                raise ScheduleError(
                    found=f"thresholds {list(thresholds)}",
                    expected="ascending fractions of T between 0 and 1",
                    remedy="divide the timesteps where the choice changes by T",
                )
        if choices[-1].memory is not None:
            raise ScheduleError(
                found=f"exit schedule {self.text!r}",
                expected="an exit in the last slice, with which sampling begins: there is "
                "nothing to extrapolate from yet",
                remedy="name the exit to begin with",
            )

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits that it needs, in order, each once."""
        return tuple(dict.fromkeys(d for choice in self.choices for d in choice.exits))

    @property
    def text(self) -> str:
        """As :meth:`parse` reads it, with explicit thresholds to six digits."""
        ends = (*(f":{threshold:g}" for threshold in self.thresholds), "")
        return ",".join(c.text + end for c, end in zip(self.choices, ends, strict=True))

    def __repr__(self) -> str:
        """As :meth:`parse` reads it."""
        return f"<ExitSchedule {self.text}>"

    def _repr_html_(self) -> str:
        """For notebooks: the blocks that run over time."""
        bounds = (0.0, *self.thresholds, 1.0)
        bars = [
            (high - low, choice.blocks, f"t from {low:g} T to {high:g} T: {choice.text}")
            for choice, (low, high) in zip(self.choices, pairwise(bounds), strict=True)
        ]
        full = max(blocks for _, blocks, _ in bars)
        below = f"blocks over time, of {full} (left: noise at T, right: data at 0)"
        told = self.text if len(self.text) <= _TOLD else f"{self.text[: _TOLD - 1]}…"
        return facts_html(f"Exit schedule {told}", {}, bars_html(bars[::-1], full, below))

    @classmethod
    def constant(cls, choice: Choice | int) -> ExitSchedule:
        """The same choice at every timestep."""
        return cls((choice_of(choice),))

    @classmethod
    def from_slices(cls, choices: Sequence[Choice | int | str]) -> ExitSchedule:
        """One choice per slice, over equal slices of [0, T), t = 0 first.

        The form in which the ASE paper (arXiv 2408.05927) and its code give schedules.
        """
        try:
            given = _choices(choices)
        except TypeError as error:
            raise ScheduleError(
                found=f"exit schedule {choices!r}",
                expected="a choice for each slice of time",
                remedy="name the exits to run",
            ) from error
        count = len(given)
        return cls(given, tuple(index / count for index in range(1, count)))

    @classmethod
    def parse(cls, text: str) -> ExitSchedule:
        """The schedule in a line of text.

        ``6``: that depth at every timestep. ``12,9,6,3``: depths over equal slices of
        time, t = 0 first. ``12:0.2,6:0.5,3``: each depth up to a fraction of T.
        ``12@gpu-fp32,6``: a depth of the engine set for the target ``gpu-fp32``.
        ``12,again,6``: the last prediction once more; ``12,forecast1,6``: the prediction
        extrapolated from the last two (``forecast2``: three); ``12,12/6-9:1``: exit 12 with what
        blocks 7 to 9 add extrapolated likewise. A name that ends in ``.json``: the schedule in
        that file; see :meth:`read`.

        Raises:
            ScheduleError: the text has none of these forms.
        """
        if text.endswith(".json"):
            return cls.read(text)
        entries = [_parted(entry.strip()) for entry in text.split(",")]
        try:
            choices = tuple(choice_from_text(choice) for choice, _ in entries)
            ends = tuple(float(end) for _, end in entries if end is not None)
        except (ScheduleError, ValueError) as error:
            if isinstance(error, ScheduleError) and any(map(is_span, (c for c, _ in entries))):
                raise  # which says more of the span
            raise _unread(text) from error
        if not ends:
            return cls.from_slices(choices)
        if entries[-1][1] is not None or len(ends) != len(entries) - 1:
            raise _unread(text)
        return cls(choices, ends)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> ExitSchedule:
        """The schedule in a file that :meth:`to_json` made, such as one of ``eecompile tune``.

        Raises:
            ScheduleError: the file is missing, or holds no schedule.
        """
        try:
            data = Path(path).read_bytes()
            found = from_json(data, _Header).format
            if found != _FORMAT:
                raise ValueError(f"its format is {found}, not {_FORMAT}")
            return from_json(data, _File).schedule
        except (OSError, ValueError, ScheduleError) as error:
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

    def choice_at(self, timestep: float, timesteps: int) -> Choice:
        """The choice for ``timestep``, out of ``timesteps`` (T) in all."""
        return self.choices[self._slice(timestep, timesteps)]

    def _slice(self, timestep: float, timesteps: int) -> int:
        # Compared as timesteps, not as fractions, so that slice i of n starts exactly
        # at ceil(i * T / n) as in integer arithmetic; hence the rounding.
        ends = [round(threshold * timesteps, 9) for threshold in self.thresholds]
        return bisect_right(ends, timestep)

    def check(self, exits: Iterable[int], cuts: Iterable[int] = ()) -> ExitSchedule:
        """This schedule, when ``exits`` and ``cuts`` are all that it needs.

        Raises:
            ScheduleError: a depth is no exit, or a span begins or ends at no cut.
        """
        check_choices(self.choices, exits, cuts)
        return self

    def mean(self, cost: Callable[[Choice], float]) -> float:
        """The mean over time of ``cost``, a function of the choice."""
        bounds = (0.0, *self.thresholds, 1.0)
        widths = (high - low for low, high in pairwise(bounds))
        return sum(w * cost(c) for w, c in zip(widths, self.choices, strict=True))


def _choices(given: Iterable[Choice | int | str]) -> tuple[Choice, ...]:
    if isinstance(given, str):
        raise TypeError("a text instead of choices")
    return tuple(map(choice_of, given))


def _parted(entry: str) -> tuple[str, str | None]:
    """A choice's text, and where its slice ends, if that is said; a span's text has a colon."""
    choice, colon, end = entry.rpartition(":")
    if not colon or ("/" in entry and entry.count(":") < 2):
        return entry, None
    return choice, end


def schedule_from_text(text: str, names: Container[str]) -> ExitSchedule | str:
    """A schedule's name, or the schedule that a text spells out; see :meth:`ExitSchedule.parse`.

    Args:
        text: of either.
        names: that are known; another word is taken for an unknown one, to be refused later.
    """
    word = text != Forecast().text and text.replace("_", "").replace("-", "").isalpha()
    return text if word or text in names else ExitSchedule.parse(text)


def _unread(text: str) -> ScheduleError:
    return ScheduleError(
        found=f"exit schedule {text!r}",
        expected="a name, a depth, depths such as 12,9,6,3 or 12:0.2,6:0.5,3 (with 12@cpu for a "
        "depth of one engine set, 'again' for the last prediction once more, 'forecast1' or "
        "'forecast2' for one extrapolated from the last two or three, 12/6-9:1 for exit 12 with "
        "blocks 7 to 9 forecast), or a schedule's file (.json)",
        remedy="list the schedules' names with 'eecompile inspect'",
    )


class _Header(msgspec.Struct):
    format: int


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A schedule's file."""

    format: int
    schedule: ExitSchedule
    about: dict[str, Any] = {}
