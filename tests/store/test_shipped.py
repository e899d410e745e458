from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from eecompile.compiler.export import bundle_from_recipe
from eecompile.errors import CheckpointError, RecipeError
from eecompile.recipe import load_recipe
from eecompile.store.shipped import missing_package, named_file, packaged, shipped
from eecompile.store.target import load_target
from tests.conftest import RECIPE, ROOT, TARGETS

WEIGHTS = "eecompile_fashion_dit"


def test_what_ships_is_found_by_name_and_by_path() -> None:
    assert set(shipped("export")) == {path.stem for path in (ROOT / "export").glob("*.toml")}
    assert load_recipe(Path("fashion-dit")) == load_recipe(RECIPE)
    assert load_target(Path("cpu-chained")) == load_target(TARGETS["chained"])


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(TARGETS["chained"], "cpu")
    assert load_target(Path("cpu")).name == "cpu-chained"


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("export", "fashion-dot", "a name such as fashion-dit"),
        ("engines", "cpu-bf61", "a name such as cpu-bf16"),
        ("engines", "zzz", "cpu-openvino"),
    ],
)
def test_an_unknown_name_gives_the_nearest_ones(kind: str, given: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        named_file(kind, given)  # type: ignore[arg-type]


def test_a_path_that_is_missing_is_no_name() -> None:
    with pytest.raises(RecipeError, match="no readable file at mine/fashion-dit"):
        load_target(Path("mine/fashion-dit"))


def test_a_checkpoint_of_a_package_is_found_beside_the_recipe_and_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = f"{WEIGHTS}:fashion-dit.safetensors"
    beside = Path(packaged(given, ROOT / "export"))
    assert beside.is_file()
    assert packaged(given, tmp_path) == given
    assert "pip install 'eecompile[demo]'" in str(missing_package(given))
    copied = tmp_path / "copied.toml"
    shutil.copy(RECIPE, copied)
    with pytest.raises(CheckpointError, match="no package eecompile_fashion_dit"):
        bundle_from_recipe(copied, tmp_path / "bundle")
    monkeypatch.syspath_prepend(ROOT / "export")
    assert Path(packaged(given, tmp_path)).samefile(beside)
    assert packaged("weights/a.pt", tmp_path) == "weights/a.pt"
    assert packaged(r"C:\weights.pt", tmp_path) == r"C:\weights.pt"
    monkeypatch.undo()
    # A checkpoint that the caller names is enough.
    assert load_recipe(copied, checkpoint=beside).network.checkpoint == str(beside)


@pytest.mark.slow
def test_the_wheels_alone_list_and_export_by_name(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    for project in (ROOT, ROOT / "export" / WEIGHTS):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels]
        subprocess.run(command, cwd=project, check=True, capture_output=True)
    made = {path.name.split("-")[0]: path for path in wheels.iterdir()}
    assert made["eecompile"].stat().st_size < 1 << 20
    for path in made.values():
        zipfile.ZipFile(path).extractall(site)

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(site)}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "eecompile", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "fashion-dit" in run("recipes", "--json")
    assert "bundle: out/fashion-dit/bundle" in run("export", "fashion-dit", "--exits", "12")
    assert (site / "eecompile" / "py.typed").is_file()
    shutil.rmtree(site / WEIGHTS)
    assert "pip install 'eecompile[demo]'" in run("recipes", "--json")
