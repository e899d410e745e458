"""What docs/how-to/prompt-to-picture.md shows is true."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from eecompile.recipe import load_recipe
from eecompile.store.target import load_target
from tests.compiler.test_companions import folder
from tests.docs.test_how_to import HOW_TO

__all__ = ["folder"]
DOCUMENT = HOW_TO / "prompt-to-picture.md"
NETWORK = """
name = "sd3"
[network]
factory = "diffusers:SD3Transformer2DModel"
checkpoint = "w.safetensors"
exits = [24]
[state]
shape = [16, 128, 128]
"""


def block(language: str, words: str) -> str:
    """The only block of that language that holds these words."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.M)
    (text,) = (each for each in found if words in each)
    return text


def test_its_recipe_and_its_target_are_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(NETWORK + block("toml", "[decoder]"))
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert list(recipe.encoders) == ["clip", "clip_g", "t5"]
    assert recipe.decoder is not None
    target = 'name = "rtx"\nbackend = "tensorrt-rtx"\n' + block("toml", "[companions]")
    (tmp_path / "target.toml").write_text(target)
    assert load_target(tmp_path / "target.toml").for_companions.backend == "onnxruntime"


def test_its_code_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "pixart-xl-2-512x512").mkdir(parents=True)
    (tmp_path / "out" / "pixart-xl-2-512x512" / "cpu").symlink_to(folder / "cpu")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block("python", "prompt="), names)
    assert np.shape(names["pictures"]) == (2, 3, 16, 16)  # type: ignore[arg-type]
