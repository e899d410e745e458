"""One export of a small network, and one build of it for each backend and layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.store.target import Target
from tests.backends import network

Built = Callable[[Target], Path]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small network; not to be written to."""
    folder = tmp_path_factory.mktemp("small")
    bundle_from_recipe(network.write(folder), folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="session")
def built(small: Path) -> Built:
    """The small network's engine set for a target, built once; not to be written to."""

    def build(target: Target) -> Path:
        folder = small.parent / target.name
        if not folder.exists():
            engine_set_from_bundle(small, target, folder)
        return folder

    return build
