"""The engines that the benchmarks make of torch networks fit the sampler."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from eecompile.runtime.sampler import Sampler
from tests.conftest import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("bench_runtime")


def test_torch_eager_samples_what_the_engines_do(
    bench: Any, bundle: Path, engine_sets: dict[str, Path]
) -> None:
    with Sampler.open(engine_sets["per_exit"]) as sampler:
        eager = bench.torch_samplers(bundle)["torch eager"]
        found = eager.sample(2, steps=3, schedule="full", seed=1)
        np.testing.assert_allclose(
            found, sampler.sample(2, steps=3, schedule="full", seed=1), atol=1e-4
        )


def test_a_timed_engine_adds_up_its_seconds(bench: Any, engine_sets: dict[str, Path]) -> None:
    with Sampler.open(engine_sets["chained"]) as sampler:
        timed = bench.TimedEngine(sampler.engine)
        Sampler(timed, sampler.interface).sample(1, steps=2)
        assert timed.seconds > 0


def test_the_runtimes_benchmark_measures(bench: Any, engine_sets: dict[str, Path]) -> None:
    with Sampler.open(engine_sets["chained"]) as sampler:
        rows = list(bench.overhead_rows(sampler.interface, 1))
        assert len(rows) == 4 * len(bench.SOLVERS)
        assert all(0 < row["microseconds a step"] < 1e5 for row in rows)
        (row,) = bench.requests_rows(sampler, 1)
        assert all(value > 0 for value in row.values())
    assert bench.agreement_row(engine_sets["chained"])["eight threads give the arrays of one"]


def test_forecasts_are_measured_by_their_variable(
    bench: Any, engine_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are what the runtime gives where the variable is its own."""
    decisions = importlib.import_module("bench_decisions")
    monkeypatch.setattr(decisions, "FORECASTS", ((decisions.FLOW, "flow-euler", 9),))
    rows = list(decisions.forecast_variables(engine_sets["chained"], 2))
    assert [row["order"] for row in rows] == [0, 1, 2]
    assert len({rows[0][name] for name in decisions.VARIABLES}) == 1
    with decisions.mixture_sampler(decisions.FLOW) as sampler:
        program = sampler.program("flow-euler", 9, 1)
        full = sampler.sample(2, solver=program)
        squares = []
        for start in (3, 4):
            choices = decisions.every_second(program, start, 2, "sigma").choices
            steps = [
                msgspec.structs.replace(step, choice=choice)
                for step, choice in zip(program.steps, choices, strict=True)
            ]
            made = msgspec.structs.replace(program, steps=tuple(steps))
            squares.append(np.mean((sampler.sample(2, solver=made) - full) ** 2) / np.var(full))
    assert rows[2]["sigma"] == pytest.approx(np.prod(squares) ** 0.25, rel=1e-4)
