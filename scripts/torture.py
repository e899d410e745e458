"""Tries to break eecompile, trial by trial, each from its seed; torture.json says what happened."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from results import OUT, Results, Row, console, main, print_table
from torture_trial import Outcome

PARTS = ("files", "kills", "load", "disks", "surroundings")
"""Each is a module torture_PART: TRIALS and SMALL, how many trials there are; ``prepare(work)``,
which makes what trials use, once; and ``trial(work, number, seed)``, one of them."""


def torture(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}.")] = None,
    small: Annotated[bool, typer.Option("--small", help="The short form, as in CI.")] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Of each part.")] = None,
    only: Annotated[list[int] | None, typer.Option(help="Numbers, to repeat trials.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    work: Annotated[Path, typer.Option(help="Folder of what is made.")] = OUT.parent / "torture",
    output: Annotated[Path | None, typer.Option(help="JSON.")] = None,
) -> None:
    """Trials that must end as they would without harm, or in a typed error.

    What was done stays in the work folder: a run that was stopped goes on where it was.
    """
    unknown = sorted(set(parts or ()) - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    results = Results(output, "torture")
    faults: list[Row] = []
    for part in parts or PARTS:
        module = import_module(f"torture_{part}")
        count = trials or (module.SMALL if small else module.TRIALS)
        folder = work.resolve() / part
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        module.prepare(folder)
        outcomes = _run(part, folder, only or range(count), seed, jobs, again=bool(only))
        row = {"part": part, "trials": len(outcomes), "faults": sum(map(_bad, outcomes))}
        results.keep(part, row | _summary(outcomes) | {"minutes": _minutes(began, outcomes)})
        faults += [{"part": part} | msgspec.to_builtins(each) for each in outcomes if _bad(each)]
        print_table(part, [row])
    for fault in faults:
        console().print(fault, markup=False, highlight=False)
    print(f"written: {results.output}")
    if faults:
        sys.exit(f"error: {len(faults)} faults")


def _run(
    part: str, folder: Path, numbers: Sequence[int], seed: int, jobs: int, *, again: bool
) -> list[Outcome]:
    """The outcomes of trials, those of an earlier run included."""
    kept = folder.parent / f"{part}-{seed}.jsonl"
    done = {} if again else {each.number: each for each in _read(kept)}
    left = [number for number in numbers if number not in done]
    step = max(1, len(numbers) // 20)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as processors
    with kept.open("ab") as log, get_context("spawn").Pool(min(jobs, len(left)) or 1) as pool:
        one = partial(_trial, part, folder, seed)
        for count, outcome in enumerate(pool.imap_unordered(one, left), 1):
            done[outcome.number] = outcome
            log.write(msgspec.json.encode(outcome) + b"\n")
            log.flush()
            if count % step == 0:
                print(f"{part}: {count} of {len(left)}", file=sys.stderr)
    return [done[number] for number in sorted(set(numbers) & set(done))]


def _trial(part: str, folder: Path, seed: int, number: int) -> Outcome:
    return import_module(f"torture_{part}").trial(folder, number, seed)


def _read(kept: Path) -> Iterator[Outcome]:
    """Whole lines; the last one of a run that was killed may not be."""
    for line in kept.read_bytes().splitlines() if kept.exists() else ():
        try:
            yield msgspec.json.decode(line, type=Outcome)
        except msgspec.DecodeError:
            continue


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How many trials of each kind ended how."""
    counts = Counter((each.kind, each.ended) for each in outcomes)
    rows = [{"kind": k, "ended": e, "trials": n} for (k, e), n in sorted(counts.items())]
    return {"rows": rows}


def _bad(outcome: Outcome) -> bool:
    return bool(outcome.fault)


def _minutes(began: float, outcomes: Sequence[Outcome]) -> float:
    """Of this run, or of all processes together where most was done in an earlier one."""
    taken = sum(outcome.seconds for outcome in outcomes) / (os.cpu_count() or 1)
    return max(time.perf_counter() - began, taken) / 60


if __name__ == "__main__":
    main(partial(typer.run, torture))
