"""Tables in the documents, made of the benchmarks' JSON: nothing in them is typed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from caching_page import tables
from results import ROOT, machine

from eecompile.show.table import Column, Table, markdown, number, percent, whole, words

SAME, FULL = "over eager, same schedule", "over eager, full depth"
SAVING = "schedule's saving"
RATIO, SHARE = "{:.2f}".format, "{:.1%}".format
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
        ("docs/networks.md", "export", export_tables),
        ("docs/choices.md", "spans", span_tables),
        ("docs/precision.md", "precision", precision_tables),
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


def export_tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Exports at full size, with random weights."""
    columns = [
        words("network", itemgetter("network")),
        Column("exits", itemgetter("exits"), form=str),
        Column("parameters", itemgetter("parameters_m"), "million", form=whole),
        Column("memory at most", itemgetter("peak_gib"), "GiB", form="{:.1f}".format),
        Column("of it weights", lambda row: 1 / row["peak_over_weights"], form=percent),
        Column("bytes over full depth alone", itemgetter("bytes_over_full"), form="{:.3f}".format),
        Column("largest error", itemgetter("relative_error"), form="{:.0e}".format),
    ]
    yield Table("export", f"Exports on {machine(result)}", columns, result["exports"])


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


def precision_tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Speed, samples, calibration, what choices buy, weights alone, and plans; what there is."""
    parts = {
        "speed": _speed_table,
        "samples": _samples_table,
        "calibration": _calibration_table,
        "choices": _choices_table,
        "weights": _weights_table,
        "large": partial(_weights_table, of=", at full size"),
        "plans": _plans_table,
    }
    found = dict(result)
    for solver in dict.fromkeys(row["solver"] for row in result.get("choices", ())):
        found[f"choices {solver}"] = [row for row in result["choices"] if row["solver"] == solver]
    for key, rows in found.items():
        if rows and (part := parts.get(key.partition(" ")[0])) and key != "choices":
            yield part(rows, machine(result))


def _speed_table(rows: Sequence[Row], where: str) -> Table:
    end = ", speed-up"
    columns = [
        *(words(name, itemgetter(name)) for name in ("network", "batch")),
        Column("ONNX Runtime FP32", itemgetter("onnxruntime fp32, ms"), "ms"),
        *(
            Column(_backend(key.removesuffix(end)), itemgetter(key), form=RATIO)
            for key in rows[0]
            if key.endswith(end)
        ),
    ]
    title = f"Speed-up over ONNX Runtime FP32 of a step at full depth, on {where}"
    return Table("speed", title, columns, rows)


def _samples_table(rows: Sequence[Row], _: str) -> Table:
    columns = [
        words("engines", lambda row: _backend(row["target"])),
        words("quantised", _quantised),
        Column("of the multiplications", itemgetter("quantised"), form=SHARE),
        Column("largest error", itemgetter("worst relative error"), form=SHARE),
        Column("PSNR of samples", itemgetter("PSNR, dB"), "dB"),
    ]
    return Table("samples", "Operators in INT8, and samples beside FP32's", columns, rows)


def _quantised(row: Row) -> str:
    count = row["operators"]
    return f"{count - row['kept']} of {count} operators" if count else "none"


def _calibration_table(rows: Sequence[Row], _: str) -> Table:
    columns = [
        words("samples", itemgetter("samples")),
        words("evaluations", itemgetter("rows")),
        Column("largest error", itemgetter("worst relative error"), form=SHARE),
        Column("mean difference", itemgetter("mean error")),
    ]
    title = "Samples to calibrate with, and errors of held-out ones"
    return Table("calibration", title, columns, rows)


def _choices_table(rows: Sequence[Row], where: str) -> Table:
    columns = [
        words("schedule from", itemgetter("by")),
        Column("time", itemgetter("time"), form=RATIO),
        Column("distance", itemgetter("distance")),
        words("95 %", lambda row: " to ".join(number(end) for end in row["95 %"])),
    ]
    title = f"What choices buy: {rows[0]['solver']}, over FP32 in OpenVINO, on {where}"
    return Table("choices", title, columns, sorted(rows, key=lambda row: -row["time"]))


def _weights_table(rows: Sequence[Row], _: str, of: str = "") -> Table:
    kinds = [key.partition(",")[0] for key in rows[0] if key.endswith("weights over fp32")][1:]
    columns = [words("network", itemgetter("network"))]
    columns.append(words("engines", lambda row: _backend(row["backend"])))
    for what, key in (
        ("bytes", "weights over fp32"),
        ("resident", "resident MiB"),
        ("at most", "at most MiB"),
    ):
        columns += [
            Column(f"{kind.upper()}, {what}", partial(_over, kind=kind, key=key), form=RATIO)
            for kind in kinds
        ]
    columns += [
        Column(f"{kind.upper()}, largest error", partial(_error_of, kind=kind), form=SHARE)
        for kind in kinds
        if f"{kind}, error" in rows[0]
    ]
    title = f"Weights alone{of}, over FP32: bytes of the graph, and memory that opening it and one "
    return Table("weights", f"{title}evaluation at batch 1 add", columns, rows)


def _plans_table(rows: Sequence[Row], _: str) -> Table:
    columns = [
        words("network", itemgetter("network")),
        words("target", lambda row: f"`{row['target']}`"),
        Column("of the multiplications", itemgetter("quantised"), form=SHARE),
        Column("bytes over FP16", itemgetter("bytes over FP16"), form=RATIO),
    ]
    return Table("plans", "Plans of TensorRT-RTX", columns, rows)


def _error_of(row: Row, kind: str) -> float | None:
    """Of a network with trained weights."""
    error: float | None = row.get(f"{kind}, error")
    return error


def _over(row: Row, kind: str, key: str) -> float:
    """Of a kind of weights over FP32; the first is a ratio already."""
    value: float = row[f"{kind}, {key}"]
    return value if "over" in key else value / row[f"fp32, {key}"]


def _backend(name: str) -> str:
    for old, new in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")):
        name = name.replace(old, new)
    return re.sub("(fp32|bf16|int8)", lambda found: found[0].upper(), name)


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
