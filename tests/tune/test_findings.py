"""What is said of measurements, which are made up here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pytest

from eecompile.arrays import Floats
from eecompile.measure.timing import median_interval
from eecompile.programs.schedule import ExitSchedule
from eecompile.tune.findings import Entry, comparisons, findings, points, warnings
from eecompile.tune.held_out import Measured, corrected
from eecompile.tune.report import BaselineComparison, FrontPoint, Kind
from eecompile.tune.tables import points_table
from tests.tune.planted import interface, planted, sampler_of, settings
from tests.tune.test_page import sample_front

ROUNDS = np.array([1.0, 0.99, 1.01, 1.0, 0.98, 1.02, 1.0])
KINDS: dict[str, Kind] = {"full": "full", "budget": "found", "as": "found", "ASE": "ase",
                          "linear": "linear", "steps": "steps"}  # fmt: skip


def made(
    measured: Mapping[str, tuple[float, float, float]],
    *,
    rounds: Mapping[str, Floats] | None = None,
    noise: float = 0.1,
    budgets: Mapping[str, float] | None = None,
) -> tuple[list[FrontPoint], list[BaselineComparison], list[Entry], dict[str, Measured]]:
    """Points and comparisons of programs with a predicted and a measured time, and a distance."""
    rng = np.random.default_rng(0)
    program = sampler_of(planted(lambda depth, t: 0.0)).program("ddim", 10, 4)
    own = {"full": (1.0, 1.0, 0.0), **measured}
    entries = [
        Entry(name, KINDS[name.split("-")[0]], program, ExitSchedule.constant(4), 10, predicted,
              (budgets or {}).get(name))
        for name, (predicted, _, _) in own.items()
    ]  # fmt: skip
    seconds = {name: 3.0 * time * (rounds or {}).get(name, ROUNDS)
               for name, (_, time, _) in own.items()}  # fmt: skip
    drawn = {name: np.exp(2 * noise * rng.normal(size=40)) for name in own}
    squares = {
        name: distance**2 * drawn[name] / drawn[name].mean() for name, (*_, distance) in own.items()
    }
    results = corrected(seconds, squares)
    found = points(entries, results, 1.0, interface(), settings())
    return found, comparisons(found, results, 0), entries, results


def said(measured: Mapping[str, tuple[float, float, float]], **more: object) -> list[str]:
    found, compared, *_ = made(measured, **more)  # type: ignore[arg-type]
    return list(findings(found, compared))


def test_a_budget_that_measured_time_exceeds_is_said_first() -> None:
    measured = {"budget-70": (0.7, 0.754, 0.01), "budget-50": (0.5, 0.5, 0.02),
                "ASE": (0.7, 0.76, 0.05)}  # fmt: skip
    sentences = said(measured, budgets={"budget-70": 0.7, "budget-50": 0.5})
    assert sentences[0].startswith("budget-70 takes more than its budget of 0.7: 0.754")
    assert not any("budget-50 takes more" in each for each in sentences)
    assert len(sentences) == 2


def test_what_takes_no_longer_is_told_by_measured_time() -> None:
    measured = {"budget-60": (0.6, 0.75, 0.01), "budget-40": (0.4, 0.6, 0.02),
                "ASE": (0.65, 0.65, 0.05)}  # fmt: skip
    _, (compared,), *_ = made(measured)
    assert compared.found == "budget-40"
    assert compared.time_share == pytest.approx(0.6 / 0.65, rel=1e-3)


def test_of_those_that_take_no_longer_the_nearest_is_compared() -> None:
    measured = {"budget-60": (0.6, 0.62, 0.03), "budget-50": (0.5, 0.5, 0.02),
                "ASE": (0.65, 0.65, 0.05)}  # fmt: skip
    _, (compared,), *_ = made(measured)
    assert compared.found == "budget-50"


def test_less_distance_is_claimed_only_where_its_interval_says_so() -> None:
    near, apart = {"budget-60": (0.6, 0.6, 0.0495)}, {"budget-60": (0.6, 0.6, 0.03)}
    ase = {"ASE": (0.6, 0.6, 0.05)}
    (sentence,) = said(near | ase, noise=1.0)
    assert "cannot be told from" in sentence
    assert "less distance" not in sentence
    (sentence,) = said(apart | ase)
    assert "40 % less distance" in sentence or "39 % less distance" in sentence
    assert "more distance" in said({"budget-60": (0.6, 0.6, 0.09)} | ase)[0]


def test_a_loss_of_time_is_not_stated_as_a_gain() -> None:
    """The only schedule that is as near takes longer; and one is faster, but in some rounds."""
    ase = {"ASE": (0.6, 0.6, 0.05)}
    slow = {"budget-40": (0.4, 0.4, 0.09), "budget-90": (0.9, 0.76, 0.01)}
    _, (compared,), *_ = made(slow | ase)
    assert compared.time_share_at_distance is None
    assert "no farther" not in said(slow | ase)[0]
    unsure = {"budget-60": (0.59, 0.59, 0.01)}
    shaken = {"budget-60": np.array([0.8, 1.3, 0.9, 1.2, 1.0, 0.7, 1.1])}
    _, (compared,), *_ = made(unsure | ase, rounds=shaken)
    assert compared.time_share_at_distance is None
    fast = {"budget-30": (0.3, 0.3, 0.04), "budget-20": (0.2, 0.2, 0.0499)}
    _, (compared,), *_ = made(fast | ase, noise=0.5)
    assert compared.time_share_at_distance == pytest.approx(0.5, rel=1e-3)  # not the other
    assert "in 0.50 of its time, a found schedule is no farther" in said(fast | ase, noise=0.5)[0]


def warned(measured: Mapping[str, tuple[float, float, float]]) -> list[str]:
    found, _, entries, _ = made(measured, noise=0.01)
    return [text for text in warnings(found, entries, {}, (), settings()) if "busy" in text]


def test_one_row_that_is_off_is_noticed() -> None:
    right = {f"budget-{share}": (share / 100, share / 100, 0.01) for share in range(30, 90, 5)}
    assert warned(right) == []
    (warning,) = warned(right | {"ASE": (0.6, 0.72, 0.01)})
    assert "20 % at most (ASE; 1 of 14 programs" in warning
    slower = {name: (time, 1.07 * time, 0.01) for name, (time, _, _) in right.items()}
    assert "7 % (median)" in warned(slower)[0]


def test_a_slow_round_is_left_out_of_every_column() -> None:
    names = {"budget-50": (0.5, 0.5, 0.01), "ASE": (0.7, 0.7, 0.02), "steps": (0.6, 0.6, 0.03)}
    slow = np.linspace(1.0, 2.2, 7)  # the machine, more and more
    own = np.array([1.3, 1.3, 1.3, 1.0, 1.0, 1.0, 1.0])
    rounds = {"full": slow, "ASE": slow, "steps": slow, "budget-50": slow * own}
    found, *_ = made(names, rounds=rounds)
    for point in found:
        assert point.time_share == pytest.approx(names.get(point.name, (0, 1.0, 0))[1], rel=1e-3)
        assert point.seconds_per_sample == pytest.approx(
            point.time_share * found[0].seconds_per_sample
        )
        assert point.spread[0] <= point.time_share <= point.spread[1]


def test_rows_go_by_measured_time() -> None:
    front = sample_front()
    early = msgspec.structs.replace(front.points[1], name="budget-10", predicted_share=0.1)
    table = points_table(msgspec.structs.replace(front, points=(*front.points, early)))
    times = [point.time_share for point in table.items if point.kind in ("full", "found")]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    ("count", "left_out"), [(3, 0), (5, 0), (6, 0), (9, 1), (20, 5), (100, 39)]
)
def test_the_median_s_interval(count: int, left_out: int) -> None:
    assert median_interval(np.arange(count)[::-1]) == (left_out, count - 1 - left_out)


def test_the_median_s_interval_covers() -> None:
    rng = np.random.default_rng(0)
    spans: Sequence[tuple[float, float]] = [
        median_interval(rng.exponential(1.0, 12)) for _ in range(1000)
    ]
    inside = sum(low <= np.log(2) <= high for low, high in spans)
    assert 945 <= inside <= 985
