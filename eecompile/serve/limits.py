"""What one request to a server may ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from eecompile.errors import UsageError
from eecompile.programs.interface import Interface
from eecompile.programs.schedule import ExitSchedule, schedule_from_text


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one request may ask for.

    Attributes:
        n: samples.
        steps: of the solver.
        numbers: of all its samples together.
        body: bytes that it may send.
        upload: seconds that it may take to send them.
        seconds: until it must be done, unless it says less.
        head_start: priority, in seconds.
    """

    n: int = 64
    steps: int = 1000
    numbers: int = 2**26
    body: int = 16 * 2**20
    upload: float = 30.0
    seconds: float = 600.0
    head_start: float = 60.0

    def check(
        self,
        *,
        n: int,
        shape: Sequence[int],
        steps: int | None = None,
        priority: float = 0.0,
        deadline: float | None = None,
    ) -> None:
        """Pass when a request asks for no more than it may.

        Args:
            n: samples.
            shape: of each.
            steps: of the solver; None for the recipe's.
            priority: seconds of head start.
            deadline: seconds.

        Raises:
            UsageError: it asks for more.
        """
        for what, value, most in (
            ("n", n, self.n),
            ("steps", steps or 0, self.steps),
            (
                "samples of so many numbers:",
                n * math.prod(max(1, each) for each in shape),
                self.numbers,
            ),
            ("priority", abs(priority), self.head_start),
            ("deadline", deadline or 0, self.seconds),
        ):
            if value > most:
                raise UsageError(
                    found=f"{what} {value:g}" if isinstance(value, float) else f"{what} {value}",
                    expected=f"at most {most:g}" if isinstance(most, float) else f"at most {most}",
                    remedy="ask for less, or in several requests",
                )


def schedule_asked(text: str, interface: Interface) -> ExitSchedule | str:
    """A schedule that a caller names or spells out: a name, a depth, or choices; never a file.

    Raises:
        UsageError: it is a file.
        ScheduleError: it cannot be read.
    """
    if text.endswith(".json"):
        raise UsageError(
            found=f"schedule {text[:200]!r}",
            expected="a name, a depth, or choices",
            remedy="write the choices out",
        )
    return schedule_from_text(text, interface.schedules)
