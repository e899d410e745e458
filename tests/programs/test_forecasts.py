"""Which evaluations a forecast is made of, and its weights."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given

from eecompile.programs.choice import Choice, Exit, Forecast
from eecompile.programs.forecasts import forecasts
from eecompile.programs.process import Process
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.programs.solvers import SOLVERS
from tests.programs.interpreter import extrapolated

STATE = (Term("state", 1.0),)
PROCESSES = {
    "diffusion": Process(),
    "cosine": Process(betas="cosine", prediction="v_prediction"),
    "flow": Process(family="flow", prediction="flow", shift=3.0),
    "edm": Process(family="edm", prediction="edm"),
    "unknown": None,
}


def program(times: list[float], choices: list[Choice], process: Process | None = None) -> Program:
    update = (Update("state", (Term("output", 1.0),)),)
    steps = (Step(c, 0.0, STATE, update, None, t) for t, c in zip(times, choices, strict=True))
    return Program(solver="x", initial=1.0, steps=tuple(steps), process=process)


def test_weights_are_lagranges() -> None:
    choices = [Exit(1), Exit(1), Exit(1), Forecast(), Forecast(1), Forecast(2), Exit(1)]
    found = forecasts(program([9, 7, 6, 5, 4, 3, 2], choices))
    assert found[:3] == ((), (), ())
    assert found[3] == ((2, 1.0),)
    assert found[4] == ((2, 3.0), (1, -2.0))
    assert found[5] == ((2, pytest.approx(8)), (1, pytest.approx(-9)), (0, pytest.approx(2)))
    assert found[6] == ()


@pytest.mark.parametrize("name", PROCESSES)
@given(data=st.data())
def test_weights_are_exact_for_polynomials_of_their_order(name: str, data: st.DataObject) -> None:
    """Sums to 1, too: the constant is such a polynomial."""
    order = data.draw(st.integers(0, 2))
    count = data.draw(st.integers(order + 1, 8))
    process = PROCESSES[name]
    times = [900.0 - 90 * index for index in range(count + 1)]
    made = program(times, [Exit(1)] * count + [Forecast(order)], process)
    places = [_place(process, time) for time in times]
    polynomial = np.polynomial.Polynomial(data.draw(st.tuples(*[st.floats(-3, 3)] * (order + 1))))
    (*_, weights) = forecasts(made)
    assert [index for index, _ in weights] == [count - 1 - back for back in range(order + 1)]
    total = sum(weight * polynomial(places[index]) for index, weight in weights)
    size = sum(abs(weight * polynomial(places[index])) for index, weight in weights)
    assert total == pytest.approx(polynomial(places[-1]), abs=1e-12 * (1 + size))


def _place(process: Process | None, time: float) -> float:
    if process is None:
        return time
    point = process.at(time)
    if process.family == "diffusion":
        return 0.5 * math.log(point.alpha**2 / point.sigma**2)
    return point.sigma


@given(data=st.data())
def test_of_evaluations_at_one_moment_the_latest_counts(data: st.DataObject) -> None:
    """Against Neville's scheme; times that only rounding tells apart are one moment."""
    count = data.draw(st.integers(3, 9))
    times = [700.0]
    for _ in range(count):
        step = data.draw(st.sampled_from([0.0, 1e-11, 50.0, 75.0]))
        times.append(times[-1] - step)
    choice = Forecast(data.draw(st.integers(0, 2)))
    made = program([*times[:-1], times[-1] - 40], [Exit(1)] * count + [choice])
    values = np.random.default_rng(count).normal(size=(count, 4))
    history = [(time, value) for time, value in zip(times[:-1], values, strict=True)]
    expected = extrapolated(history, times[-1] - 40, choice.order)
    (*_, weights) = forecasts(made)
    assert weights[0][0] == count - 1, "the latest prediction is always among them"
    size = sum(abs(weight) for _, weight in weights)
    found = sum(weight * values[index] for index, weight in weights)
    np.testing.assert_allclose(found, expected, atol=1e-9 * size)
    assert size < 300, "no weights explode"


def test_too_few_moments_lower_the_order() -> None:
    made = program([5, 5, 5, 4, 3], [Exit(1), Exit(1), Exit(1), Forecast(2), Exit(1)])
    assert forecasts(made)[3] == ((2, 1.0),)


@pytest.mark.parametrize("name", ["heun", "pndm", "f-pndm", "dpm-solver-2", "flow-heun"])
def test_solvers_that_visit_moments_twice(name: str) -> None:
    family = "flow" if name.startswith("flow") else "diffusion"
    made = SOLVERS[name](PROCESSES[family] or Process(), 12, lambda time: Exit(1))  # type: ignore[arg-type]
    steps = [
        msgspec.structs.replace(step, choice=Forecast(2) if index > 4 and index % 3 else Exit(1))
        for index, step in enumerate(made.steps)
    ]
    made = msgspec.structs.replace(made, steps=tuple(steps))
    for index, weights in enumerate(forecasts(made)):
        moments = [made.steps[each].moment for each, _ in weights]
        assert len(set(moments)) == len(moments), "moments are different"
        assert all(made.steps[each].chosen.evaluates for each, _ in weights)
        assert sum(weight for _, weight in weights) == pytest.approx(float(bool(weights)))
        assert bool(weights) == (not made.steps[index].chosen.evaluates)
