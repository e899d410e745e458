"""One thread, which is fastest for networks so small; a module of a user's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

Beside = Callable[[str], str]


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
