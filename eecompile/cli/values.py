"""What the texts of options stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eecompile.decoding import MalformedError, from_json, from_npy
from eecompile.errors import UsageError
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule, schedule_from_text
from eecompile.runtime.request import SampleRequest


def numbers_of(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers, of ``3,6,12``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            found=f"{option} {text}",
            expected="whole numbers separated by commas",
            remedy=f"for example {option} 3,6,12",
        ) from error


def request_of(
    seed: int,
    guidance: float | None,
    interval: str | None,
    conditions: Sequence[str] | None,
    nulls: Sequence[str] | None,
    shape: str | None,
    n: int = 1,
) -> SampleRequest:
    """Which samples the options of a command ask for."""
    return SampleRequest(
        n=n,
        seed=seed,
        guidance=guidance,
        guidance_interval=_interval(interval),
        conditions=_conditions("--set", conditions),
        nulls=_conditions("--null", nulls),
        shape=None if shape is None else numbers_of("--shape", shape),
    )


def _interval(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, _, high = text.partition(",")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise UsageError(
            found=f"--guidance-interval {text}",
            expected="two times, LOW,HIGH",
            remedy="for example --guidance-interval 100,800",
        ) from error


def program_of(path: Path, solver: str | None) -> Program:
    """The program in a file, which leaves nothing for ``--solver`` to choose."""
    if solver is not None:
        raise UsageError(
            found=f"--solver {solver} beside --program",
            expected="one of them: a program is a solver and its steps",
            remedy="drop either",
        )
    return Program.from_json(path.read_bytes())


def schedule_of(text: str | None, interface: Interface) -> ExitSchedule | str | None:
    """An exit schedule of ``--schedule``: a name, depths, or a file."""
    return None if text is None else schedule_from_text(text, interface.schedules)


def schedules_of(
    texts: Sequence[str], interface: Interface
) -> list[tuple[str, ExitSchedule | str]]:
    """Exit schedules with their names in tables."""
    given = list(dict.fromkeys(texts))
    names = [Path(text).stem if text.endswith(".json") else text for text in given]
    return [(n, schedule_of(t, interface) or t) for n, t in zip(names, given, strict=True)]


def _conditions(option: str, settings: Sequence[str] | None) -> dict[str, Any]:
    conditions: dict[str, Any] = {}
    for setting in settings or ():
        name, _, text = setting.partition("=")
        if name in conditions:
            raise UsageError(
                found=f"{option} {name}=... twice",
                expected="each condition once",
                remedy="give a list of values, one for each sample",
            )
        try:
            if text.startswith("@"):
                conditions[name] = from_npy(Path(text[1:]))
            else:
                conditions[name] = from_json(text, float | int | list[Any])
        except (OSError, MalformedError) as error:
            raise UsageError(
                found=f"{option} {setting}",
                expected="NAME=VALUE, where VALUE is a number, a JSON list of numbers, or "
                "@FILE.npy",
                remedy=f"for example {option} label=3",
            ) from error
    return conditions
