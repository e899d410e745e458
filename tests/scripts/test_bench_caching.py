"""Caches around the torch network sample what they should, and their figures are read well."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile import Sampler
from eecompile.networks import load_network
from eecompile.recipe import load_recipe
from eecompile.show.table import MISSING
from tests.conftest import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("bench_caching")


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_the_loop_in_torch_samples_what_the_runtime_does(
    bench: Any, small_recipe: Path, small_sets: dict[str, Path], solver: str
) -> None:
    with Sampler.open(small_sets["per_exit"]) as sampler:
        program = sampler.program(solver, 6, "full")
        given = bench.Given.of(sampler.interface, program, 2, "cpu")
        network = load_network(load_recipe(small_recipe).network, small_recipe.parent).eval()
        found = bench._run("", "", bench.Cached(network.predict_at), given).act()
        expected = sampler.sample(2, solver=program, guidance=1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_cache_starts_anew_and_one_that_never_skips_changes_nothing(
    bench: Any, small_recipe: Path, small_sets: dict[str, Path]
) -> None:
    from diffusers.hooks import FirstBlockCacheConfig

    with Sampler.open(small_sets["per_exit"]) as sampler:
        program = sampler.program("ddim", 20, "full")
        given = bench.Given.of(sampler.interface, program, 2, "cpu")
    network = load_network(load_recipe(small_recipe).network, small_recipe.parent).eval()
    copied = partial(bench._copy, network, False)
    full = bench._run("", "", bench.Cached(network.predict_at), given).act()
    never, often = (bench._hooked(copied(), FirstBlockCacheConfig(each)) for each in (0.0, 0.9))
    np.testing.assert_array_equal(bench._run("", "", never, given).act(), full)
    assert np.abs(bench._run("", "", often, given).act() - full).max() > 1e-6
    moved = set()
    for by, setting, cached in bench._diffusers_caches(copied, given):
        run = bench._run(by, setting, cached, given)
        first = run.act()
        np.testing.assert_array_equal(run.act(), first, err_msg=f"{by}, {setting}")
        if np.abs(first - full).max() > 1e-6:
            moved.add(by)
    assert moved >= {"TaylorSeer", bench.INNER, "MagCache"}


def test_a_table_has_the_fastest_setting_within_each_distance(bench: Any) -> None:
    page = importlib.import_module("caching_page")
    rows = [
        {"by": by, "setting": setting, "ms per sample": ms, "distance": distance}
        for by, setting, ms, distance in (
            ("eager", page.FULL, 9.0, 0.0),
            ("eager, A", "slow", 7.0, 0.002),
            ("eager, A", "fast", 4.0, 0.02),
            ("eager, A", "worse", 5.0, 0.02),
            ("ours", page.FULL, 6.0, 0.0),
            ("ours", "best", 3.0, 0.001),
        )
    ]
    facts = {"cpu": "a CPU", "cores": 2, "versions": {"eecompile": "1"}}
    cases = {"x": {"rows": rows, "skipped": {"B": "not here"}}}
    result = {"machine": facts, "batch": 1, "network": "n", "cases": cases}
    (table,) = page.tables(result)
    assert [row.texts for row in table.rows()] == [
        ["eager", "9.00", MISSING, MISSING, MISSING],
        ["eager, A", "9.00", "7.00 (slow)", "7.00 (slow)", "4.00 (fast)"],
        ["ours", "6.00", "3.00 (best)", "3.00 (best)", "3.00 (best)"],
    ]
    shown = page.page(result)
    assert "eager, A" in shown
    assert "B: not here" in shown
