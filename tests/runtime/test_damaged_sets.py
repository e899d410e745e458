"""Engine sets with right digests whose manifests and engines do not fit one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eecompile.errors import BackendError
from eecompile.programs.interface import Condition, State
from eecompile.runtime.opening import open_engine
from eecompile.store.bundle import open_engine_set, write_manifest

replace = msgspec.structs.replace


@pytest.mark.parametrize("layout", ["per_exit", "chained"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": State(shape=(1, 28, 29))}, r"tensor x of type .*28, 28\].*\[batch, 1, 28, 29\]"),
        ({"state": State(shape=(2**30,))}, r"tensor x of type .*\[batch, 1073741824\]"),
        ({"conditions": {"label": Condition(dtype="float32")}}, r"tensor label of type .*int64"),
        ({"conditions": {"label": Condition(dtype="int64", shape=(2,))}}, r"label .*\[batch, 2\]"),
    ],
)
def test_samples_of_another_shape_than_the_engines_take_are_refused_when_opened(
    small_sets: dict[str, Path],
    copied: Callable[[Path], Path],
    layout: str,
    change: dict[str, Any],
    words: str,
) -> None:
    folder = copied(small_sets[layout])
    manifest = open_engine_set(folder)
    write_manifest(folder, replace(manifest, interface=replace(manifest.interface, **change)))
    with pytest.raises(BackendError, match=rf"{words}.*as its manifest says; build"):
        open_engine(folder)


@pytest.mark.parametrize("options", [{"provider": "magic"}, {"provider": 3}, {"other": True}])
def test_options_that_the_backend_does_not_know_are_refused_when_opened(
    small_sets: dict[str, Path], copied: Callable[[Path], Path], options: dict[str, Any]
) -> None:
    folder = copied(small_sets["chained"])
    manifest = open_engine_set(folder)
    target = replace(manifest.target, options=options)
    write_manifest(folder, replace(manifest, target=target, versions={}))
    with pytest.raises(BackendError, match=r"options .* for onnxruntime; .*'cpu'"):
        open_engine(folder)


def test_an_openvino_set_is_compared_likewise(
    openvino_set: Path, copied: Callable[[Path], Path]
) -> None:
    folder = copied(openvino_set)
    manifest = open_engine_set(folder)
    interface = replace(manifest.interface, state=State(shape=(1, 14, 56)))
    write_manifest(folder, replace(manifest, interface=interface, versions={}))
    with pytest.raises(BackendError, match=r"tensor x of type f32.*\[batch, 1, 14, 56\]"):
        open_engine(folder)
