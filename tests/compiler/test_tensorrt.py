"""TensorRT proper, where it cannot be installed: its lean runtime, and what is refused."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eecompile.backends import BACKENDS
from eecompile.compiler.backends import tensorrt as backend
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.errors import BackendError
from eecompile.measure.machine import Gpu
from eecompile.store.target import load_target
from tests.conftest import ROOT

PLAN = ROOT / "eecompile" / "compiler" / "backends" / "_plan.py"
# What TensorRT has for building, which its lean runtime leaves out.
BUILDING = {"Builder", "INetworkDefinition", "ITensor", "NetworkDefinitionCreationFlag"}
BUILDING |= {"IBuilderConfig", "OnnxParser"}
GPU = Gpu("NVIDIA L4", "8.9", 24 << 30, "575.1", "13.0")


def names() -> set[str]:
    """Every name of the library that is used where plans are built, such as ``Logger.ERROR``."""
    found = set()
    for node in ast.walk(ast.parse(PLAN.read_text())):
        parts: list[str] = []
        here: ast.AST = node
        while isinstance(here, ast.Attribute):
            parts.append(here.attr)
            here = here.value
        if parts and isinstance(here, ast.Name) and here.id == "trt":
            found.add(".".join(reversed(parts)))
    return found - {"__name__"}


@pytest.mark.parametrize("library", ["tensorrt_lean_bindings", "tensorrt_rtx"])
def test_the_names_that_building_uses_are_there(library: str) -> None:
    module: Any = pytest.importorskip(library)
    used = names()
    assert {"Builder", "IProgressMonitor", "MemoryPoolType.WORKSPACE"} <= used
    for name in sorted(used):
        first, *rest = name.split(".")
        if library == "tensorrt_lean_bindings" and first in BUILDING:
            continue
        if library == "tensorrt_rtx" and first == "HardwareCompatibilityLevel":
            continue  # TensorRT-RTX has compute capabilities instead
        place = getattr(module, first)
        for part in rest:
            place = getattr(place, part)


def test_the_lean_runtime_is_the_version_that_the_project_knows() -> None:
    lean: Any = pytest.importorskip("tensorrt_lean_bindings")
    assert int(lean.__version__.split(".")[0]) >= 11
    for method in ("phase_start", "step_complete", "phase_finish"):
        assert hasattr(lean.IProgressMonitor, method)


def test_without_a_gpu_nothing_is_built(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target(ROOT / "engines" / "tensorrt-fp16.toml")
    with pytest.raises(BackendError, match=r"no package tensorrt; .*eecompile\[tensorrt\]"):
        engine_set_from_bundle(bundle, target, tmp_path / "set")
    monkeypatch.setattr(backend, "check_installed", lambda _: None)
    monkeypatch.setattr(backend, "gpus", lambda: ())
    with pytest.raises(BackendError, match=r"no NVIDIA GPU; .*engines/rtx-fp16\.toml"):
        engine_set_from_bundle(bundle, target, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_fp8_is_refused_on_a_gpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target(ROOT / "engines" / "tensorrt-fp8.toml")
    monkeypatch.setattr(backend, "check_installed", lambda _: None)
    monkeypatch.setattr(backend, "gpus", lambda: (GPU,))
    backend.check(target)
    old = msgspec.structs.replace(GPU, compute_capability="8.6")
    monkeypatch.setattr(backend, "gpus", lambda: (old,))
    with pytest.raises(BackendError, match=r"FP8 for compute capability 8\.6; expected 8\.9"):
        backend.check(target)
    backend.check(load_target(ROOT / "engines" / "tensorrt-int8.toml"))


@pytest.mark.parametrize("options", [{"optimization_level": "high"}, {"fast": True}])
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    target = load_target(ROOT / "engines" / "tensorrt-fp16.toml")
    with pytest.raises(BackendError, match=r"optimization_level \(int\), version_compatible"):
        backend.check(msgspec.structs.replace(target, options=options))


def test_plans_are_tied_to_the_gpu_and_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "gpus", lambda: (GPU,))
    found = backend.versions()
    assert found["GPU"] == "NVIDIA L4"
    assert found["compute capability"] == "8.9"
    assert found["driver"] == "575.1"


def test_stubs_without_code_are_not_taken_for_the_library() -> None:
    shared: Any = importlib.import_module("eecompile.compiler.backends._tensorrt")
    with pytest.raises(BackendError, match="no package tensorrt"):
        shared.check_installed(BACKENDS["tensorrt"])


@pytest.mark.parametrize("name", ["tensorrt-fp16", "rtx-fp16"])
def test_plans_are_verified_where_they_can_be_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: Any = importlib.import_module("eecompile.compiler.backends._tensorrt")
    target = load_target(ROOT / "engines" / f"{name}.toml")
    library = "tensorrt" if name.startswith("tensorrt") else "tensorrt_rtx"
    present = {library, "cuda.core"}
    monkeypatch.setattr(shared, "_installed", lambda module: module in present)
    monkeypatch.setattr(shared, "gpus", lambda: ())
    assert not shared.runs(target)
    monkeypatch.setattr(shared, "gpus", lambda: (GPU,))
    assert shared.runs(target)
    for missing in (library, "cuda.core"):
        present.remove(missing)
        assert not shared.runs(target)
        present.add(missing)


def test_plans_of_tensorrt_rtx_can_be_captured() -> None:
    library: Any = pytest.importorskip("tensorrt_rtx")
    assert "library.BuilderFlag.REQUIRE_USER_ALLOCATION" in PLAN.read_text()
    assert hasattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION")
