"""Slots of time, and schedules made of choices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.programs.choice import Exit, Forecast
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.tune.choices import choices_of, kinds_of, schedule_from_picks, slots_of
from tests.tune.planted import planted, sampler_of

SOLVERS = ("ddim", "dpmpp-2m", "heun", "dpm-solver-2", "dpm-solver-3", "ddpm", "unipc", "f-pndm")
CHOICES = choices_of((1, 2, 4), ("first", "second"), ("exits",), 8)


def program(solver: str, steps: int) -> Program:
    return sampler_of(planted(lambda depth, t: 0.0)).program(solver, steps, 4)


def test_full_depth_of_the_first_engine_set_comes_first() -> None:
    texts = [choice.text for choice in CHOICES]
    assert texts == ["4", "2", "1", "4@second", "2@second", "1@second"]
    assert choices_of((3, 6), (), ("exits",), 8) == (Exit(6), Exit(3))


def test_kinds_of_choices() -> None:
    assert kinds_of(CHOICES) == {"exits": [1, 2], "engine sets": [3]}
    every = choices_of((3, 6), (), ("exits", "forecasts", "spans"), 8, [(2, 5)])
    kinds = kinds_of(every)
    assert kinds == {"exits": [1], "forecasts": [2, 3, 4], "spans": [5, 6, 7]}
    assert kinds_of(every[:1]) == {}


def test_what_may_be_used() -> None:
    every = choices_of((3, 6), (), ("exits", "forecasts"), 8)
    assert every == (Exit(6), Exit(3), Forecast(0), Forecast(1), Forecast(2))
    alone = choices_of((3, 6), ("one", "two"), ("forecasts",), 8)
    assert alone[:2] == (Exit(6), Exit(6, "two"))
    assert choices_of((6,), (), ("forecasts",), 2) == (Exit(6), Forecast(0))  # of two evaluations
    assert choices_of((3, 6), (), (), 8) == (Exit(6),)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=20)
@given(data=st.data())
def test_the_schedule_makes_the_picks(solver: str, data: st.DataObject) -> None:
    made = program(solver, 8)
    slots = slots_of(made, 1000)
    assert sorted(step for steps in slots.steps for step in steps) == list(range(len(made.steps)))
    picks = data.draw(
        st.lists(st.integers(0, 5), min_size=len(slots.steps), max_size=len(slots.steps))
    )
    schedule = schedule_from_picks(picks, CHOICES, slots)
    chosen = made.with_schedule(schedule, 1000)
    for pick, steps in zip(picks, slots.steps, strict=True):
        for step in steps:
            assert chosen.steps[step].choice == CHOICES[pick]


def test_evaluations_at_one_moment_share_a_slot() -> None:
    made = program("heun", 5)
    slots = slots_of(made, 1000)
    assert len(slots.steps) == len({step.moment for step in made.steps}) < len(made.steps)


def test_neighbours_that_are_equal_are_one_slice_and_bounds_are_short() -> None:
    slots = slots_of(program("ddim", 10), 1000)
    again = len(CHOICES)
    picks = (0, 0, 0, again, 0, 1, 1, 1, 1, 1)
    schedule = schedule_from_picks(picks, (*CHOICES, Forecast()), slots)
    assert schedule.choices == (Exit(2), Exit(4), Forecast(), Exit(4))
    assert schedule.thresholds == (0.55, 0.65, 0.75)
    text = "2:0.55,4:0.65,again:0.75,4"
    assert schedule.text == text
    assert ExitSchedule.parse(text) == schedule


def test_many_evaluations_share_slots() -> None:
    made = program("ddpm", 250)
    slots = slots_of(made, 1000)
    assert len(slots.steps) == 100
    sizes = [len(steps) for steps in slots.steps]
    assert sum(sizes) == 250
    assert np.ptp(sizes) <= 1
