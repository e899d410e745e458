"""What a step evaluates, as data.

A :data:`Choice` is one of a few frozen kinds. Everything but the lowering of a trajectory
treats them alike, by what they all say of themselves: their text, their cost, the exits and
engine sets that they need, what they make, and what they forecast from earlier steps.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from eecompile.errors import ScheduleError

OUTPUT = "output"
"""What every evaluation makes: the prediction, and the learned variance where there is one."""
HIGHEST = 2
"""The highest order of an extrapolation."""
_SPAN = re.compile(r"(\d{1,9})/(\d{1,9})-(\d{1,9}):(\d)", re.ASCII)


def _whole(value: object) -> int:
    """An integer of any library; -1 for what is none."""
    try:
        return -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return -1


def _order(value: object) -> int:
    """An order that an extrapolation may have."""
    order = _whole(value)
    if not 0 <= order <= HIGHEST:
        raise ScheduleError(
            found=f"a forecast of order {value!r}",
            expected=f"an order from 0 to {HIGHEST}",
            remedy="choose one of these",
        )
    return order


class _Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every kind of choice says of itself."""

    @property
    def memory(self) -> str | None:
        """What is extrapolated from the last ``order`` + 1 steps that made it; None for nothing."""
        return None

    @property
    def order(self) -> int:
        """Of the extrapolation, where there is one."""
        return 0

    def makes(self, memory: str) -> bool:
        """Whether later steps may extrapolate ``memory`` from this one."""
        return memory == OUTPUT and self.evaluates

    @property
    def text(self) -> str:
        """As in the text of a schedule; see :func:`choice_from_text`."""
        raise NotImplementedError

    @property
    def blocks(self) -> int:
        """Number of blocks that run."""
        return 0

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits that the network must have."""
        return (self.blocks,) if self.blocks else ()

    @property
    def cuts(self) -> tuple[int, ...]:
        """The cuts that the network must have: where a span starts and stops."""
        return ()

    @property
    def engine(self) -> str:
        """The engine set that evaluates, by its target's name; "" for the first that is open."""
        return ""

    @property
    def evaluates(self) -> bool:
        """Whether the network is evaluated."""
        return bool(self.exits)

    def cost(self, of_exit: Callable[[int], float]) -> float:
        """What the step costs.

        Args:
            of_exit: the cost of evaluating an exit, by its depth.
        """
        return sum(map(of_exit, self.exits))


class Exit(_Kind, frozen=True, tag="exit"):
    """The network is evaluated to an exit.

    Attributes:
        depth: the exit, 1 or more.
        engine: the engine set that evaluates, by its target's name, where several of one
            network are open; "" for the first of them.
    """

    depth: Annotated[int, Meta(ge=1)]
    engine: str = ""

    def __post_init__(self) -> None:
        depth = _whole(self.depth)
        if depth < 1 or not isinstance(self.engine, str):
            raise ScheduleError(
                found=f"depth {self.depth!r} of engine set {self.engine!r}"
                if self.engine
                else f"depth {self.depth!r} in an exit schedule",
                expected=f"a positive depth, or {_NO_EXITS} for a forecast",
                remedy="name the exits to run",
            )
        msgspec.structs.force_setattr(self, "depth", depth)

    @property
    def text(self) -> str:
        """The depth, and the engine set if one is named: ``12``, ``12@rtx-fp16``."""
        return f"{self.depth}@{self.engine}" if self.engine else str(self.depth)

    @property
    def blocks(self) -> int:
        """Number of blocks that run: the depth."""
        return self.depth

    def makes(self, memory: str) -> bool:
        """Its prediction, and what every span within its depth adds."""
        span = _span_of(memory)
        return span[1] <= self.depth if span else super().makes(memory)


class Forecast(_Kind, frozen=True, tag="forecast"):
    """The network is not evaluated: the prediction is extrapolated from earlier ones.

    Attributes:
        order: of the polynomial through the last ``order`` + 1 evaluated predictions, after
            guidance; 0 takes the last prediction again. See
            :func:`eecompile.programs.forecasts.forecasts`. A learned variance is always the
            last one.
    """

    order: Annotated[int, Meta(ge=0, le=HIGHEST)] = 0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "order", _order(self.order))

    @property
    def memory(self) -> str | None:
        """The prediction."""
        return OUTPUT

    @property
    def text(self) -> str:
        """``again`` for order 0, otherwise ``forecast1`` and so on."""
        return f"forecast{self.order}" if self.order else "again"


class Span(_Kind, frozen=True, tag="span"):
    """The network is evaluated to an exit without some of its blocks.

    What the blocks from ``start`` + 1 to ``stop`` would add to the hidden state is extrapolated
    from the last ``order`` + 1 times that they ran: from the differences between what left them
    and what entered them, and from what left them where nothing of its shape entered.

    Attributes:
        start: the cut after which blocks are skipped.
        stop: the cut from which blocks run again.
        order: of the polynomial, as in :class:`Forecast`.
        depth: the exit, ``stop`` or more.
        engine: as in :class:`Exit`.
    """

    start: Annotated[int, Meta(ge=0)]
    stop: Annotated[int, Meta(ge=1)]
    order: Annotated[int, Meta(ge=0, le=HIGHEST)]
    depth: Annotated[int, Meta(ge=1)]
    engine: str = ""

    def __post_init__(self) -> None:
        start, stop, depth = map(_whole, (self.start, self.stop, self.depth))
        if not 0 <= start < stop <= depth or not isinstance(self.engine, str):
            raise ScheduleError(
                found=f"a span of the blocks after {self.start!r} up to {self.stop!r}, with exit "
                f"{self.depth!r}",
                expected="ascending cuts from 0 to the exit",
                remedy="begin and end the span at cuts of the network, within the exit's depth",
            )
        given = {"start": start, "stop": stop, "depth": depth, "order": _order(self.order)}
        for name, value in given.items():
            msgspec.structs.force_setattr(self, name, value)

    @property
    def memory(self) -> str | None:
        """What the skipped blocks add: ``span 6-10``."""
        return f"span {self.start}-{self.stop}"

    @property
    def text(self) -> str:
        """The exit, the cuts and the order, and the engine set if one is named: ``12/6-10:1``."""
        named = f"@{self.engine}" if self.engine else ""
        return f"{self.depth}/{self.start}-{self.stop}:{self.order}{named}"

    @property
    def blocks(self) -> int:
        """Number of blocks that run."""
        return self.depth - (self.stop - self.start)

    @property
    def exits(self) -> tuple[int, ...]:
        """The exit."""
        return (self.depth,)

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where the span starts and stops."""
        return self.start, self.stop

    def makes(self, memory: str) -> bool:
        """Its prediction, and what every span adds of which it runs all blocks."""
        if (span := _span_of(memory)) is None:
            return super().makes(memory)
        return span[1] <= self.start or self.stop <= span[0] < span[1] <= self.depth

    def cost(self, of_exit: Callable[[int], float]) -> float:
        """The exit's, less the share of its blocks that are skipped."""
        return of_exit(self.depth) * self.blocks / self.depth


Choice = Exit | Forecast | Span
"""What a step evaluates."""
_FORECASTS = {each.text: each for each in map(Forecast, range(HIGHEST + 1))}
_NO_EXITS = " or ".join((", ".join(map(repr, [*_FORECASTS][:-1])), repr([*_FORECASTS][-1])))


def _span_of(memory: str) -> tuple[int, int] | None:
    """Where the span starts and stops whose addition ``memory`` is."""
    kind, _, cuts = memory.partition(" ")
    if kind != "span":
        return None
    start, _, stop = cuts.partition("-")
    return int(start), int(stop)


def choice_of(value: Choice | int | str) -> Choice:
    """A choice, given as itself, as an exit's depth, or as text.

    Raises:
        ScheduleError: it is none of these, or the text describes no choice.
    """
    if isinstance(value, _Kind):
        return value
    return choice_from_text(value) if isinstance(value, str) else Exit(value)


def choice_from_text(text: str) -> Choice:
    """The choice that a choice's text describes.

    Raises:
        ScheduleError: the text describes none.
    """
    if text.strip() in _FORECASTS:
        return _FORECASTS[text.strip()]
    depth, at, engine = (part.strip() for part in text.partition("@"))
    if bool(at) == bool(engine):
        if depth.isascii() and depth.isdigit() and len(depth) < 10 and int(depth):
            return Exit(int(depth), engine)
        if span := _SPAN.fullmatch(depth):
            last, start, stop, highest = map(int, span.groups())
            return Span(start, stop, highest, last, engine)
    raise ScheduleError(
        found=f"{text.strip()!r} in an exit schedule",
        expected="an exit's depth such as 12, one of an engine set such as 12@cpu, "
        f"{_NO_EXITS} for a forecast, or 12/6-9:1 for exit 12 with blocks 7 to 9 forecast",
        remedy="name the exits to run",
    )


def is_span(text: str) -> bool:
    """Whether a text has the form of a span's, whatever its numbers."""
    return _SPAN.fullmatch(text.partition("@")[0].strip()) is not None


def check_choices(
    choices: Iterable[Choice | None], exits: Iterable[int], cuts: Iterable[int] = ()
) -> None:
    """Raise ScheduleError unless a network has every exit and every cut that choices need."""
    known_exits, known_cuts = sorted(exits), sorted(cuts)
    for choice in dict.fromkeys(choices):
        if choice is None:
            continue
        for depth in choice.exits:
            if depth not in known_exits:
                raise ScheduleError(
                    found=f"depth {depth} in an exit schedule",
                    expected=f"one of the exits {known_exits}",
                    remedy="use these exits, or export the network with that one too",
                )
        for cut in choice.cuts:
            if cut not in known_cuts:
                raise ScheduleError(
                    found=f"{choice.text!r} in an exit schedule, which needs a cut at {cut}",
                    expected=f"one of the cuts {known_cuts}"
                    if known_cuts
                    else "no spans: the network has no cuts",
                    remedy=("let spans begin and end at these, or " if known_cuts else "")
                    + "name the cut in the recipe's network.cuts, then export and build again",
                )
