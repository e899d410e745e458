"""What the benchmark of spans measures is what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from eecompile.programs.choice import Span
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_bundle, open_engine_set
from tests.conftest import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("bench_spans")


def test_the_parts_of_the_time_add_up(bench: Any, small_sets: dict[str, Path]) -> None:
    rows = list(bench.time_rows("small", small_sets["chained"], (1, 2), 9, 2))
    assert [row["span"] for row in rows] == [f"4/2-4:{order}" for order in (0, 1, 2)] * 2
    for row in rows:
        assert row["share of blocks"] == pytest.approx((6 * 4 + 3 * 2) / (9 * 4))
        assert row["share of time"] - row["share of blocks"] == pytest.approx(row["over"])
        parts = [value for name, value in row.items() if name.startswith("over: ")]
        assert sum(parts) == pytest.approx(row["over"])
        assert row["over: runs in every step"] > 0


def test_the_formula_is_of_the_span_that_is_skipped(
    bench: Any, small_sets: dict[str, Path]
) -> None:
    rows = list(bench.memory_rows("small", small_sets["chained"], 64, 1))
    with Sampler.open(small_sets["chained"]) as sampler:
        assert bench.middle_span(sampler, 1) == Span(2, 4, 1, 4)
    kept = 49 * 16 * 4  # 7 x 7 patches of 16 values
    assert [row["formula, MiB"] * 2**20 for row in rows] == [64 * kept, 2 * 64 * kept]
    assert all(abs(row["kept beyond order 0, MiB"]) < 50 for row in rows)


def test_the_set_without_cuts_is_of_the_same_network(
    bench: Any, small_bundle: Path, tmp_path: Path
) -> None:
    sets = bench.layouts_of(small_bundle, tmp_path)
    with_cuts, bare = (open_engine_set(sets[n]) for n in ("chained", "chained, no cuts"))
    assert with_cuts.spans
    assert not bare.spans
    assert len(bare.segments) < len(with_cuts.segments)
    assert open_bundle(small_bundle).interface.cuts, "the bundle itself is as it was"
    rows = list(bench.layout_rows("small", sets, (1,), 1))
    assert [row["depth"] for row in rows] == [1, 2, 4]
    assert all(row["per_exit over no cuts"] > 0 for row in rows)
