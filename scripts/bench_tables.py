"""Tables in the documents, made of the benchmarks' JSON: nothing in them is typed by hand."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
SAME, FULL = "over eager, same schedule", "over eager, full depth"
SAVING = "schedule's saving"
EAGER, COMPILED, OURS = "PyTorch eager", "torch.compile", "eecompile"
Row = Mapping[str, Any]


def peers_files(root: Path = ROOT) -> list[Path]:
    """One JSON a machine."""
    return sorted((root / "docs" / "benchmarks").glob("peers-*.json"))


def write_peers_tables(root: Path = ROOT) -> list[Path]:
    """Rewrite the marked regions; the documents that have changed."""
    changed = []
    for path, text in peers_documents(root).items():
        if text != path.read_text():
            path.write_text(text)
            changed.append(path)
    return changed


def peers_documents(root: Path = ROOT) -> dict[Path, str]:
    """What the documents with marked regions should say."""
    results = [json.loads(path.read_text()) for path in peers_files(root)]
    makers: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
        "README.md": short_table,
        "docs/compare.md": whole_tables,
    }
    documents = {}
    for name, maker in makers.items():
        lines = [line for result in results for line in maker(result)]
        documents[root / name] = with_region((root / name).read_text(), lines)
    return documents


def with_region(text: str, lines: Sequence[str]) -> str:
    """The text with other lines between the marks, which it must have once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"expected {BEGIN} and {END} once in each document")
    before, _, rest = text.partition(BEGIN)
    return before + "\n".join([BEGIN, *lines, END]) + rest.partition(END)[2]


def short_table(result: Mapping[str, Any]) -> Iterator[str]:
    """What matters most, on one machine: torch.compile, the fastest peer, and eecompile."""
    networks = _networks(result)
    by = {name: {row["by"]: row for row in found["rows"]} for name, found in networks.items()}
    machine = re.sub(r" \(.*?\)", "", _machine(result))
    yield (
        f"Speed-up over eager PyTorch with the same exit schedule, batch {result['batch']}, on "
        f"{machine}:"
    )
    yield ""
    yield "| | " + " | ".join(by) + " |"
    yield "|---|" + "---|" * len(by)
    names = list(next(iter(by.values())))
    peers = [name for name in names if not name.startswith(OURS) and name != EAGER]
    fastest = max(peers, key=lambda name: min(rows[name][SAME][1] for rows in by.values()))
    for name in names:
        if name in (COMPILED, fastest) or name.startswith(OURS):
            cells = [_label(name), *(f"{rows[name][SAME][1]:.2f}" for rows in by.values())]
            yield "| " + " | ".join(cells) + " |"
    yield ""


def whole_tables(result: Mapping[str, Any]) -> Iterator[str]:
    """Every row of every network on one machine, with its spread."""
    for name, found in _networks(result).items():
        yield ""
        yield textwrap.fill(
            f"**{name}** on {_machine(result)}, batch {result['batch']}; the exit schedule "
            f"`{found['schedule']}` leaves out {found['blocks left out']:.1%} of the blocks:",
            width=100,
        )
        yield ""
        yield (
            "| by | ms per step | at full depth | schedule saves | speed-up over eager | "
            "over eager at full depth |"
        )
        yield "|---|---|---|---|---|---|"
        for row in found["rows"]:
            yield "| " + " | ".join(_cells(row)) + " |"
    yield ""


def _cells(row: Row) -> Iterator[str]:
    yield _label(row["by"])
    yield f"{row['schedule, ms a step']:.4g}"
    yield f"{row['full depth, ms a step']:.4g}"
    yield f"{row[SAVING]:.0%}"
    for key in (SAME, FULL):
        low, middle, high = row[key]
        yield f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _label(by: str) -> str:
    """The name that the documents show for a row's ``by``."""
    for old, new in (
        ("a session an exit", "one session per exit"),
        ("a model an exit", "one model per exit"),
    ):
        by = by.replace(old, new)
    return by


def _networks(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {
        name: found for name, found in result.items() if isinstance(found, dict) and "rows" in found
    }


def _machine(result: Mapping[str, Any]) -> str:
    facts = result["machine"]
    where = [facts.get("gpu"), facts["cpu"], f"{facts['cores']} cores"]
    return ", ".join(str(fact) for fact in where if fact)
