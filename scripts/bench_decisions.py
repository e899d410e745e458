"""The figures behind docs/decisions.md: ONNX Runtime's threads, levels, and operators."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import eecompile.compiler.trace as trace
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.graph.merge import merged_exits
from eecompile.store.bundle import open_bundle, open_engine_set

Row = dict[str, Any]
SideBySide = Callable[[dict[str, Callable[[], object]], int], dict[str, float]]
THREADS = ("no spinning", "spinning", "spinning within a run", "one global pool")
LEVELS = onnxruntime.GraphOptimizationLevel


def inputs(batch: int) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    return {
        "x": draws.standard_normal((batch, 1, 28, 28), np.float32),
        "t": np.full(batch, 500, np.float32),
        "label": np.arange(batch) % 10,
    }


def session(
    path: Path, level: Any = LEVELS.ORT_ENABLE_ALL, threads: str = "spinning within a run"
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    if threads == "one global pool":
        options.use_per_session_threads = False
    elif threads == "no spinning":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    elif threads == "spinning within a run":
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def thread_mode(engines: Path, mode: str, side_by_side: SideBySide, rounds: int) -> Row:
    """Milliseconds at each exit, the four sessions taking turns; in this process alone."""
    if mode == "one global pool":
        onnxruntime.set_global_thread_pool_sizes(0, 1)
    manifest = open_engine_set(engines)
    sessions = {
        str(segment.exits[0]): session(engines / segment.file, threads=mode)
        for segment in manifest.segments
    }
    row: Row = {"threads": mode}
    for batch in (1, 16):
        feeds = inputs(batch)
        actions: dict[str, Callable[[], object]] = {
            depth: lambda s=opened, f=feeds: s.run(None, f) for depth, opened in sessions.items()
        }
        medians = side_by_side(actions, rounds if batch > 1 else 5 * rounds)
        row |= {f"exit {depth}, batch {batch}": 1e3 * v for depth, v in medians.items()}
    return row


def thread_modes(engines: Path, rounds: int) -> list[Row]:
    """Each mode in processes of its own, in three rounds of all; the medians."""
    code = (
        "import json, sys; from pathlib import Path; import bench_decisions as d; import bench\n"
        "path, mode, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])\n"
        "print(json.dumps(d.thread_mode(path, mode, bench.side_by_side, rounds)))"
    )
    runs: dict[str, list[Row]] = {mode: [] for mode in THREADS}
    for _ in range(3):
        for mode in THREADS:
            command = [sys.executable, "-c", code, str(engines), mode, str(rounds)]
            done = subprocess.run(
                command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True
            )
            runs[mode].append(json.loads(done.stdout))
    return [
        {"threads": mode}
        | {key: float(np.median([row[key] for row in rows])) for key in rows[0] if key != "threads"}
        for mode, rows in runs.items()
    ]


def levels(engines: Path, side_by_side: SideBySide, rounds: int) -> list[Row]:
    """The stored graphs opened as they are, and with the layout for this processor."""
    rows = []
    for segment in open_engine_set(engines).segments:
        opened = {
            "as stored": session(engines / segment.file, LEVELS.ORT_DISABLE_ALL),
            "laid out": session(engines / segment.file, LEVELS.ORT_ENABLE_ALL),
        }
        for batch in (1, 16):
            feeds = inputs(batch)
            actions: dict[str, Callable[[], object]] = {
                name: lambda s=opened_, f=feeds: s.run(None, f) for name, opened_ in opened.items()
            }
            medians = side_by_side(actions, rounds if batch > 1 else 5 * rounds)
            row: Row = {"exit": segment.exits[0], "batch": batch}
            rows.append(row | {name: 1e3 * value for name, value in medians.items()})
    return rows


def attention(recipe: Path, side_by_side: SideBySide, rounds: int) -> list[Row]:
    """Full depth from opset 23, with its Attention operator, and from opset 20, without."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        opened, nodes = {}, {}
        for opset in (23, 20):
            trace.OPSET = opset
            folder = Path(temporary) / str(opset)
            bundle_from_recipe(recipe, folder)
            deepest = open_bundle(folder).exits[-1]
            opened[f"opset {opset}"] = session(folder / deepest.graph)
            nodes[f"nodes, opset {opset}"] = deepest.nodes
        trace.OPSET = 23
        for batch in (1, 16, 64):
            feeds = inputs(batch)
            actions: dict[str, Callable[[], object]] = {
                name: lambda s=opened_, f=feeds: s.run(None, f) for name, opened_ in opened.items()
            }
            medians = side_by_side(actions, rounds if batch > 1 else 5 * rounds)
            rows.append({"batch": batch, **{n: 1e3 * v for n, v in medians.items()}, **nodes})
    return rows


def one_graph(bundle: Path, side_by_side: SideBySide, rounds: int) -> list[Row]:
    """One graph with all exits as outputs, asked for one exit only, against a graph an exit."""
    import onnx_ir as ir

    manifest = open_bundle(bundle)
    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    feeds, rows = inputs(1), []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "all.onnx"
        ir.save(merged_exits(bundle, manifest), path, external_data="all.bin")
        joint = session(path)
        for exit_ in manifest.exits:
            own = session(bundle / exit_.graph)
            name = own.get_outputs()[0].name
            actions: dict[str, Callable[[], object]] = {
                "its own graph": lambda s=own: s.run(None, feeds),
                "from the joint graph": lambda n=name: joint.run([n], feeds, options),
            }
            medians = side_by_side(actions, 5 * rounds)
            rows.append({"exit": exit_.depth} | {n: 1e3 * v for n, v in medians.items()})
    return rows
