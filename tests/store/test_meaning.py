"""Manifests with right digests that say what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from eecompile.errors import DigestError
from eecompile.programs.interface import Condition, Interface, State
from eecompile.programs.schedule import ExitSchedule
from eecompile.store.bundle import open_bundle, open_engine_set, records, write_manifest
from eecompile.store.manifest import (
    BundleManifest,
    EngineManifest,
    ExitGraph,
    ExitPlan,
    Segment,
    SpanPlan,
    SpanTensor,
    exit_graph_name,
)
from eecompile.store.target import Target

HEAD = 1 << 30
INTERFACE = Interface(
    name="small",
    exits=(1, 2),
    state=State(shape=(4,), range=(-1.0, 1.0)),
    conditions={"label": Condition(dtype="int64", range=(0, 9), null=10)},
    schedules={"full": ExitSchedule.constant(2), "fast": ExitSchedule.parse("1,2/0-1:0,2")},
    costs=(1.0, 2.0),
    cuts=(0, 1, 2),
)
PARTS = (  # inputs, outputs, exits, level
    ("x t label", "h0", (1, 2), 0),
    ("h0", "h1", (1, 2), 1),
    ("h1", "prediction_001", (1,), HEAD),
    ("h1", "h2", (2,), 2),
    ("h2 x", "prediction_002", (2,), HEAD),
)
PLANS = {1: (0, 1, 2), 2: (0, 1, 3, 4)}
SPANS = ((0, 1, "h1", "h0"), (0, 2, "h2", "h0"), (1, 2, "h2", "h1"))
ERRORS = {"worst_error": 0.0, "mean_error": 0.0, "relative_error": 0.0}


def engine_set() -> dict[str, Any]:
    """A manifest of engines for two exits, and for spans between three cuts."""
    made = EngineManifest(
        interface=INTERFACE,
        target=Target(name="cpu", backend="onnxruntime", layout="chained"),
        exits=tuple(
            ExitPlan(depth=d, segments=s, outputs=(f"prediction_{d:03d}",), **ERRORS)
            for d, s in PLANS.items()
        ),
        spans=tuple(
            SpanPlan(
                start=start,
                stop=stop,
                tensors=(SpanTensor(leaves=leaves, enters=enters, shape=(4,), dtype="float32"),),
                bytes=16,
            )
            for start, stop, leaves, enters in SPANS
        ),
        segments=tuple(
            Segment(
                file=f"segment-{index}.plan",
                inputs=tuple(inputs.split()),
                outputs=tuple(outputs.split()),
                exits=exits,
                nodes=1,
                bytes=0,
                key="",
                level=level,
            )
            for index, (inputs, outputs, exits, level) in enumerate(PARTS)
        ),
        files=(),
        versions={},
        verified="",
        bundle_digest="",
        fingerprint="",
    )
    return _plain(made)


def bundle() -> dict[str, Any]:
    """A manifest of two exits' graphs."""
    made = BundleManifest(
        interface=INTERFACE,
        exits=tuple(
            ExitGraph(
                depth=d, graph=exit_graph_name(d), nodes=1, parameters=0, bytes=0, unique_bytes=0,
                **ERRORS,
            )
            for d in PLANS
        ),
        spans=(SpanPlan(start=0, stop=1, tensors=(), bytes=0),),
        files=(),
        sharing=(),
        versions={},
        sources={},
        reference="",
        checked_timesteps=(),
        checked_batches=(),
    )  # fmt: skip
    return _plain(made)


def _plain(manifest: Any) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(manifest))
    return made


def opened(folder: Path, told: dict[str, Any]) -> Any:
    """What is read where files and digests are right."""
    kind, opening = {
        "bundle": (BundleManifest, open_bundle),
        "engine-set": (EngineManifest, open_engine_set),
    }[told["kind"]]
    manifest = msgspec.json.decode(msgspec.json.encode(told), type=kind)
    for index in range(len(PARTS)):
        (folder / f"segment-{index}.plan").touch()
    for depth in PLANS:
        (folder / exit_graph_name(depth)).touch()
    files = records(folder)
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))  # type: ignore[type-var]
    return opening(folder)


@pytest.mark.parametrize("make", [engine_set, bundle])
def test_what_can_be_is_read(tmp_path: Path, make: Any) -> None:
    assert opened(tmp_path, make()).interface == INTERFACE


INTERFACES = [
    ("exits", [], "exits []"),
    ("exits", [2, 1], "exits [2, 1]"),
    ("exits", [0, 2], "exits [0, 2]"),
    ("exits", [1, 10**9], "exits"),
    ("cuts", [0, 1, 3], "cuts [0, 1, 3]"),
    ("cuts", [0, 0], "cuts [0, 0]"),
    ("costs", [1.0], "costs [1.0]"),
    ("costs", [1.0, 0.0], "costs"),
    ("costs", [0.0, 1.0], "a cost of 0.0"),
    ("costs", [-1.0, 1.0], "costs"),
    ("state.shape", [2**40, 2**40], "samples of shape"),
    ("state.resizable", {"axes": [0], "min": 4, "max": 2**40}, "samples of shape"),
    ("conditions.label.shape", [2**31], "'label' of shape"),
    ("conditions", {"x": {"dtype": "int64"}}, "a condition named 'x'"),
    ("conditions", {"a b": {"dtype": "int64"}}, "a condition named 'a b'"),
    ("schedules.full.choices", [{"type": "exit", "depth": 7}], "depth 7"),
    ("schedules", {}, "schedules [] without 'full'"),
    ("sampling.schedule", "fastest", "without 'full' or 'fastest'"),
    ("sampling.solver", "magic", "solver 'magic'"),
    ("sampling.guided_channels", 5, "5 channels"),
    ("sampling.guidance", 1e300, "guidance 1e+300"),
    ("sampling.guidance_interval", [5.0, 1.0], "guidance interval [5.0, 1.0]"),
]
ENGINES = [
    ("exits.0.segments", [0, 1, -3], "exit 1 of the engines [0, 1, -3]"),
    ("exits.0.segments", [0, 1, 99], "exit 1 of the engines"),
    ("exits.0.segments", [0, 1], "exit 1 of the engines"),
    ("exits.0.segments", [1, 0, 2], "exit 1 of the engines"),
    ("exits.0.segments", [0, 1, 3, 4], "exit 1 of the engines"),
    ("exits.0.outputs", ["prediction_002"], "exit 1 with the outputs"),
    ("exits.0.outputs", [], "exit 1 with the outputs []"),
    ("exits.0.depth", 2, "plans of [2, 2]"),
    ("segments.2.exits", [2], "exit 1 of the engines"),
    ("segments.2.outputs", ["prediction_002"], "exit 1 without ['prediction_001']"),
    ("segments.1.outputs", ["x"], "'x', which segment-1.plan makes once more"),
    ("segments.1.inputs", ["h2"], "'h2', which segment-1.plan reads too early"),
    ("segments.1.inputs", ["nothing"], "'nothing', which segment-1.plan reads too early"),
    ("segments.1.level", 2, "'h1', which segment-3.plan reads"),
    ("segments.1.level", 7, "segment-1.plan at cut 7"),
    ("segments.1.level", -1, "segment-1.plan at cut -1"),
    ("segments.1.file", "segment-0.plan", "two engines in one file"),
    ("spans.0.stop", 3, "span 0-3 at the cuts [0, 1, 2]"),
    ("spans.0.start", 1, "span 1-1"),
    ("spans.0.tensors", [], "span 0-1 that leaves out a tensor"),
    ("spans.0.tensors.0.leaves", "h2", "span 0-1 that leaves out a tensor"),
    ("spans.0.tensors.0.enters", "h1", "span 0-1 that 'h1' does not enter"),
    ("spans.0.tensors.0.enters", "nothing", "span 0-1 that 'nothing' does not enter"),
    ("spans.0.tensors.0.shape", [2**40], "span 0-1 with a tensor of shape"),
    ("spans.0.tensors.0.shape", [-4], "span 0-1 with a tensor of shape"),
    ("target.layout", "per_exit", "spans of exits that are one engine"),
    ("target.precision", "bf16", "engines of bf16, chained, for onnxruntime"),
]
BUNDLES = [
    ("exits.0.depth", 2, "graphs [(2, 'exit-001.onnx')"),
    ("exits.0.graph", "exit-002.onnx", "graphs [(1, 'exit-002.onnx')"),
    ("exits", [], "graphs []"),
    ("spans.0.stop", 0, "span 0-0 at the cuts [0, 1, 2]"),
]


@pytest.mark.parametrize(
    ("make", "place", "value", "words"),
    [(engine_set, *case) for case in ENGINES]
    + [(bundle, *case) for case in BUNDLES]
    + [
        (make, f"interface.{place}", value, words)
        for make in (engine_set, bundle)
        for place, value, words in INTERFACES
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, make: Any, place: str, value: Any, words: str
) -> None:
    told = make()
    *path, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    part = told
    for key in path:
        part = part[key]
    part[last] = value
    if place == "segments.1.level" and value == 2:
        told["spans"] = []
        told["segments"][3]["level"] = 1
    with pytest.raises(DigestError) as caught:
        opened(tmp_path, told)
    assert words in caught.value.found
    assert "manifest.json" in caught.value.found


def test_values_that_cannot_be_together_are_a_damaged_manifest(tmp_path: Path) -> None:
    told = engine_set()
    told["interface"]["state"]["range"] = [1.0, -1.0]
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(told))
    with pytest.raises(DigestError, match=r"state\.range = .*manifest\.json; .*copy the folder"):
        open_engine_set(tmp_path)
