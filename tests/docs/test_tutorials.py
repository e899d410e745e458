"""The notebooks of docs/tutorials run as they stand, and are stored without what they print."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "tutorials"
ORDER = ("first-samples", "schedules", "own-network", "diffusers")  # each may need the first's


def test_all_are_run_and_clean() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(ORDER)
    for path in FOLDER.glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_they_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)  # as where the package and its weights are installed
    shown = {}
    for name in ORDER:
        book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
        outputs = [each for cell in book.cells for each in cell.get("outputs", ())]
        shown[name] = {kind for each in outputs for kind in each.get("data", {})}
    assert all("text/html" in kinds for kinds in shown.values())  # the displays
    assert "image/png" in shown["first-samples"] & shown["own-network"]
