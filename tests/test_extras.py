"""What code and documents say to install can be installed."""

from __future__ import annotations

import os
import re
import tomllib
from importlib.metadata import distributions

import pytest
import torch

from eecompile.measure.machine import gpus
from tests.conftest import ROOT

NAMED = re.compile(
    r"""eecompile\[([a-z,-]+)\]|\bextra\("([a-z-]+)"\)|require\("\w+", "([a-z-]+)"\)"""
)
FILES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("eecompile/**/*.py")],
)


@pytest.mark.parametrize("folder", ["docs", "eecompile"])
def test_every_extra_that_is_named_exists(folder: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(project["optional-dependencies"])
    named = {
        extra
        for path in FILES
        if (folder == "eecompile") == path.is_relative_to(ROOT / "eecompile")
        for found in NAMED.findall(path.read_text())
        for extra in ",".join(filter(None, found)).split(",")
    }
    assert named
    assert named <= known


def test_every_extra_stands_in_the_guide() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (ROOT / "docs" / "guide.md").read_text().partition("## What to install")[2]
    named = {
        extra
        for row in table.partition("\n## ")[0].splitlines()
        for extra in re.findall(r"`([a-z-]+)`", row.split("|")[1] if row.startswith("|") else "")
    }
    assert named == set(project["optional-dependencies"])


def test_scripts_install_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [
        path.read_text()
        for path in (ROOT / "scripts").iterdir()
        if path.is_file() and not path.suffix
    ]
    named = {
        extra
        for text in texts
        for extras in re.findall(r'/environment"? ([a-z,-]+)', text)
        for extra in extras.split(",")
    }
    assert {"dev", "evaluate"} <= named
    assert named <= set(project["optional-dependencies"])


@pytest.mark.skipif("CI" not in os.environ, reason="an environment that somebody else made")
@pytest.mark.skipif(bool(gpus()), reason="a GPU, for which CUDA is right")
def test_scripts_bring_no_cuda_where_there_is_no_gpu() -> None:
    """The packages of PyTorch's CUDA build, counted."""
    of_cuda = re.compile(
        r"nvidia-(cublas|cudnn|cufft|curand|cusolver|cusparse|nccl|nvshmem)|triton$"
    )
    brought = [d.name for d in distributions() if of_cuda.match(d.name.lower())]
    assert len(brought) == 0, brought
    assert torch.version.cuda is None
