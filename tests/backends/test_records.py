"""The records of backends: what they name exists, and pyproject.toml says the same."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Set

import pytest

from eecompile.backends import (
    BACKENDS,
    PEERS,
    TARGET_BACKENDS,
    Backend,
    backend_from_library,
    backend_from_target,
    packages,
)
from eecompile.store.target import load_target
from tests.conftest import ROOT

EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
TARGETS = {path.stem: load_target(path) for path in (ROOT / "engines").glob("*.toml")}
every = pytest.mark.parametrize("backend", BACKENDS.values(), ids=lambda backend: backend.name)


def installed_by(extra: str) -> Set[str]:
    """The distributions that an extra installs, by the extras that it names in turn."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        name, more = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()  # type: ignore[union-attr]
        if name == "eecompile":
            found |= {each for inner in more.split(",") for each in installed_by(inner)}
        else:
            found.add(name)
    return found


@every
def test_a_backends_extras_install_what_it_needs(backend: Backend) -> None:
    needed = {backend.package} | ({"cuda-core"} if backend.gpu else set())
    assert needed <= installed_by(backend.runtime_extra or backend.extra)
    assert needed | set(backend.tools) <= installed_by(backend.extra)
    assert backend.install == f"pip install 'eecompile[{backend.extra}]'"
    assert backend.install_to_run in (
        f"pip install 'eecompile[{name}]'" for name in (backend.extra, backend.runtime_extra)
    )


@every
def test_what_a_record_names_is_there(backend: Backend) -> None:
    for module in (backend.build, backend.run, backend.probe.partition(":")[0]):
        assert not module or importlib.util.find_spec(module)
    assert not backend.flavour_of or backend.flavour_of in TARGET_BACKENDS
    if backend.family:
        assert any(re.fullmatch(backend.family, backend.package + end) for end in ("", "-cu13"))


@pytest.mark.parametrize("name", TARGET_BACKENDS)
def test_every_backend_has_a_target_that_its_record_allows(name: str) -> None:
    targets = [target for target in TARGETS.values() if target.backend == name]
    assert targets
    for target in targets:
        backend = backend_from_target(name, target.options)
        assert target.precision in backend.precisions
        assert target.layout in backend.layouts


def test_a_targets_options_choose_the_flavour() -> None:
    assert backend_from_target("onnxruntime", {}).name == "onnxruntime"
    assert backend_from_target("onnxruntime", {"provider": "cpu"}).name == "onnxruntime"
    for provider in ("cuda", "tensorrt"):
        assert backend_from_target("onnxruntime", {"provider": provider}).name == "onnxruntime-cuda"
    assert backend_from_target("tensorrt", {"version_compatible": True}).name == "tensorrt"
    with pytest.raises(KeyError):
        backend_from_target("caffe", {})


def test_libraries_packages_and_peers() -> None:
    known = {module: backend_from_library(module) for module in ("onnxruntime", "tensorrt_rtx")}
    assert [each and each.extra for each in known.values()] == ["cpu", "rtx"]
    assert backend_from_library("torch") is None
    assert packages("onnxruntime") == ("onnxruntime", "onnxruntime-gpu")
    assert packages("tensorrt-rtx") == ("tensorrt-rtx", "polygraphy")
    assert PEERS == ("onnxruntime", "openvino", "torch.compile", "tensorrt", "tensorrt-rtx")
