"""The small form of the load, and that it sees what must not be."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Shared


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("torture_load")


@pytest.fixture
def work(load: Any, shared: Shared) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir()
        load.prepare(folder)

    return shared("torture-load", make)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_threads_and_callers_get_what_the_sampler_gives_alone(
    load: Any, work: Path, number: int
) -> None:
    outcome = load.trial(work, number, 0)
    assert outcome.fault == ""
    assert outcome.kind.startswith("600 samples")


def test_each_set_up_and_engine_set_is_loaded_with_a_hundred_thousand_samples(load: Any) -> None:
    pairs = len(load.SET_UPS) * len(load.ENGINES)
    assert pairs == load.SMALL
    assert 2 * pairs == load.TRIALS
    assert load.SAMPLES[1] == 100_000


def test_other_samples_are_a_fault(load: Any, work: Path) -> None:
    draws = load.Random(0)
    with load.sampler_in_threads(work / "cpu", draws) as (_, act):
        sampler, jobs = act.args
        assert not any(fault for _, fault in map(act, range(40)))
        spoilt = [job._replace(expected=[array + 1e-6 for array in job.expected]) for job in jobs]
        found = [load.sample(sampler, spoilt, seed) for seed in range(40)]
    assert sum("other samples than alone" in fault for _, fault in found) > 20


def test_what_grows_is_a_fault(load: Any) -> None:
    level = load.Level
    flat = [level(90.0, 7, 4)] * 18 + [level(100.0, 9, 5)] * 6
    assert load.growth(flat, 0.01) == ([], 0.0, 0)
    for more in (level(101.1, 9, 5), level(100.0, 10, 5), level(100.0, 9, 6)):
        assert load.growth([*flat, more], 0.01)[0]
    assert load.growth([*flat, level(100.9, 9, 5)], 0.01)[0] == []
    assert load.growth([*flat, level(100.0, 9, 13)], 0.01, pool=8)[0] == []
    assert load.growth([*flat, level(100.0, 9, 14)], 0.01, pool=8)[0]
