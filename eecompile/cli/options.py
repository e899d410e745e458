"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Bundle = Annotated[Path, typer.Argument(help="Bundle that 'eecompile export' wrote.")]
Engines = Annotated[Path, typer.Argument(help="Engine set that 'eecompile build' wrote.")]
MoreEngines = Annotated[
    list[Path] | None,
    typer.Option(
        "--engines", help="A further engine set of the same network, for schedules to name."
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace any bundle or engine set at the output.")
]
Solver = Annotated[
    str | None,
    typer.Option(
        help="Such as ddim, dpmpp-2m or unipc (docs/solvers.md has all, and a wrong name lists "
        "them); with options ddim:eta=0.5,grid=karras; default the recipe's."
    ),
]
Steps = Annotated[int | None, typer.Option(help="Number of steps, 1 to T; default the recipe's.")]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="A name, a depth, depths (12,9,6,3), 12:0.2,6:0.5,3 (fractions of T), or "
        "a schedule's file (.json); 'again' for the last prediction once more, 'forecast1' or "
        "'forecast2' for one extrapolated from the last two or three."
    ),
]
Seed = Annotated[int, typer.Option(help="Same seed, same samples.")]
Guidance = Annotated[
    float | None, typer.Option(help="Guidance scale; 1 is none; default the recipe's.")
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(metavar="LOW,HIGH", help="Times t between which guidance acts."),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A condition: a number, @FILE.npy, or a list such as [0,3]: one value for each "
        "sample, repeated in turn where there are more samples.",
    ),
]
Nulls = Annotated[
    list[str] | None,
    typer.Option(
        "--null",
        metavar="NAME=VALUE",
        help='For guidance: what stands for "no condition"; as --set.',
    ),
]
Shape = Annotated[
    str | None, typer.Option(help="Shape of a sample, such as 4,96,64, if it may vary.")
]
Threads = Annotated[int | None, typer.Option(help="Threads; 0 for all cores.")]
