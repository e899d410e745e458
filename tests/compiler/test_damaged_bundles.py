"""Bundles with right digests whose graphs and weights do not fit one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.graph.merge import exit_outputs, merged_exits
from eecompile.errors import BundleError
from eecompile.store.bundle import open_bundle, records, write_manifest
from eecompile.store.manifest import exit_graph_name
from tests.conftest import SMALL_EXITS, TARGETS

Change = Callable[[GraphProto], object]


def weight(graph: GraphProto) -> TensorProto:
    """One in the weights file."""
    found: TensorProto = next(t for t in graph.initializer if t.external_data)
    return found


def inline(graph: GraphProto) -> TensorProto:
    """One in the graph itself."""
    found: TensorProto = next(t for t in graph.initializer if not t.external_data)
    return found


def put(key: str, value: str) -> Change:
    def change(graph: GraphProto) -> None:
        (entry,) = [entry for entry in weight(graph).external_data if entry.key == key]
        entry.value = value

    return change


def dims(value: int, of: Callable[[GraphProto], TensorProto]) -> Change:
    def change(graph: GraphProto) -> None:
        tensor = of(graph)
        tensor.dims[:] = [value, *tensor.dims[1:]] if tensor.dims else [value]

    return change


def typed(code: int) -> Change:
    return lambda graph: setattr(weight(graph), "data_type", code)


CHANGES: dict[str, Change] = {
    "an offset beyond the file": put("offset", str(2**40)),
    "an offset below it": put("offset", "-4096"),
    "no number": put("offset", "x"),
    "another length": put("length", "4"),
    "another file": put("location", "other.bin"),
    "a huge weight": dims(2**40, weight),
    "a weight of negative length": dims(-3, weight),
    "a huge constant": dims(2**40, inline),
    "a weight of no type": typed(0),
    "a weight of an unknown type": typed(99),
    "a wider weight": typed(TensorProto.DOUBLE),
    "a missing weight": lambda graph: graph.initializer.remove(weight(graph)),
    "an output of another name": lambda graph: setattr(graph.output[0], "name", "other"),
    "an input of another name": lambda graph: setattr(graph.input[0], "name", "other"),
    "no input": lambda graph: graph.input.pop(),
    "nodes out of order": lambda graph: graph.node.insert(0, graph.node.pop()),
    "a node of control flow": lambda graph: graph.node[0].attribute.append(
        onnx.helper.make_attribute("then_branch", graph)
    ),
    "an attribute of no type": lambda graph: graph.node[0].attribute.append(
        onnx.AttributeProto(name="odd")
    ),
}


def damaged(folder: Path, change: Change) -> None:
    """Change the graph of the deepest exit, with its digest."""
    path = folder / exit_graph_name(SMALL_EXITS[-1])
    model: ModelProto = onnx.load(path, load_external_data=False)
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    manifest = open_unchecked(folder)
    write_manifest(folder, msgspec.structs.replace(manifest, files=records(folder)))


def open_unchecked(folder: Path) -> Any:
    from eecompile.store.bundle import MANIFEST
    from eecompile.store.manifest import BundleManifest

    return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=BundleManifest)


@pytest.mark.parametrize("name", CHANGES)
def test_graphs_that_export_does_not_write_are_told_of(
    small_bundle: Path, copied: Callable[[Path], Path], name: str
) -> None:
    folder = copied(small_bundle)
    damaged(folder, CHANGES[name])
    with pytest.raises(BundleError) as caught:
        interface = open_bundle(folder).interface
        exit_outputs(merged_exits(folder, interface.exits), interface)
    assert len(str(caught.value)) < 2000
    assert "export" in str(caught.value) or "write it anew" in str(caught.value)


def test_a_build_tells_of_them(small_bundle: Path, copied: Callable[[Path], Path]) -> None:
    folder = copied(small_bundle)
    damaged(folder, CHANGES["a huge weight"])
    with pytest.raises(BundleError, match=r"for a weight of shape \[1099511627776"):
        engine_set_from_bundle(folder, TARGETS["per_exit"], folder.with_name("engines"))
    assert not folder.with_name("engines").exists()
