"""What docs/how-to/diffusers-pipeline.md shows is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eecompile.diffusers import EngineNetwork
from tests.docs.test_how_to import HOW_TO
from tests.docs.test_scheduler_how_to import BLOCK
from tests.test_diffusers import decoder, dit

__all__ = ["decoder", "dit"]
pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own


@pytest.mark.posix
def test_its_code_runs(
    dit: tuple[object, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, folder = dit
    (tmp_path / "out" / "dit").mkdir(parents=True)
    (tmp_path / "out" / "dit" / "cpu").symlink_to(folder / "per_exit")
    monkeypatch.chdir(tmp_path)
    blocks = [text for _, text in BLOCK.findall((HOW_TO / "diffusers-pipeline.md").read_text())]
    names = {"pipe": pipe}
    own = pipe.transformer  # type: ignore[attr-defined]
    for block in blocks:
        exec(block.replace("28", "5").replace("50", "8"), names)  # a network of 5 blocks
    assert np.isfinite(np.asarray(names["images"][0])).all()  # type: ignore[index]
    assert isinstance(pipe.transformer, EngineNetwork)  # type: ignore[attr-defined]
    pipe.transformer = own  # type: ignore[attr-defined]
