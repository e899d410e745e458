"""Tables in the documents, made of the benchmarks' JSON: nothing in them is typed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from caching_page import tables
from results import ROOT, machine

from eecompile.show.table import Column, Table, markdown, percent, words

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
        ("README.md", "peers", short_tables),
        ("docs/compare.md", "peers", whole_tables),
        ("docs/compare.md", "caching", tables),
        ("docs/networks.md", "networks", network_tables),
        ("docs/choices.md", "spans", span_tables),
    ):
        path = root / document
        results = (json.loads(file.read_text()) for file in results_files(name, root))
        made = [markdown(table) for result in results for table in maker(result)]
        text = "\n".join(made) or "It has not been measured yet.\n"
        texts[path] = with_region(texts.get(path, path.read_text()), name, text)
    return texts


def with_region(text: str, name: str, made: str) -> str:
    """The text with another part between the marks of that name, which it must have once."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"expected {begin} and {end} once in each document")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{made}\n{end}{rest.partition(end)[2]}"


def network_tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """A row a network: what was exported, the worst errors, and the seconds that it took."""
    version, error = result["machine"]["versions"]["diffusers"], "{:.0e}".format
    columns = [
        words("network", itemgetter("network")),
        words("class", lambda row: f"`{row['class']}`"),
        words("exits", lambda row: ", ".join(map(str, row["exits"]))),
        words("cuts", lambda row: ", ".join(map(str, row["cuts"])) or "none"),
        Column("graph", itemgetter("export_error"), form=error),
        Column("spans", itemgetter("span_error"), form=error),
        Column("samples", itemgetter("sample_error"), form=error),
        Column("CPU", itemgetter("seconds"), "s", form="{:.0f}".format),
    ]
    title = f"diffusers {version}; one thread of {machine(result)}"
    rows = sorted(result["networks"], key=itemgetter("network"))
    yield Table("networks", title, columns, rows)


def span_tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Spans beside full depth: time and memory."""
    shares = {
        "blocks": "share of blocks",
        "time": "share of time",
        "what runs in every step": "over: runs in every step",
        "sums of tensors": "over: sums on the host",
        "the rest": "over: the rest",
    }
    which = [words(name, itemgetter(name)) for name in ("network", "batch", "span")]
    columns = [
        *which,
        Column("full depth", itemgetter("full depth, ms a step"), "ms a step"),
        *(Column(name, itemgetter(key), form="{:.3f}".format) for name, key in shares.items()),
    ]
    title = f"Every second step with a span, target `{result['target']}`, on {machine(result)}"
    yield Table("time", title, columns, result["time"])
    columns = [
        *which,
        Column("measured", itemgetter("kept beyond order 0, MiB"), "MiB"),
        Column("by the formula", itemgetter("formula, MiB"), "MiB"),
    ]
    title = "Resident memory of what is kept beyond order 0"
    yield Table("memory", title, columns, result["memory"])


def short_tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """What matters most, on one machine: torch.compile, the fastest peer, and eecompile."""
    by = {
        network: {row["by"]: row[SAME][1] for row in found["rows"]}
        for network, found in _networks(result).items()
    }
    names = list(next(iter(by.values())))
    peers = [name for name in names if not name.startswith(OURS) and name != EAGER]
    fastest = max(peers, key=lambda name: min(rows[name] for rows in by.values()))
    where = re.sub(r" \(.*?\)", "", machine(result))
    yield Table(
        "peers",
        f"Speed-up over eager PyTorch, same exit schedule, batch {result['batch']}, on {where}",
        [words("", _label), *(Column(n, rows.get, form="{:.2f}".format) for n, rows in by.items())],
        [name for name in names if name in (COMPILED, fastest) or name.startswith(OURS)],
    )


def whole_tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Every row of every network on one machine, with its spread."""
    digits = "{:.4g}".format
    columns = [
        words("by", lambda row: _label(row["by"])),
        Column("ms per step", itemgetter("schedule, ms a step"), form=digits),
        Column("at full depth", itemgetter("full depth, ms a step"), form=digits),
        Column("schedule saves", itemgetter(SAVING), form=percent),
        words("speed-up over eager", partial(_spread, key=SAME)),
        words("over eager at full depth", partial(_spread, key=FULL)),
    ]
    for name, found in _networks(result).items():
        yield Table(
            name,
            f"{name} on {machine(result)}, batch {result['batch']}; schedule "
            f"`{found['schedule']}`, without {found['blocks left out']:.1%} of the blocks",
            columns,
            found["rows"],
        )


def _spread(row: Row, key: str) -> str:
    low, middle, high = row[key]
    return f"{middle:.2f}" if low == high else f"{middle:.2f} ({low:.2f} to {high:.2f})"


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
