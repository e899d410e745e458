"""What scripts share: where things lie, medians of turns, and results as JSON and as tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from rich.console import Console

from eecompile import EecompileError
from eecompile.measure.machine import cpu, machine_facts
from eecompile.measure.timing import interleaved
from eecompile.show.table import Column, Table
from eecompile.show.terminal import rendered

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "export" / "fashion-dit.toml"
OUT = ROOT / "out" / "fashion-dit"
BENCHMARKS = ROOT / "docs" / "benchmarks"
PACKAGES = (
    *("eecompile", "numpy", "onnx", "onnx-ir", "onnxruntime", "openvino", "tensorrt_rtx"),
    *("polygraphy", "nvidia-modelopt", "ray", "torch", "torchmetrics", "diffusers", "cache-dit"),
)
Row = dict[str, Any]


class Results:
    """Results of one script, stored as JSON after every row: NAME.json, unless told otherwise.

    With ``more``, those that are stored already stay, if they are of such a machine.
    """

    def __init__(self, output: Path | None, name: str, more: bool = False) -> None:
        self.output = output or BENCHMARKS / f"{name}.json"
        self.values: Row = {"machine": facts()}
        if more and self.output.exists():
            known, here = json.loads(self.output.read_text()), self.values["machine"]
            if any(known["machine"][fact] != here[fact] for fact in ("cpu", "cores")):
                sys.exit(f"error: {self.output} is of another machine: measure all of it here")
            self.values |= known

    def keep(self, title: str, value: Any) -> None:
        """Store a value; rows that an iterator gives, one by one as they are measured."""
        if isinstance(value, Iterator):
            self.values[title] = []
            for row in value:
                self.values[title].append(row)
                self.write()
        else:
            self.values[title] = value
            self.write()

    def write(self) -> None:
        """Write the JSON file, figures to four digits."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        plain = rounded(msgspec.to_builtins(self.values))
        self.output.write_text(json.dumps(plain, indent=1) + "\n")

    def show(self) -> None:
        """Print a table for each list of rows, other values as they are."""
        for title, value in self.values.items():
            if isinstance(value, list) and value:
                print_table(title, value)
            elif isinstance(value, dict) and "rows" in value:
                print_table(title, value["rows"])
            elif title != "machine":
                console().print(f"{title}: {json.dumps(rounded(value))}", highlight=False)
        print(f"written: {self.output}")


def facts() -> Row:
    """Public facts of this machine, versions of packages, and the command that runs."""
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    vector = "AVX-512" if "AVX-512" in cpu().instructions else "no AVX-512"
    machine = machine_facts()
    return {
        "cpu": f"{machine['cpu']} ({vector})",
        "cores": os.cpu_count(),
        "memory_gib": int(machine["memory"].split()[0]),
        "system": machine["system"],
        "python": machine["python"],
        "versions": versions,
        "command": " ".join(["python", *map(_public, sys.argv)]),
    }


def machine(result: Mapping[str, Any]) -> str:
    """The machine of a stored result, in a few words."""
    found = result["machine"]
    where = [found.get("gpu"), found["cpu"], f"{found['cores']} cores"]
    return ", ".join(str(fact) for fact in where if fact)


def _public(argument: str) -> str:
    """An argument without this machine's folders: a path within the project, or a name."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def rounded(value: Any) -> Any:
    """The same with every float to four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def console() -> Console:
    """The terminal; where output goes to a file, wide enough for every table."""
    return Console() if sys.stdout.isatty() else Console(width=240)


def print_table(title: str, rows: list[Row]) -> None:
    """Print rows that have the same keys."""
    columns = [Column(name, itemgetter(name), form=cell) for name in rows[0]]
    console().print(rendered(Table(title, title, columns, rows)))


def cell(value: Any) -> str:
    """A figure as tables show it; two are an interval, three have the median in the middle."""
    match value:
        case float():
            return f"{value:.3f}"
        case (low, high):
            return f"{low:.2f} to {high:.2f}"
        case (low, middle, high):
            return f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return str(value)


def medians(actions: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """Median seconds of each action, taking turns, after one warm-up each."""
    seconds = interleaved(actions, rounds=rounds).checked().seconds
    return {name: median(taken) for name, taken in seconds.items()}


def milliseconds(
    actions: Mapping[str, Callable[[], object]], rounds: int, *, per: int = 1, unit: str = ""
) -> Row:
    """The same in milliseconds per each of the ``per`` steps of an action; ``unit`` ends names."""
    return {f"{n}{unit}": 1e3 * s / per for n, s in medians(actions, rounds).items()}


def run_eecompile(*arguments: object) -> None:
    """Run the command as a user does; where it fails, having said why, the script ends.

    In a rehearsal (rehearsal.py) there is an emulated GPU.
    """
    rehearsed = "EECOMPILE_REHEARSAL" in os.environ
    command = [str(ROOT / "scripts" / "rehearsal.py")] if rehearsed else ["-m", "eecompile"]
    done = subprocess.run([sys.executable, *command, *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main(command: Callable[..., object]) -> None:
    """Run a script's command; what goes wrong is one line."""
    try:
        command()
    except EecompileError as error:
        sys.exit(f"error: {error}")
