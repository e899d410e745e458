"""Exports at full size: time, peak memory, bytes and errors, all exits against the deepest.

Networks are filled with random weights: what is measured does not depend on them. Every
export runs in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bundles import NETWORKS, random_recipe
from children import exported, runs_in_turns
from results import ROOT, Row

SMALLER = ("DiT-B/2",)  # for other benchmarks


def export_rows(names: Sequence[str] | None, rounds: int | None) -> Iterator[Row]:
    """A row a network, as each is done.

    Args:
        names: of networks; all if empty.
        rounds: exports of each kind; None takes three, one for networks above 1 GB.
    """
    (ROOT / "out").mkdir(exist_ok=True)
    for name in names or [name for name in NETWORKS if name not in SMALLER]:
        with TemporaryDirectory(dir=ROOT / "out") as temporary:
            row = _row(name, Path(temporary), rounds)
        print(json.dumps(row), flush=True)
        yield row


def _row(name: str, work: Path, rounds: int | None) -> Row:
    recipe, unique = random_recipe(name, work)
    rounds = rounds or (1 if unique > 1e9 else 3)
    kinds = {"full": True, "all": False}
    calls = {kind: (exported, recipe, work / "bundle", alone) for kind, alone in kinds.items()}
    runs = runs_in_turns(calls, rounds)
    full, every = runs["full"], runs["all"]
    seconds = {kind: median(columns["seconds"]) for kind, columns in runs.items()}
    return {
        "network": name,
        "exits": every["exits"][0],
        "parameters_m": unique / 4e6,
        "rounds": rounds,
        "seconds_full_depth": seconds["full"],
        "seconds_all_exits": seconds["all"],
        "ratio": seconds["all"] / seconds["full"],
        "peak_gib": max(every["peak_bytes"]) / 2**30,
        "peak_over_weights": max(every["peak_bytes"]) / unique,
        "bytes_over_unique": every["bundle_bytes"][0] / unique,
        "bytes_over_full": every["bundle_bytes"][0] / full["bundle_bytes"][0],
        "relative_error": every["relative_error"][0],
    }
