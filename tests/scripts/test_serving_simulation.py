"""The simulation of replicas under load, where its answer is known."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT

COSTS = {"12": {1: 0.01, 4: 0.02, 64: 0.32}, "3": {1: 0.004, 64: 0.08}}


@pytest.fixture(scope="module")
def simulation() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("serving_simulation")


def test_seconds_are_interpolated_and_beyond_the_largest_in_proportion(simulation: Any) -> None:
    found = [simulation.seconds(COSTS, "12", rows) for rows in (1, 2, 4, 34, 128)]
    assert found == pytest.approx([0.01, 0.01 + 0.01 / 3, 0.02, 0.17, 0.64])


@pytest.mark.parametrize("rows", [0, 4, 64])
def test_a_request_alone_takes_its_evaluations_whoever_serves_it(
    simulation: Any, rows: int
) -> None:
    load = simulation.Load(0.001, ["12", "3", "12"], count=50, most=1)
    taken = simulation.simulate(load, COSTS, rows)
    assert taken == pytest.approx([0.024] * 50)


@pytest.mark.parametrize("arrivals", ["poisson", "bursts"])
def test_arrivals_have_the_rate_that_was_asked_for(simulation: Any, arrivals: str) -> None:
    load = simulation.Load(50.0, ["12"], arrivals, count=20_000)
    times = [each.came for each in load.requests()]
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(50.0, rel=0.15)


def test_more_replicas_and_fewer_steps_make_everybody_faster(simulation: Any) -> None:
    load = simulation.Load(30.0, ["12"] * 10, count=300)
    one, four = (np.median(simulation.simulate(load, COSTS, 4, n)) for n in (1, 4))
    short = simulation.Load(30.0, ["12"] * 5, count=300)
    assert four < one
    assert np.median(simulation.simulate(short, COSTS, 4)) < one


def test_rows_that_pay_are_few_where_a_row_takes_its_time(simulation: Any) -> None:
    flat = {"12": dict.fromkeys(simulation.SIZES, 0.01)}
    steep = {"12": {rows: 0.01 * rows for rows in simulation.SIZES}}
    assert simulation.rows_that_pay(flat, ["12"]) == simulation.ALL
    assert simulation.rows_that_pay(steep, ["12"]) == 1
    assert simulation.rows_that_pay(COSTS, ["12", "3"]) == 4
