"""Published networks at a small size, exported once for all workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TARGETS, Shared, building


@pytest.fixture(scope="session")
def network(shared: Shared) -> Callable[[str], Path]:
    """The recipe, weights and bundle of a small network by its name; not to be written to."""

    def made(name: str) -> Path:
        def make(folder: Path) -> None:
            from eecompile.compiler.export import bundle_from_recipe
            from tests.compiler.small_networks import write

            folder.mkdir()
            bundle_from_recipe(write(name, folder), folder / "bundle")

        return shared(f"network-{name}".replace(" ", "-"), make)

    return made


@pytest.fixture(scope="session")
def network_sets(shared: Shared, network: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same with an engine set a layout, per_exit and chained; not to be written to."""

    def made(name: str) -> Path:
        folder = network(name)

        def make(marker: Path) -> None:
            for layout, target in TARGETS.items():
                building(folder / "bundle", target)(folder / layout)
            marker.mkdir()

        shared(f"{folder.name}-sets", make)
        return folder

    return made
