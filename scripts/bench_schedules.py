"""Exit schedules by measurement, beside those that need no tuning.

python scripts/bench_schedules.py            DDIM 50 and DPM-Solver++ 20 on the default CPU target,
                                             with and without reuse; schedules-cpu.json
python scripts/bench_schedules.py --small    a small case, to see that it works
    --only CASE ...                          these, such as ddim and dpmpp-2m-reuse; what the
                                             JSON holds of the others stays
    --keep                                   fronts that are there are not tuned again
    --evaluate DATA [CASE ...] [-n 10000]    also 'eecompile evaluate': full depth, the schedules
                                             found for --budgets, the authors', fewer steps
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
import msgspec
from rich.console import Console
from rich.table import Table

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.runtime.sampler import Sampler
from eecompile.tune.report import BaselineComparison, Front, FrontPoint, read_front

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "export" / "fashion-dit.toml"
TARGET = ROOT / "engines" / "cpu.toml"
OUT = ROOT / "out" / "fashion-dit"
Row = dict[str, Any]
SOLVERS = (("ddim", 50), ("dpmpp-2m", 20))
CASES = [f"{solver}{end}" for solver, _ in SOLVERS for end in ("", "-reuse")]
SMALL = ("--seeds", "2", "--held-out", "4", "--batch", "2", "--minutes", "0.1")
# The goals: at equal time, distance over the baseline's; at equal distance, time over its.
DISTANCE, TIME, SECONDS = 0.8, 0.9, 600


def tuned(
    engines: Path, solver: str, steps: int, reuse: bool, small: bool, keep: bool
) -> tuple[Front, Path]:
    """A front, by the command as a user gives it; and its folder.

    With ``keep``, the front of an earlier run, if there is one.
    """
    folder = OUT / f"schedules-{solver}-{steps}{'-reuse' if reuse else ''}"
    if keep and (folder / "front.json").exists():
        print(f"{folder.name}: kept")
        return read_front(folder / "front.json"), folder
    command = [sys.executable, "-m", "eecompile", "tune", str(engines), "-o", str(folder)]
    command += ["--solver", solver, "--steps", str(steps), "--force"]
    command += ["--reuse"] if reuse else []
    started = time.perf_counter()
    subprocess.run([*command, *(SMALL if small else ())], check=True, cwd=ROOT)
    front = read_front(folder / "front.json")
    print(f"{folder.name}: {time.perf_counter() - started:.0f} s in all")
    return front, folder


def front_rows(front: Front) -> list[Row]:
    """Every program, dearest first within its kind."""
    return [
        {
            "name": point.name,
            "kind": point.kind,
            "time": point.time_share,
            "predicted time": point.predicted_share,
            "ideal time": point.ideal_share,
            "distance": point.distance,
            "interval": point.interval,
            "psnr": point.psnr,
        }
        for point in sorted(front.points, key=lambda point: (point.kind, -point.predicted_share))
    ]


def comparison_rows(front: Front) -> Iterator[Row]:
    """At equal time, the found schedule's distance over each baseline's; and the other way."""
    points = {point.name: point for point in front.points}
    for each in front.comparisons:
        yield {
            "baseline": each.baseline,
            "kind": points[each.baseline].kind,
            "baseline time": points[each.baseline].time_share,
            "found": each.found,
            "time over its": each.time_share,
            "distance over its": each.distance_ratio,
            "interval": each.interval,
            "time over its at its distance": each.time_share_at_distance,
        }


def goals(front: Front) -> Row:
    """Whether the found schedules are as much better as they are to be."""
    points = {point.name: point for point in front.points}
    found: Row = {"seconds": front.seconds, "tuning under ten minutes": front.seconds < SECONDS}
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
    command = [sys.executable, "-m", "eecompile", "evaluate", str(engines), "-o", str(output)]
    command += ["--reference", str(reference), "-n", str(count), "--schedule", "full"]
    command += ["--solver", settings.solver, "--steps", str(settings.steps)]
    with Sampler.open(engines) as sampler:
        for point in rows:
            program = sampler.program(settings.solver, point.steps, point.schedule)
            path = folder.with_name(f"{folder.name}-programs") / f"{point.name}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(program.to_json())
            command += ["--program", str(path)]
    subprocess.run(command, check=True, cwd=ROOT)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="few steps and samples")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, metavar="CASE")
    parser.add_argument("--evaluate", nargs="+", default=[], metavar=("DATA", "CASE"))
    parser.add_argument("--keep", action="store_true", help="do not tune again what is there")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.7, 0.5], metavar="SHARE")
    parser.add_argument("-n", type=int, default=10_000, help="samples for --evaluate")
    parser.add_argument("--output", type=Path, help="JSON; default under docs/benchmarks")
    args = parser.parse_args()
    output = args.output or ROOT / "docs" / "benchmarks" / "schedules-cpu.json"
    bundle_from_recipe(RECIPE, OUT / "bundle")
    engine_set_from_bundle(OUT / "bundle", TARGET, OUT / "cpu")
    facts = machine.facts("numpy", "onnxruntime", "eecompile")
    result = {"machine": facts, "cases": kept(output, facts, args.only)}
    for name in args.only:
        reuse = name.endswith("-reuse")
        solver = name.removesuffix("-reuse")
        steps = 4 if args.small else dict(SOLVERS)[solver]
        front, folder = tuned(OUT / "cpu", solver, steps, reuse, args.small, args.keep)
        case: Row = {
            "command": facts["command"],
            "settings": front.settings,
            "goals": goals(front),
            "against baselines at no more time": list(comparison_rows(front)),
            "programs on the held-out samples": front_rows(front),
            "warnings": front.warnings,
        }
        if args.evaluate and name in (args.evaluate[1:] or CASES):
            data = Path(args.evaluate[0]).resolve()
            case["quality"] = evaluated(OUT / "cpu", front, folder, data, args.n, args.budgets)
        result["cases"][name] = case
        write(output, result)
        show(name, case)
    print(f"written: {output}")


def kept(output: Path, facts: Row, only: Sequence[str]) -> Row:
    """Cases of an earlier run on this machine that are not measured again, in their order."""
    cases: Row = dict.fromkeys(CASES)
    if set(only) != set(CASES) and output.exists():
        earlier = json.loads(output.read_text())
        if {**earlier["machine"], "command": ""} != {**facts, "command": ""}:
            sys.exit(f"error: {output} is of another machine; give another --output")
        cases |= {name: case for name, case in earlier["cases"].items() if name in cases}
    return {name: case for name, case in cases.items() if case or name in only}


def write(output: Path, result: Row) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    cases = {name: case for name, case in result["cases"].items() if case}
    plain = msgspec.to_builtins({**result, "cases": cases})
    output.write_text(json.dumps(rounded(plain), indent=1) + "\n")


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def show(name: str, case: Row) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=160)
    tables = {name: case["against baselines at no more time"]}
    if "quality" in case:
        tables[f"{name}: quality"] = case["quality"]["rows"]
    for title, rows in tables.items():
        if rows:
            table = Table(title=title, title_justify="left")
            for heading in rows[0]:
                table.add_column(heading, justify="right")
            for row in rows:
                table.add_row(*map(_cell, row.values()))
            console.print(table)
    for goal, value in case["goals"].items():
        console.print(f"  {goal}: {_cell(value)}", highlight=False)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{value[0]:.2f} to {value[1]:.2f}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
