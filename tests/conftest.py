"""The shipped network, exported and built once for the whole run."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eecompile.runtime.sampler import Sampler

Beside = Callable[[str], str]
ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "export" / "fashion-dit.toml"
TARGETS = {
    "per_exit": ROOT / "engines" / "cpu.toml",
    "chained": ROOT / "engines" / "cpu-chained.toml",
}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped network; not to be written to."""
    from eecompile.compiler.export import bundle_from_recipe

    folder = tmp_path_factory.mktemp("shared") / "bundle"
    bundle_from_recipe(RECIPE, folder)
    return folder


@pytest.fixture(scope="session")
def engine_sets(bundle: Path) -> dict[str, Path]:
    """An engine set a layout; not to be written to."""
    from eecompile.compiler.build import engine_set_from_bundle

    folders = {layout: bundle.parent / layout for layout in TARGETS}
    for layout, folder in folders.items():
        engine_set_from_bundle(bundle, TARGETS[layout], folder)
    return folders


@pytest.fixture(params=["per_exit", "chained"])
def sampler(request: pytest.FixtureRequest, engine_sets: dict[str, Path]) -> Sampler:
    """A sampler of the shipped network, in each layout."""
    return Sampler.open(engine_sets[request.param])


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a folder to where the test may damage it."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / folder.name))

    return copy


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    """Writes a module beside the recipe, and says what it is called."""
    name = "written_beside_the_recipe"

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    yield write
    sys.modules.pop(name, None)
