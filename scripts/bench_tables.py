"""Tables in the documents, made of the benchmarks' JSON: nothing in them is typed by hand."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from caching_page import tables
from results import ROOT, machine

from eecompile.show.table import Column, Table, markdown, words

SAME, FULL = "over eager, same schedule", "over eager, full depth"
SAVING = "schedule's saving"
EAGER, COMPILED, OURS = "PyTorch eager", "torch.compile", "eecompile"
Row = Mapping[str, Any]


def results_files(name: str, root: Path = ROOT) -> list[Path]:
    """The JSON files of a benchmark, one a machine."""
    return sorted((root / "docs" / "benchmarks").glob(f"{name}-*.json"))


def write_tables(root: Path = ROOT) -> list[Path]:
    """Rewrite the marked regions; the documents that have changed."""
    changed = []
    for path, text in documents(root).items():
        if text != path.read_text():
            path.write_text(text)
            changed.append(path)
    return changed


def documents(root: Path = ROOT) -> dict[Path, str]:
    """What the documents with marked regions should say."""
    texts: dict[Path, str] = {}
    for document, name, maker in (
        ("README.md", "peers", short_table),
        ("docs/compare.md", "peers", whole_tables),
        ("docs/compare.md", "caching", caching_tables),
        ("docs/networks.md", "networks", networks_table),
        ("docs/choices.md", "spans", span_tables),
    ):
        path = root / document
        results = (json.loads(file.read_text()) for file in results_files(name, root))
        lines = [line for result in results for line in maker(result)]
        lines = lines or ["", "It has not been measured yet.", ""]
        texts[path] = with_region(texts.get(path, path.read_text()), name, lines)
    return texts


def with_region(text: str, name: str, lines: Sequence[str]) -> str:
    """The text with other lines between the marks of that name, which it must have once."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"expected {begin} and {end} once in each document")
    before, _, rest = text.partition(begin)
    return before + "\n".join([begin, *lines, end]) + rest.partition(end)[2]


def caching_tables(result: Mapping[str, Any]) -> Iterator[str]:
    """The least time of every peer within some distances, a table a solver."""
    for table in tables(result):
        yield ""
        yield from markdown(table).splitlines()
    yield ""


def networks_table(result: Mapping[str, Any]) -> Iterator[str]:
    """A row a network: what was exported, the worst errors, and the seconds that it took."""
    yield ""
    version = result["machine"]["versions"]["diffusers"]
    yield f"diffusers {version}; one thread of {machine(result)}."
    yield ""
    columns = ("network", "class", "exits", "cuts", "graph", "spans", "samples", "CPU s")
    yield f"| {' | '.join(columns)} |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in sorted(result["networks"], key=itemgetter("network")):
        span = row["span_error"]
        cells = (
            row["network"],
            f"`{row['class']}`",
            ", ".join(map(str, row["exits"])),
            ", ".join(map(str, row["cuts"])) or "none",
            f"{row['export_error']:.0e}",
            "" if span is None else f"{span:.0e}",
            f"{row['sample_error']:.0e}",
            f"{row['seconds']:.0f}",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def span_tables(result: Mapping[str, Any]) -> Iterator[str]:
    """Spans beside full depth: time and memory."""
    shares = {
        "blocks": "share of blocks",
        "time": "share of time",
        "what runs in every step": "over: runs in every step",
        "sums of tensors": "over: sums on the host",
        "the rest": "over: the rest",
    }
    columns = [
        *(words(name, itemgetter(name)) for name in ("network", "batch", "span")),
        Column("full depth", itemgetter("full depth, ms a step"), "ms a step"),
        *(Column(name, itemgetter(key), form="{:.3f}".format) for name, key in shares.items()),
    ]
    title = f"Every second step with a span, target `{result['target']}`, on {machine(result)}"
    yield ""
    yield from markdown(Table("time", title, columns, result["time"])).splitlines()
    columns = [
        *(words(name, itemgetter(name)) for name in ("network", "batch", "span")),
        Column("measured", itemgetter("kept beyond order 0, MiB"), "MiB"),
        Column("by the formula", itemgetter("formula, MiB"), "MiB"),
    ]
    title = "Resident memory of what is kept beyond order 0"
    yield ""
    yield from markdown(Table("memory", title, columns, result["memory"])).splitlines()
    yield ""


def short_table(result: Mapping[str, Any]) -> Iterator[str]:
    """What matters most, on one machine: torch.compile, the fastest peer, and eecompile."""
    networks = _networks(result)
    by = {name: {row["by"]: row for row in found["rows"]} for name, found in networks.items()}
    where = re.sub(r" \(.*?\)", "", machine(result))
    yield (
        f"Speed-up over eager PyTorch with the same exit schedule, batch {result['batch']}, on "
        f"{where}:"
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
            f"**{name}** on {machine(result)}, batch {result['batch']}; the exit schedule "
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
