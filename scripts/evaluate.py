"""Quality of the shipped network at every exit and schedule, by ``eecompile evaluate``.

The figures are those of the command; this adds the machine, and says which data. Samples
are kept under out/evaluate, so an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
from training import DATA

from eecompile.store.bundle import open_engine_set

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "docs" / "benchmarks"


def evaluated(engines: Path, schedules: list[str], data: Path, *more: str) -> dict[str, Any]:
    """What ``eecompile evaluate`` writes; held-out pictures are the reference.

    The floor is of as many training pictures.
    """
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "evaluation.json"
        command = [sys.executable, "-m", "eecompile", "evaluate", str(engines), "-o", str(output)]
        command += ["--reference", str(data / "t10k-images-idx3-ubyte.gz")]
        command += ["--floor", str(data / "train-images-idx3-ubyte.gz"), *more]
        done = subprocess.run(
            [*command, *(f"--schedule={name}" for name in schedules)], check=False
        )
        if done.returncode:
            sys.exit(done.returncode)  # it has said why
        made: dict[str, Any] = json.loads(output.read_text())
        return made


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every evaluation of the shipped network is told."""
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the IDX files")
    parser.add_argument("-n", type=int, default=10_000, help="samples a schedule")
    parser.add_argument("--solver", default="ddim")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "evaluate")


def options(args: argparse.Namespace) -> list[str]:
    """The same, as the command takes it."""
    made = {"-n": args.n, "--solver": args.solver, "--steps": args.steps, "--work": args.work}
    return [word for name, value in made.items() for word in (name, str(value))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", type=Path, default=ROOT / "out" / "fashion-dit" / "cpu")
    parser.add_argument("--schedules", nargs="*", help="default every exit and every schedule")
    add_options(parser)
    parser.add_argument("--output", type=Path, default=BENCHMARKS / "quality-fashion-dit.json")
    args = parser.parse_args()
    interface = open_engine_set(args.engines).interface
    names = args.schedules or [*map(str, interface.exits[:-1]), *interface.schedules]
    made = evaluated(args.engines, names, args.data, *options(args))
    facts = machine.facts("onnxruntime", "torch", "torchmetrics", "numpy")
    args.output.write_text(json.dumps({"machine": facts, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
