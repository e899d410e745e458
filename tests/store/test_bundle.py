from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import onnx
import pytest
from hypothesis import given

from eecompile.errors import BundleError, DigestError, FormatError
from eecompile.programs.interface import Condition, Interface, State
from eecompile.programs.meaning import is_condition_name
from eecompile.programs.process import Process
from eecompile.programs.schedule import ExitSchedule
from eecompile.store.bundle import (
    MANIFEST,
    WEIGHTS,
    older_identity,
    open_bundle,
    open_engine_set,
    peek,
    records,
    write_manifest,
)
from eecompile.store.manifest import (
    FORMAT,
    BundleManifest,
    ExitGraph,
    FileRecord,
    Sharing,
    exit_graph_name,
)
from tests.conftest import ROOT

Copy = Callable[[Path], Path]
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
inputs = st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True).filter(is_condition_name)
sizes = st.integers(0, 2**60)
floats = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def manifests(draw: st.DrawFn) -> BundleManifest:
    exits = sorted(draw(st.sets(st.integers(1, 99), min_size=1, max_size=6)))
    condition = Condition(
        dtype="int64", range=(0, draw(st.integers(1, 999))), default="cycle", null=-1
    )
    interface = Interface(
        name=draw(names),
        exits=tuple(exits),
        state=State(shape=tuple(draw(st.lists(st.integers(1, 512), max_size=3)))),
        conditions=draw(st.dictionaries(inputs, st.just(condition), max_size=2)),
        process=Process(timesteps=draw(st.integers(1, 4000))),
        schedules={"full": ExitSchedule.constant(exits[-1])},
    )
    graphs = [
        ExitGraph(
            depth=depth,
            graph=exit_graph_name(depth),
            nodes=draw(sizes),
            parameters=draw(sizes),
            bytes=draw(sizes),
            unique_bytes=draw(sizes),
            worst_error=draw(floats),
            mean_error=draw(floats),
            relative_error=draw(floats),
        )
        for depth in exits
    ]
    shared = st.builds(Sharing, exits=st.just(tuple(exits)), nodes=sizes, bytes=sizes)
    return BundleManifest(
        interface=interface,
        exits=tuple(graphs),
        files=(),
        versions=draw(st.dictionaries(names, names, max_size=3)),
        sharing=tuple(draw(st.lists(shared, max_size=3))),
        sources=draw(st.dictionaries(names, names, max_size=2)),
        reference="torch",
        checked_timesteps=tuple(draw(st.lists(st.integers(0, 999), max_size=3))),
        checked_batches=(1, 2),
    )


@given(manifest=manifests())
def test_a_manifest_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, manifest: BundleManifest
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    graphs = {exit_graph_name(depth) for depth in manifest.interface.exits}
    for name in graphs | {graph.graph for graph in manifest.exits}:
        (folder / name).touch()
    manifest = msgspec.structs.replace(manifest, files=records(folder))
    written = write_manifest(folder, manifest)
    assert open_bundle(folder) == written
    assert msgspec.structs.replace(written, digest="") == manifest


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", ".hidden", "a/b", ""])
def test_a_file_name_that_leaves_the_folder_is_refused(name: str) -> None:
    data = json.dumps({"name": name, "bytes": 0, "sha256": ""})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(data, type=FileRecord)


@pytest.mark.parametrize(
    "name", ["../../precious", "/tmp/precious", ".", "a/b", "\x1b[31m", "n" * 201]
)
def test_a_network_s_name_of_which_no_folder_can_be_named_is_refused(
    tmp_path: Path, name: str
) -> None:
    stored = (ROOT / "tests" / "golden" / "reports" / "bundle.json").read_bytes()
    manifest = msgspec.json.decode(stored, type=BundleManifest)
    interface = msgspec.structs.replace(manifest.interface, name=name)
    changed = msgspec.structs.replace(manifest, interface=interface)
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(changed))
    with pytest.raises(DigestError, match=r"\$\.interface\.name"):
        open_bundle(tmp_path)


def test_every_file_of_a_bundle_is_checked(bundle: Path, copied: Copy) -> None:
    folder = copied(bundle)
    for record in open_bundle(folder).files:
        path = folder / record.name
        whole = path.read_bytes()
        middle = len(whole) // 2
        altered = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for damaged in (whole[:-1], altered, b""):
            path.write_bytes(damaged)
            with pytest.raises(DigestError, match=re.escape(record.name)):
                open_bundle(folder)
        path.unlink()
        with pytest.raises(DigestError, match="no such file"):
            open_bundle(folder)
        path.write_bytes(whole)
    open_bundle(folder)


@pytest.mark.parametrize("layout", ["bundle", "per_exit", "chained"])
def test_every_file_that_is_read_must_be_listed(
    bundle: Path, engine_sets: dict[str, Path], copied: Copy, layout: str
) -> None:
    folder = copied(bundle if layout == "bundle" else engine_sets[layout])
    opening = open_bundle if layout == "bundle" else open_engine_set
    manifest = opening(folder)
    for record in manifest.files:
        others = tuple(each for each in manifest.files if each != record)
        write_manifest(folder, msgspec.structs.replace(manifest, files=others))
        with pytest.raises(DigestError, match=f"'{record.name}', which is read, but not listed"):
            opening(folder)
    write_manifest(folder, msgspec.structs.replace(manifest, files=()))
    with pytest.raises(DigestError, match="not listed"):
        opening(folder)
    (folder / "README.md").write_text("what nothing reads needs no record")
    write_manifest(folder, manifest)
    opening(folder)


@pytest.mark.parametrize(
    "place", ["other.bin", "../other.bin", "/etc/passwd", "deep/other.bin", "o" * 300]
)
def test_a_graph_with_weights_in_a_file_that_is_not_listed_is_refused(
    engine_sets: dict[str, Path], copied: Copy, place: str
) -> None:
    folder = copied(engine_sets["chained"])
    manifest = open_engine_set(folder)
    graph = folder / manifest.segments[-1].file
    model = onnx.load(graph, load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    (entry,) = [entry for entry in outside[-1].external_data if entry.key == "location"]
    entry.value = place
    onnx.save(model, graph)
    shutil.copyfile(folder / WEIGHTS, folder / "other.bin")
    every = records(folder)
    fewer = tuple(each for each in every if each.name != "other.bin")
    write_manifest(folder, msgspec.structs.replace(manifest, files=fewer))
    with pytest.raises(DigestError, match=f"{place}', which is read, but not listed"):
        open_engine_set(folder)
    write_manifest(folder, msgspec.structs.replace(manifest, files=every))
    if place == "other.bin":
        open_engine_set(folder)


def test_an_altered_manifest_is_refused(bundle: Path, copied: Copy) -> None:
    path = copied(bundle) / MANIFEST
    text = path.read_text()
    path.write_text(text.replace('"timesteps": 1000', '"timesteps": 999'))
    with pytest.raises(DigestError, match="another digest"):
        open_bundle(path.parent)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DigestError, match="truncated"):
        open_bundle(path.parent)
    with pytest.raises(DigestError, match="truncated"):
        peek(path.parent)


def test_a_newer_format_says_so(bundle: Path, copied: Copy) -> None:
    path = copied(bundle) / MANIFEST
    newer = json.loads(path.read_text()) | {"format": FORMAT + 1, "unheard_of": True}
    path.write_text(json.dumps(newer))
    with pytest.raises(
        FormatError, match=rf"format {FORMAT + 1} .* expected format {FORMAT}; upgrade"
    ):
        open_bundle(path.parent)
    assert older_identity(path.parent) == ()


def test_an_older_format_says_so_and_is_recognised(
    bundle: Path, engine_sets: dict[str, Path], copied: Copy
) -> None:
    for folder, identity in (
        (copied(bundle), ("fashion-dit",)),
        (copied(engine_sets["chained"]), ("fashion-dit", "cpu-chained")),
    ):
        path = folder / MANIFEST
        older = json.loads(path.read_text()) | {"format": 1}
        del older["exits"]
        path.write_text(json.dumps(older))
        with pytest.raises(FormatError, match=r"format 1 .* write the folder again"):
            (open_bundle if len(identity) == 1 else open_engine_set)(folder)
        assert older_identity(folder) == identity
    assert older_identity(bundle) == ()


def test_a_bundle_is_no_engine_set(bundle: Path, engine_sets: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match="expected an engine-set"):
        open_engine_set(bundle)
    with pytest.raises(BundleError, match="found an engine-set"):
        open_bundle(engine_sets["chained"])
    assert (peek(bundle), peek(engine_sets["chained"])) == ("bundle", "engine-set")


def test_an_empty_folder_is_neither(tmp_path: Path) -> None:
    for opened in (open_bundle, open_engine_set, peek):
        with pytest.raises(BundleError, match=r"no manifest\.json"):
            opened(tmp_path)
