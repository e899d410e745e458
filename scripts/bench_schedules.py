"""Exit schedules by measurement, beside those that need no tuning."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from bundles import engine_set
from results import (
    OUT,
    RECIPE,
    Results,
    Row,
    cell,
    console,
    print_table,
    run_eecompile,
)

from eecompile import Sampler
from eecompile.compiler import bundle_from_recipe
from eecompile.tune.report import BaselineComparison, Front, FrontPoint, read_front

SOLVERS = (("ddim", 50), ("dpmpp-2m", 20))
USES = {"": "exits,forecasts", "-forecasts": "forecasts", "-exits": "exits"}
CASES = [f"{solver}{end}" for solver, _ in SOLVERS for end in USES]
SMALL = ("--seeds", "2", "--held-out", "4", "--batch", "2", "--minutes", "0.1")
FIGURES = (
    *("name", "kind", "time_share", "predicted_share", "ideal_share", "distance"),
    *("interval", "psnr"),
)
# The goals: at equal time, distance over the baseline's; at equal distance, time over its.
DISTANCE, TIME, SECONDS = 0.8, 0.9, 600
# And the distance within a share of full depth's measured time; without exits a quarter more.
NEAR = {"ddim": {0.5: 0.0018, 0.7: 0.0008}, "dpmpp-2m": {0.5: 0.006, 0.7: 0.003}}


def tuned(
    engines: Path, solver: str, steps: int, end: str, small: bool, keep: bool
) -> tuple[Front, Path]:
    """A front, by the command as a user gives it; and its folder.

    With ``keep``, the front of an earlier run, if there is one.
    """
    folder = OUT / f"schedules-{solver}-{steps}{end}"
    if keep and (folder / "front.json").exists():
        print(f"{folder.name}: kept")
        return read_front(folder / "front.json"), folder
    started = time.perf_counter()
    options = ["--use", USES[end], *(SMALL if small else ())]
    run_eecompile(
        *("tune", engines, "-o", folder, "--solver", solver, "--steps", steps, "--force"), *options
    )
    front = read_front(folder / "front.json")
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s in all")
    return front, folder


def front_rows(front: Front) -> list[Row]:
    """Every program, dearest first within its kind."""
    points = sorted(front.points, key=lambda point: (point.kind, -point.time_share))
    return [{name: getattr(point, name) for name in FIGURES} for point in points]


def goals(front: Front) -> Row:
    """Whether the found schedules are as much better as they are to be."""
    points = {point.name: point for point in front.points}
    found: Row = {"seconds": front.seconds, "tuning under ten minutes": front.seconds < SECONDS}
    for share, goal in NEAR[front.settings.solver].items():
        within = [p.distance for p in front.points if p.kind == "found" and p.time_share <= share]
        most = goal if "exits" in front.settings.use else 1.25 * goal
        found[f"distance within {share:g} of full depth's time"] = min(within, default=None)
        found[f"of it at most {most:g}"] = bool(within) and min(within) <= most
    for name, picked in (
        ("ASE", _of_kind(front, points, "ase")),
        ("linear", _of_kind(front, points, "linear")),
        ("best uniform exit", _of_kind(front, points, "exit")),
        ("fewer steps", _of_kind(front, points, "steps")),
    ):
        if picked:
            found[f"{name}: distance over its, median"] = statistics.median(
                each.distance_ratio for each in picked
            )
            near = [
                e.time_share_at_distance for e in picked if e.time_share_at_distance is not None
            ]
            if near:
                found[f"{name}: time over its at its distance, median"] = statistics.median(near)
            if name in ("ASE", "linear"):
                best = min(picked, key=lambda each: abs(1 - each.time_share))
                found[f"{name}: 20 % less distance"] = best.distance_ratio <= DISTANCE
                found[f"{name}: 10 % less time"] = (best.time_share_at_distance or 9) <= TIME
    return found


def _of_kind(front: Front, points: dict[str, FrontPoint], kind: str) -> list[BaselineComparison]:
    return [each for each in front.comparisons if points[each.baseline].kind == kind]


def evaluated(
    engines: Path, front: Front, folder: Path, reference: Path, count: int, budgets: Sequence[float]
) -> Row:
    """Quality by 'eecompile evaluate': full depth, some found schedules, ASE and fewer steps.

    All of them share seeds, so that their differences are surer than they are.
    """
    settings, named = front.settings, [f"budget-{100 * budget:.4g}" for budget in budgets]
    found = {point.name: point for point in front.points if point.name in named}
    spent = [point.predicted_share for point in found.values()]
    ase = [point for point in front.points if point.kind == "ase"]
    fewer = [point for point in front.points if point.kind == "steps"]
    beside = {
        min(fewer, key=lambda p: abs(p.predicted_share - time)).name for time in spent if fewer
    }
    rows = [*found.values(), *ase, *(point for point in fewer if point.name in beside)]
    output = folder.with_name(f"{folder.name}-quality.json")
    programs = []
    with Sampler.open(engines) as sampler:
        for point in rows:
            program = sampler.program(settings.solver, point.steps, point.schedule)
            path = folder.with_name(f"{folder.name}-programs") / f"{point.name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(program.to_json())
            programs += ["--program", path]
    run_eecompile(
        *("evaluate", engines, "-o", output, "--reference", reference, "-n", count),
        *("--schedule", "full", "--solver", settings.solver, "--steps", settings.steps),
        *programs,
    )
    made = json.loads(output.read_text())
    full = made["rows"][0]["frechet_distance"]
    return {
        "settings": made["settings"],
        "floor": made["floor"]["frechet_distance"],
        "rows": [
            {
                "name": name,
                "steps": len(row["choices"]),
                "time": time,
                "Frechet distance": row["frechet_distance"],
                "error": row["error"],
                "beyond full depth, %": 100 * row.get("beyond", 0.0) / full,
                "error of that, %": 100 * row.get("beyond_error", 0.0) / full,
                "precision": row["precision"],
                "recall": row["recall"],
            }
            for name, time, row in zip(
                ["full", *(point.name for point in rows)],
                [1.0, *(point.time_share for point in rows)],
                made["rows"],
                strict=True,
            )
        ],
    }


def schedules(
    small: Annotated[bool, typer.Option("--small", help="Few steps and samples.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Cases: {', '.join(CASES)}; what the JSON holds of the others stays."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Do not tune again what is there.")] = False,
    evaluate: Annotated[
        Path | None, typer.Option(help="Pictures, with which the quality is measured too.")
    ] = None,
    evaluate_only: Annotated[list[str] | None, typer.Option(help="Cases; default all.")] = None,
    budgets: Annotated[list[float] | None, typer.Option(help="Default 0.7 and 0.5.")] = None,
    n: Annotated[int, typer.Option("-n", help="Samples for --evaluate.")] = 10_000,
    output: Annotated[
        Path | None, typer.Option(help="JSON; default under docs/benchmarks.")
    ] = None,
) -> None:
    """Tuned schedules beside others: DDIM 50, DPM-Solver++ 20; schedules-cpu.json.

    Each with exits and forecasts, and with one of the two, on the default CPU target. --evaluate
    measures the quality of full depth, of the schedules found for --budgets, of the authors' and
    of fewer steps.
    """
    if unknown := {*(only or ()), *(evaluate_only or ())} - set(CASES):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; cases are {', '.join(CASES)}")
    names = only or CASES
    bundle_from_recipe(RECIPE, OUT / "bundle")
    engines = engine_set(OUT / "bundle", OUT, "cpu")
    results = Results(output, "schedules-cpu")
    machine = results.values["machine"]
    cases = kept(results.output, machine, names)
    for name in names:
        solver = next(solver for solver, _ in SOLVERS if name.startswith(solver))
        steps = 4 if small else dict(SOLVERS)[solver]
        front, folder = tuned(engines, solver, steps, name.removeprefix(solver), small, keep)
        case: Row = {
            "command": machine["command"],
            "settings": front.settings,
            "goals": goals(front),
            "against baselines at no more time": msgspec.to_builtins(front.comparisons),
            "programs on the held-out samples": front_rows(front),
            "warnings": front.warnings,
        }
        if evaluate and name in (evaluate_only or CASES):
            data = evaluate.resolve()
            case["quality"] = evaluated(engines, front, folder, data, n, budgets or [0.7, 0.5])
        cases[name] = case
        results.keep("cases", {name: each for name, each in cases.items() if each})
        show(name, case)
    print(f"written: {results.output}")


def kept(output: Path, facts: Row, only: Sequence[str]) -> Row:
    """Cases of an earlier run on this machine that are not measured again, in their order."""
    cases: Row = dict.fromkeys(CASES)
    if set(only) != set(CASES) and output.exists():
        earlier = json.loads(output.read_text())
        if {**earlier["machine"], "command": ""} != {**facts, "command": ""}:
            sys.exit(f"error: {output} is of another machine; give another --output")
        cases |= {name: case for name, case in earlier["cases"].items() if name in cases}
    return {name: case for name, case in cases.items() if case or name in only}


def show(name: str, case: Row) -> None:
    """Print the comparisons, the quality and the goals of a case."""
    tables = {name: case["against baselines at no more time"]}
    if "quality" in case:
        tables[f"{name}: quality"] = case["quality"]["rows"]
    for title, rows in tables.items():
        if rows:
            print_table(title, rows)
    for goal, value in case["goals"].items():
        console().print(f"  {goal}: {cell(value)}", highlight=False)
