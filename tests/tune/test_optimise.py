"""The optimiser against every solution there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.tune.optimise import Reuse, SlotTable, front, objective

# Of few values, so that sums are often equal; and of any.
figures = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.floats(0, 1, allow_subnormal=False).map(lambda value: round(value, 6)),
)


@st.composite
def tables(draw: st.DrawFn) -> SlotTable:
    slots, choices = draw(st.integers(1, 5)), draw(st.integers(1, 3))

    def array(*shape: int) -> np.ndarray:
        size = math.prod(shape)
        return np.array(draw(st.lists(figures, min_size=size, max_size=size))).reshape(shape)

    errors = array(slots, choices)
    if choices > 1 and draw(st.booleans()):
        errors[draw(st.integers(0, slots - 1)), 1] = np.inf  # one that may not be chosen
    depths = tuple(draw(st.lists(st.integers(1, 3), min_size=choices, max_size=choices)))
    reuse = None
    if draw(st.booleans()):
        most = draw(st.integers(1, 3))
        takes = draw(st.lists(st.integers(1, 2), min_size=slots, max_size=slots))
        reuse = Reuse(array(slots), array(slots, most, choices), tuple(takes))
    return SlotTable(array(slots, choices), errors, depths, reuse, draw(st.booleans()))


def every(table: SlotTable) -> list[tuple[float, float]]:
    """Cost and error of all solutions."""
    picks = itertools.product(range(table.again + 1), repeat=len(table.costs))
    sums = (objective(table, each) for each in picks)
    return [(cost, error) for cost, error in sums if math.isfinite(error)]


@settings(max_examples=300, deadline=None)
@given(tables(), st.lists(st.floats(0, 4), max_size=4))
def test_it_equals_brute_force(table: SlotTable, budgets: list[float]) -> None:
    found, known = front(table), every(table)
    for budget in (*budgets, *found.costs.tolist()):
        best = min((e for c, e in known if c <= budget * (1 + 1e-12)), default=None)
        picks = found.best(budget)
        if best is None:
            assert picks is None
            continue
        assert picks is not None
        cost, error = objective(table, picks)
        assert cost <= budget * (1 + 1e-9)
        assert error == pytest.approx(best, abs=1e-9)


@given(tables())
@settings(deadline=None)
def test_the_front_is_undominated_and_says_what_it_costs(table: SlotTable) -> None:
    found = front(table)
    assert (np.diff(found.costs) > 0).all()
    assert (np.diff(found.errors) < 0).all()
    for index in range(len(found)):
        sums = objective(table, found.picks(index))
        assert sums == pytest.approx((found.costs[index], found.errors[index]))


@given(tables(), st.floats(0.5, 3))
@settings(deadline=None)
def test_a_limit_only_leaves_out_what_costs_more(table: SlotTable, limit: float) -> None:
    whole, part = front(table), front(table, limit=limit)
    kept = whole.costs <= limit * (1 + 1e-12)  # as the optimiser tells costs apart
    np.testing.assert_allclose(part.costs, whole.costs[kept])
    np.testing.assert_allclose(part.errors, whole.errors[kept])


def test_a_planted_best() -> None:
    # Slots 1 and 3 lose nothing with the cheap choice; the others lose much.
    costs = np.tile([1.0, 0.5], (5, 1))
    errors = np.array([[0, 9.0], [0, 0.1], [0, 9.0], [0, 0.2], [0, 9.0]])
    found = front(SlotTable(costs, errors, (4, 2)))
    assert found.best(4.0) == (0, 1, 0, 1, 0)
    assert found.best(4.5) == (0, 1, 0, 0, 0)
    assert found.best(2.4) is None


def test_between_the_corners_of_the_hull() -> None:
    # A Lagrangian relaxation finds (0, 0) and (1, 1) only.
    costs = np.array([[3.0, 0.0], [2.0, 0.0]])
    errors = np.array([[0.0, 3.0], [0.0, 2.1]])
    found = front(SlotTable(costs, errors, (2, 1)))
    assert found.best(2.5) == (1, 0)
    assert len(found) == 4


def test_reuse_depends_on_what_is_used_again() -> None:
    costs, errors = np.tile([1.0, 0.9], (2, 1)), np.array([[0.0, 0.1], [0.0, 5.0]])
    again = np.full((2, 1, 2), 9.0)
    again[1, 0] = [2.0, 0.5]  # a former output of choice 1 is the better one to keep
    table = SlotTable(costs, errors, (2, 1), Reuse(np.zeros(2), again, (1, 1)))
    found = front(table)
    assert found.best(1.0) == (1, table.again)
    assert found.best(2.0) == (0, 0)


def test_fifty_slots_and_nine_choices_with_reuse_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    costs = np.tile(np.linspace(1, 0.2, 9), (50, 1))
    errors = np.linspace(0, 1, 9) ** 1.5 * rng.uniform(0.5, 1.5, (50, 1))
    again = np.repeat(rng.uniform(0.1, 0.9, (50, 3, 1)), 9, axis=2)
    table = SlotTable(
        costs, errors, tuple(range(9, 0, -1)), Reuse(np.full(50, 0.01), again, (1,) * 50)
    )
    found = front(table)
    picks = found.best(25.0)
    assert picks is not None
    assert objective(table, picks)[0] <= 25.0
