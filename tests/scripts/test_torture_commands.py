"""The short forms of kills, disks and surroundings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("part", ["kills", "disks", "surroundings"])
def test_the_short_form_finds_nothing(
    small_recipe: Path,
    small_bundle: Path,
    small_sets: dict[str, Path],
    tmp_path: Path,
    part: str,
) -> None:
    given = tmp_path / "work" / "given"
    shutil.copytree(small_recipe.parent, given / "recipe")
    (given / "recipe" / small_recipe.name).rename(given / "recipe" / "recipe.toml")
    shutil.copytree(small_bundle, given / "bundle")
    shutil.copytree(small_sets["chained"], given / "cpu")
    command = [sys.executable, str(ROOT / "scripts" / "torture.py"), part, "--small"]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "results.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = msgspec.json.decode((tmp_path / "results.json").read_bytes())[part]
    assert found["trials"] >= 3
    assert found["faults"] == 0
    assert not (tmp_path / "work" / part / "00000").exists()
