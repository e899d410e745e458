"""Resident memory, measured in processes of their own (Linux)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eecompile.compiler.build import engine_set_from_bundle
from tests.conftest import TARGETS

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc"),
    pytest.mark.slow,
]

USED = """
import resource, sys, eecompile
page = resource.getpagesize()
used = lambda: int(open("/proc/self/statm").read().split()[1]) * page
"""
EVERY_EXIT = """
with eecompile.Sampler.open(sys.argv[1]) as sampler:
    for depth in sampler.interface.exits:
        sampler.sample(16, steps=2, schedule=depth)
    print(used())
"""
MANY = """
with eecompile.Sampler.open(sys.argv[1], threads=1) as sampler:
    for index in range(600):
        if index == 100:
            before = used()
        sampler.sample(1 + index % 3, steps=1, solver="ddpm", schedule=3, seed=index)
    print((used() - before) / before)
"""

Measure = Callable[[str, Path], float]


@pytest.fixture
def measure() -> Measure:
    def run(code: str, folder: Path) -> float:
        command = [sys.executable, "-c", USED + code, str(folder)]
        return float(subprocess.run(command, check=True, capture_output=True).stdout)

    return run


def test_all_exits_chained_take_little_more_than_the_deepest_alone(
    engine_sets: dict[str, Path],
    other_exits: Callable[..., Path],
    tmp_path: Path,
    measure: Measure,
) -> None:
    engine_set_from_bundle(other_exits(12), TARGETS["chained"], tmp_path / "deepest")
    alone = measure(EVERY_EXIT, tmp_path / "deepest")
    assert measure(EVERY_EXIT, engine_sets["chained"]) < 1.1 * alone


def test_samplings_leave_memory_as_it_was(engine_sets: dict[str, Path], measure: Measure) -> None:
    assert measure(MANY, engine_sets["chained"]) < 0.01
