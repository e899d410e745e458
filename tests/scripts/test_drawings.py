"""The drawings of the documents are those of the figures that are stored."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eecompile.errors import UsageError
from tests.conftest import ROOT


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import drawings

    yield drawings
    sys.modules.pop("drawings", None)


def test_what_is_stored_is_what_the_figures_give(
    drawings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["drawings.py", "--check"])
    drawings.drawn()
    monkeypatch.setattr(drawings, "IMAGES", tmp_path)
    with pytest.raises(UsageError, match=r"run python scripts/drawings\.py"):
        drawings.drawn()


def test_drawings_are_svg_with_a_title_and_show_every_document_s(drawings: Any) -> None:
    documents = "".join(path.read_text() for path in ROOT.glob("docs/*.md"))
    for name, svg in drawings.made().items():
        title = ET.fromstring(svg).find("{http://www.w3.org/2000/svg}title")
        assert title is not None
        assert title.text
        assert f"images/{name}.svg" in documents
