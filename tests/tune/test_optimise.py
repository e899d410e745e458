"""The optimiser against every schedule there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from eecompile.arrays import Floats
from eecompile.tune.choices import choices_of, slots_of
from eecompile.tune.influence import Influence, Recorded
from eecompile.tune.model import Costs, Model
from eecompile.tune.optimise import found
from eecompile.tune.search import improved
from tests.tune.planted import planted, sampler_of

EXITS = (1, 2, 4)
COSTS = {0: 0.02, 1: 0.25, 2: 0.5, 4: 1.0}  # of a step, by blocks


def smooth(rng: np.random.Generator, steps: int, directions: int) -> Floats:
    """Predictions that change from step to step as those of networks do: smoothly, and a little
    at random."""
    phases, speeds = rng.uniform(0, 2 * np.pi, directions), rng.uniform(0.1, 0.5, directions)
    made: Floats = np.sin(np.arange(steps)[:, None] * speeds + phases)
    return made + rng.normal(0, 0.02, made.shape)


def instance(
    seed: int, steps: int = 6, *, exits: tuple[int, ...] = EXITS, monotone: bool = False,
    broken: dict[int, int] | None = None, use: tuple[str, ...] = ("exits", "forecasts"),
) -> Model:  # fmt: skip
    """A problem at random: errors of exits keep their direction for a while, or turn."""
    rng, directions = np.random.default_rng(seed), 4
    program = sampler_of(planted(lambda depth, t: 0.0)).program("ddim", steps, 4)
    choices = choices_of(exits, (), use, steps)
    errors = np.zeros((steps, len(choices), directions))
    for index in range(1, len(exits) if "exits" in use else 1):
        errors[:, index] = 0.1 * index * smooth(rng, steps, directions)
    ratios = rng.uniform(0.3, 1, (steps, 1)) * rng.uniform(0.8, 1.25, (steps, len(choices)))
    record = Recorded(smooth(rng, steps, directions), errors, broken or {})
    costs = np.array([COSTS[choice.blocks] for choice in choices]) * rng.uniform(
        0.9, 1.1, len(choices)
    )
    shares = np.tile(costs / costs[0] / steps, (steps, 1))
    influence = Influence(np.zeros_like(ratios), ratios, ())
    return Model(program, slots_of(program, 1000), choices, Costs(0.01, shares), record, influence,
                 monotone=monotone)  # fmt: skip


def least(model: Model) -> Callable[[float], float]:
    """The least distance within a budget, of all schedules."""
    counts = (len(model.choices), len(model.slots.steps))
    every = model.assessed(itertools.product(range(counts[0]), repeat=counts[1]))
    order = np.argsort(every.costs)
    costs, distances = every.costs[order], np.minimum.accumulate(every.distances[order])
    return lambda budget: float(distances[np.searchsorted(costs, budget + 1e-12) - 1])


BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@pytest.mark.parametrize("monotone", [False, True])
def test_it_is_near_the_least_of_all_schedules(monotone: bool) -> None:
    gaps = []
    for seed in range(10):
        model = instance(seed, monotone=monotone)
        front, known = found(model), least(model)
        for budget in BUDGETS:
            (picks,) = front.best(budget)
            assert model.cost(picks) <= budget * (1 + 1e-9)
            gaps.append(model.distance(improved(picks, model, budget)) / known(budget) - 1)
    assert min(gaps) > -1e-9
    assert np.mean(np.array(gaps) < 1e-9) > 0.9  # the least itself
    assert max(gaps) < 0.1


def test_short_lists_are_a_little_worse_and_small_changes_help() -> None:
    short, changed = [], []
    for seed in range(10):
        model = instance(seed)
        front, known = found(model, shares=32, width=4), least(model)
        for budget in BUDGETS:
            (picks,) = front.best(budget)
            short.append(model.distance(picks) / known(budget) - 1)
            changed.append(model.distance(improved(picks, model, budget)) / known(budget) - 1)
    assert np.mean(short) < 0.1
    assert (np.array(changed) <= np.array(short)).all()
    assert np.mean(changed) < 0.95 * np.mean(short)


def test_errors_that_have_one_direction_are_a_knapsack() -> None:
    """Between the corners of the hull, too, where a Lagrangian relaxation finds nothing."""
    model = instance(0, 2, exits=(2, 4), use=("exits",))
    costs, losses = np.array([[3.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 3.0], [0.0, 2.1]])
    model = with_losses(model, costs, losses)
    front = found(model)
    assert front.best(2.5) == [(1, 0)]
    assert front.best(1.9) == [(1, 1)]
    assert front.best(5.0, 9) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_source_is_chosen_for_the_forecasts_made_of_it() -> None:
    """Exit 2 loses little where it is taken, and much where it is used again."""
    model = instance(0, 2, exits=(2, 4), use=("exits", "forecasts"))
    assert [choice.text for choice in model.choices] == ["4", "2", "again"]
    costs = np.array([[1.0, 0.5, 9.0], [1.0, 0.5, 0.0]])
    losses = np.array([[0.0, 0.1, 0.0], [0.0, 0.9, 0.0]])
    model = with_losses(model, costs, losses, again=5.0)
    front = found(model)
    assert front.best(1.0) == [(0, 2)]  # not (1, 1), nor (1, 2)
    assert front.best(0.5) == [(1, 2)]


def with_losses(model: Model, costs: Floats, losses: Floats, again: float = 1.0) -> Model:
    """The model's choices, with such costs and losses, all in one direction.

    What a source has lost is lost ``again`` times as much by a forecast made of it.
    """
    errors = losses[:, :, None]
    ratios = np.ones(losses.shape)
    ratios[1, 1] = again
    errors[1, 1] /= again
    record = Recorded(np.zeros((len(losses), 1)), errors, {})
    program = sampler_of(planted(lambda depth, t: 0.0)).program("ddim", len(losses), 4)
    influence = Influence(np.zeros_like(ratios), ratios, ())
    return Model(program, model.slots, model.choices, Costs(0.0, costs), record, influence)


@pytest.mark.parametrize("limit", [0.5, 0.7])
def test_a_limit_only_leaves_out_what_costs_more(limit: float) -> None:
    model = instance(3)
    whole, part = found(model), found(model, limit=limit)
    assert part.costs.max() <= limit * (1 + 1e-9)
    for budget in (0.4, limit):
        assert model.distance(part.best(budget)[0]) <= model.distance(whole.best(budget)[0]) * 1.01


def test_the_cheapest_schedule_is_among_them() -> None:
    model = instance(1, 12)
    front, steps = found(model, shares=8, width=1), model.costs.steps
    assert front.costs.min() == pytest.approx(
        model.costs.start + steps[0, :3].min() + steps[1:].min(axis=1).sum()
    )
    assert front.best(0.9 * front.costs.min()) == []


def test_what_is_broken_is_never_picked() -> None:
    model = instance(2, broken={1: 4})
    for budget in BUDGETS:
        assert 1 not in found(model).best(budget)[0]


def test_fifty_steps_take_a_moment() -> None:
    model = instance(4, 50)
    front = found(model)
    nearest = [front.best(budget)[0] for budget in BUDGETS]
    distances = [model.distance(picks) for picks in nearest]
    assert distances == sorted(distances, reverse=True)
    assert max(distances) > 2 * min(distances)
