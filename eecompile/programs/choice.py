"""What a step evaluates, as data.

A :data:`Choice` is one of a few frozen kinds. Everything but the lowering of a trajectory
treats them alike, by what they all say of themselves: their text, their cost, the exits and
engine sets that they need, what they make, and what they forecast from earlier steps.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from eecompile.errors import ScheduleError

OUTPUT = "output"
"""What every evaluation makes: the prediction, and the learned variance where there is one."""
HIGHEST = 2
"""The highest order of an extrapolation."""


def _whole(value: object) -> int:
    """An integer of any library; -1 for what is none."""
    try:
        return -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return -1


class _Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every kind of choice says of itself.

    Attributes:
        memory: what is extrapolated from the last ``order`` + 1 steps that made it; None for
            nothing.
    """

    memory: ClassVar[str | None] = None

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


class Forecast(_Kind, frozen=True, tag="forecast"):
    """The network is not evaluated: the prediction is extrapolated from earlier ones.

    Attributes:
        order: of the polynomial through the last ``order`` + 1 evaluated predictions, after
            guidance; 0 takes the last prediction again. See
            :func:`eecompile.programs.forecasts.forecasts`. A learned variance is always the
            last one.
    """

    memory = OUTPUT
    order: Annotated[int, Meta(ge=0, le=HIGHEST)] = 0

    def __post_init__(self) -> None:
        order = _whole(self.order)
        if not 0 <= order <= HIGHEST:
            raise ScheduleError(
                found=f"a forecast of order {self.order!r}",
                expected=f"an order from 0 to {HIGHEST}",
                remedy="choose one of these",
            )
        msgspec.structs.force_setattr(self, "order", order)

    @property
    def text(self) -> str:
        """``again`` for order 0, otherwise ``forecast1`` and so on."""
        return f"forecast{self.order}" if self.order else "again"


Choice = Exit | Forecast
"""What a step evaluates."""
_FORECASTS = {each.text: each for each in map(Forecast, range(HIGHEST + 1))}
_NO_EXITS = " or ".join((", ".join(map(repr, [*_FORECASTS][:-1])), repr([*_FORECASTS][-1])))


def choice_of(value: Choice | int | str) -> Choice:
    """A choice, given as itself, as an exit's depth, or as text.

    Raises:
        ScheduleError: it is none of these, or the text describes no choice.
    """
    if isinstance(value, _Kind):
        return value
    return choice_from_text(value) if isinstance(value, str) else Exit(value)


def choice_from_text(text: str) -> Choice:
    """The choice that :attr:`Exit.text` or :attr:`Forecast.text` describes.

    Raises:
        ScheduleError: the text describes none.
    """
    if text.strip() in _FORECASTS:
        return _FORECASTS[text.strip()]
    depth, at, engine = (part.strip() for part in text.partition("@"))
    digits = depth.isascii() and depth.isdigit() and len(depth) < 10
    if digits and int(depth) and bool(at) == bool(engine):
        return Exit(int(depth), engine)
    raise ScheduleError(
        found=f"{text.strip()!r} in an exit schedule",
        expected="an exit's depth such as 12, one of an engine set such as 12@cpu, "
        f"or {_NO_EXITS} for a forecast",
        remedy="name the exits to run",
    )


def check_exits(choices: Iterable[Choice | None], exits: Iterable[int]) -> None:
    """Raise ScheduleError unless every exit that the choices need is one of ``exits``."""
    known = sorted(exits)
    for choice in dict.fromkeys(choices):
        for depth in choice.exits if choice is not None else ():
            if depth not in known:
                raise ScheduleError(
                    found=f"depth {depth} in an exit schedule",
                    expected=f"one of the exits {known}",
                    remedy="use these exits, or export the network with that one too",
                )
