"""The documents' tables are those that the benchmarks' JSON makes."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("bench_tables")


@pytest.fixture
def copied(tables: Any, tmp_path: Path) -> Path:
    """The documents and the JSON of this project, to change."""
    names = ("peers", "caching", "networks", "spans", "precision", "export")
    one = [
        path
        for name in names
        for path in tables.results_files(name)
        if "-cpu" in path.stem or name == "precision"
    ]
    for path in [*tables.documents(), *one]:
        place = tmp_path / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return tmp_path


def test_the_documents_hold_what_the_script_writes(tables: Any) -> None:
    for path, text in tables.documents().items():
        assert path.read_text() == text, "run scripts/bench peers --tables"


def test_a_new_figure_reaches_both_documents(tables: Any, copied: Path) -> None:
    tables.write_tables(copied)
    assert tables.write_tables(copied) == []
    (path,) = tables.results_files("peers", copied)
    result = json.loads(path.read_text())
    row = result["DiT-S/2"]["rows"][-1]
    assert row["by"].startswith("eecompile")
    row[tables.SAME] = [7.11, 7.77, 7.99]
    path.write_text(json.dumps(result))
    (copied / "docs" / "benchmarks" / "peers-other.json").write_text(json.dumps(result))
    before = (copied / "README.md").read_text()
    assert len(tables.write_tables(copied)) == 2
    readme = (copied / "README.md").read_text()
    assert readme.count("| 7.77 |") == 2  # one machine each
    assert readme.partition(BEGIN)[0] == before.partition(BEGIN)[0]
    assert readme.partition(END)[2] == before.partition(END)[2]
    whole = (copied / "docs" / "compare.md").read_text()
    assert whole.count("| 7.77 (7.11 to 7.99) |") == 2
    assert tables.write_tables(copied) == []


def test_what_was_measured_of_caching_reaches_its_document(tables: Any, copied: Path) -> None:
    rows = [
        {"by": "ours", "setting": setting, "ms per sample": ms, "distance": distance}
        for setting, ms, distance in (("full depth", 9.0, 0.0), ("best", 3.25, 0.002))
    ]
    facts = {"cpu": "some CPU", "cores": 2}
    result = {"machine": facts, "batch": 4, "cases": {"ddim": {"rows": rows, "skipped": {}}}}
    (copied / "docs" / "benchmarks" / "caching-other.json").write_text(json.dumps(result))
    assert tables.write_tables(copied) == [copied / "docs" / "compare.md"]
    text = (copied / "docs" / "compare.md").read_text()
    assert "**ddim on some CPU, 2 cores, batch 4: ms per sample**" in text
    assert "| ours | 9.00 | 3.25 (best) | 3.25 (best) | 3.25 (best) |" in text


def test_a_document_without_its_marks_is_not_touched(tables: Any, copied: Path) -> None:
    readme = copied / "README.md"
    readme.write_text(readme.read_text().replace(END, ""))
    before = readme.read_text()
    with pytest.raises(SystemExit, match="once in each document"):
        tables.write_tables(copied)
    assert readme.read_text() == before
