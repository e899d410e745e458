"""What the documents show is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eecompile.recipe import load_recipe
from tests.conftest import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("e*/*.md")])


@pytest.mark.posix
@pytest.mark.parametrize("name", ["README.md", "docs/runtime.md", "docs/choices.md"])
def test_the_examples_run(engine_sets: dict[str, Path], tmp_path: Path, name: str) -> None:
    (code,) = examples(name)
    assert len(run(code, engine_sets, tmp_path).splitlines()) in (20, 50)


@pytest.mark.posix
@pytest.mark.parametrize("name", ["docs/serving.md", "docs/trust.md"])
def test_the_first_example_runs(engine_sets: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Those after it need Triton, Ray or a key, which their own tests have."""
    first, *_ = examples(name)
    shown = run(f"import eecompile\n{first}\nprint(len(images))", engine_sets, tmp_path)
    assert int(shown) in (3, 16)


def examples(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def run(code: str, engine_sets: dict[str, Path], folder: Path) -> str:
    """What it prints, run as a user would beside the engine set of the demonstration."""
    place = folder / "out" / "fashion-dit"
    place.mkdir(parents=True)
    (place / "cpu").symlink_to(engine_sets["per_exit"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures_exist(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(document: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_readme_stays_short() -> None:
    """At most 100 lines and 20 numbers: what does not fit belongs to docs/."""
    text = (ROOT / "README.md").read_text()
    seen = re.sub(r"\]\([^)]*\)", "]", text)  # a link's address is not read
    numbers = re.findall(r"(?<![\w/-])\d+(?:[.,]\d+)*(?!\w)", seen)  # nor is DiT-S/2 a number
    assert len(text.splitlines()) <= 100
    assert len(numbers) <= 20


def test_the_table_of_recipes_says_what_they_hold() -> None:
    for line in (ROOT / "export" / "README.md").read_text().splitlines():
        if not line.startswith("| `"):
            continue
        name, _, exits, cuts, shape, companions = line.strip("| ").split(" | ")
        recipe = load_recipe(ROOT / "export" / name.strip("`"))
        assert exits == ", ".join(map(str, recipe.network.exits)), name
        assert cuts == ", ".join(map(str, recipe.network.cuts_or_default)), name
        assert shape == "x".join(map(str, recipe.state.shape)), name
        assert (companions == "none") == (not recipe.encoders and recipe.decoder is None), name


def test_every_recipe_and_target_is_listed() -> None:
    for folder in ("export", "engines"):
        listing = (ROOT / folder / "README.md").read_text()
        for path in (ROOT / folder).glob("*.toml"):
            assert f"`{path.name}`" in listing
