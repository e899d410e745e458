"""What was measured of caching: tables for the documents, and a page with plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from bench_peers import FULL
from results import Row, machine

from eecompile.show.page import Page, Plot, Section, page_text
from eecompile.show.plots import (
    Figure,
    Mark,
    marks,
    new_figure,
    points,
    shown_name,
    text_lines,
)
from eecompile.show.table import Column, Table, number, words

WITHIN = (0.003, 0.01, 0.03)  # distances that the tables ask for


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """For each solver, the least time of every peer within some distances, and its setting."""
    for name, case in result["cases"].items():
        yield Table(
            name=name,
            title=f"{name} on {machine(result)}, batch {result['batch']}: ms per sample",
            columns=[
                words("by", lambda item: item.by),
                Column("full depth", lambda item: item.full, form=number),
                *(words(f"within {d:g}", partial(_fastest, within=d)) for d in WITHIN),
            ],
            items=list(_peers(case["rows"])),
            key=lambda item: item.by,
        )


class Peer(NamedTuple):
    """What one peer was measured with; ``full`` are its milliseconds at full depth."""

    by: str
    full: float
    rows: Sequence[Row]


def _peers(rows: Sequence[Row]) -> Iterator[Peer]:
    full = 0.0
    for by, group in groupby(rows, key=lambda row: row["by"]):
        found = list(group)
        if found[0]["setting"] == FULL:
            full = found.pop(0)["ms per sample"]
        yield Peer(by, full, found)


def _fastest(peer: Peer, within: float) -> str | None:
    faster = (row for row in peer.rows if row["ms per sample"] < peer.full)
    near = [row for row in faster if row["distance"] <= within]
    if not near:
        return None
    best = min(near, key=lambda row: row["ms per sample"])
    return f"{number(best['ms per sample'])} ({best['setting']})"


def page(result: Mapping[str, Any]) -> str:
    """Plots of time against distance, and the tables, as HTML."""
    cases = result["cases"]
    names = {row["by"]: None for case in cases.values() for row in case["rows"]}
    looks = marks(names, "PyTorch eager")
    said = (
        "Lower and further left is better; lines join what nothing faster of the same kind beats. "
        "Distances are to full depth by the same peer, from the same noise, in units of the data's "
        "range."
    )
    left_out = {text: None for case in cases.values() for text in _left_out(case["skipped"])}
    drawn = [Plot(_plot(case["rows"], looks), name, wide=True) for name, case in cases.items()]
    return page_text(
        Page(
            command="bench caching",
            network=result["network"],
            what="caching",
            machine={"machine": machine(result)},
            version=result["machine"]["versions"]["eecompile"],
            opening=[],
            role="Peers",
            keys=list(names),
            marks=looks,
            sections=[
                Section("Time against distance", said, plots=drawn),
                Section("The least time within a distance", parts=list(tables(result))),
                Section("Left out", lines=list(left_out)),
            ],
        )
    )


def _left_out(skipped: Mapping[str, str]) -> Iterator[str]:
    for name, why in skipped.items():
        yield f"{name}: {why}"


def _plot(rows: Sequence[Row], looks: Mapping[str, Mark]) -> Figure:
    figure = new_figure(520, "time per sample (ms)", "distance to full depth (data's range)")
    for peer in _peers(rows):
        found = sorted((r for r in peer.rows if r["distance"]), key=lambda r: r["ms per sample"])
        mark = looks[peer.by]
        texts = [
            text_lines(
                shown_name(peer.by),
                row["setting"],
                f"{number(row['ms per sample'])} ms, distance {number(row['distance'])}",
            )
            for row in found
        ]
        own = peer.by.startswith("eecompile")
        line = {"color": mark.colour, "width": 2.5 if own else 1, "dash": "solid" if own else "dot"}
        x, y = ([row[key] for row in found] for key in ("ms per sample", "distance"))
        figure.add_trace(points(x, y, texts, mark, name=peer.by))
        best = [i for i, distance in enumerate(y) if distance == min(y[: i + 1])]
        x, y = ([values[i] for i in best] for values in (x, y))
        figure.add_trace(points(x, y, [""] * len(x), mark, mode="lines", line=line))
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(type="log", exponentformat="power")
    return figure
