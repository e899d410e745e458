"""The tape: values, what it refuses, and how it assigns buffers."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from eecompile.programs.choice import Choice, Exit
from eecompile.programs.process import Family, Process
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.programs.solvers import FACTS
from eecompile.programs.tape import Tape, Value
from tests.programs.interpreter import Array, run

PREDICTIONS: dict[Family, list[str]] = {
    "diffusion": ["epsilon", "sample", "v_prediction"],
    "flow": ["flow", "epsilon", "sample"],
    "edm": ["edm", "epsilon", "sample"],
}


def network(depth: int, x: Array, t: float) -> Array:
    return np.sin(2 * x + t / 300) + depth / 10


def noise_of(draw: int) -> Array:
    return np.random.default_rng(draw).standard_normal((2, 5))


def apart(tape: Tape) -> None:
    """Give every kept value a buffer of its own."""
    for index, node in enumerate(tape._nodes):
        special = node.hint in ("state", "output", "noise")
        node.buffer = node.hint if special else f"kept{index}"


@st.composite
def cases(draw: Any) -> tuple[str, Process, int, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(FACTS)))
    family = draw(st.sampled_from(FACTS[name].families))
    prediction = draw(st.sampled_from(PREDICTIONS[family]))
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["clip"] = (-1.0, 1.0)
    if name in ("unipc", "deis"):
        options["order"] = draw(st.integers(1, 3))
    if name.startswith("dpm-solver"):
        options["form"] = draw(st.sampled_from(["noise", "data"]))
        options["denoise"] = draw(st.booleans())
    if name == "heun":
        options["churn"] = draw(st.sampled_from([0.0, 20.0]))
    steps = draw(st.integers(1, 50 if name == "lcm" else 60))
    if name != "lcm" and draw(st.booleans()):
        options["grid"] = draw(st.sampled_from(["leading", "linspace", "karras", "quadratic"]))
    process = Process(
        family=family,
        prediction=prediction,
        shift=draw(st.sampled_from([1.0, 3.0])),
        betas=draw(st.sampled_from(["linear", "continuous"])),
    )
    return name, process, steps, options


@settings(max_examples=150)
@given(case=cases(), depths=st.lists(st.integers(1, 12), min_size=1, max_size=10))
def test_every_program_is_sound(case: Any, depths: list[int]) -> None:
    name, process, steps, options = case
    schedule = ExitSchedule.from_slices(depths)

    def choice_at(time: float) -> Choice:
        assert 0 <= time <= process.timesteps
        return schedule.choice_at(time, process.timesteps)

    made = FACTS[name].solver(process, steps, choice_at, **options)
    assert Program.from_json(made.to_json()) == made
    assert made.choices == tuple(choice_at(step.moment) for step in made.steps)
    moments = [step.moment for step in made.steps]
    assert len(set(moments)) >= steps
    assert max(len(update.terms) for step in made.steps for update in step.updates) <= 6
    assert len(made.buffers) <= 8
    found = run(made, network, noise_of)
    assert np.all(np.isfinite(found))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tape, "_assign", apart)
        spread = FACTS[name].solver(process, steps, choice_at, **options)
    assert len(spread.buffers) >= len(made.buffers)
    np.testing.assert_array_equal(found, run(spread, network, noise_of))


@pytest.mark.parametrize("name", sorted(FACTS))
def test_buffers_do_not_grow_with_the_steps(name: str) -> None:
    facts = FACTS[name]
    for family in facts.families:
        process = Process(family=family, prediction=PREDICTIONS[family][0])  # type: ignore[arg-type]
        few, many = (facts.solver(process, steps, lambda t: Exit(1)).buffers for steps in (12, 48))
        assert few == many
        assert set(many).isdisjoint({"output", "noise"})


def test_values_are_linear() -> None:
    x, y = Value({1: 1.0}), Value({2: 1.0})
    assert (2 * (x - y) / 4 + y - -x).terms == {1: 1.5, 2: 0.5}
    assert x.terms == {1: 1.0}


@pytest.fixture
def tape() -> Tape:
    process = Process()
    return Tape(process, lambda time: Exit(1), process.last)


def test_a_prediction_is_of_data_and_noise(tape: Tape) -> None:
    point = tape.process.at(500.0)
    data, noise = tape.evaluate(tape.state, point)
    both = point.alpha * data + point.sigma * noise
    for node, coefficient in tape.state.terms.items():
        assert both.terms[node] == pytest.approx(coefficient)
    assert sum(abs(c) for n, c in both.terms.items() if n not in tape.state.terms) < 1e-12


def test_what_crosses_an_evaluation_is_kept(tape: Tape) -> None:
    start, point = tape.state, tape.process.at(500.0)
    output = tape.raw(start, point)
    noise = tape.noise()
    kept = tape.keep(output, "old")
    assert tape.keep(kept, "older") is kept
    with pytest.raises(AssertionError, match="on output, not kept"):
        tape.raw(output, point)
    tape.advance(2 * start + output)
    with pytest.raises(AssertionError, match="a former state"):
        tape.keep(start, "start")
    tape.raw(tape.state, point)
    for lost, name in ((output, "output"), (noise, "noise")):
        with pytest.raises(AssertionError, match=f"a former {name}"):
            tape.advance(lost)
    with pytest.raises(AssertionError, match="reserved name 'noise'"):
        tape.keep(tape.state, "noise")
    tape.advance(kept)
    assert tape.finish("x").buffers == ("state", "old")


def test_what_nothing_reads_is_dropped(tape: Tape) -> None:
    point = tape.process.at(500.0)
    first = tape.keep(tape.raw(tape.state, point), "first")
    tape.keep(first * 2, "second")
    tape.advance(tape.state + first)
    tape.keep(tape.raw(tape.state, point), "third")
    program = tape.finish("x")
    assert [[update.into for update in step.updates] for step in program.steps] == [
        ["first", "state"],
        [],
    ]


def test_a_buffer_is_used_again_once_it_is_free(tape: Tape) -> None:
    point = tape.process.at(500.0)
    one = tape.keep(tape.raw(tape.state, point), "kept")
    two = tape.keep(tape.raw(tape.state, point), "kept")  # while one is needed
    tape.advance(one + two)
    three = tape.keep(tape.raw(two, point) + two, "kept")  # two is read for the last time
    tape.advance(tape.state + three)
    program = tape.finish("x")
    written = [update.into for step in program.steps for update in step.updates]
    assert written[:3] == ["kept", "kept.1", "state"]
    assert written[3] in ("kept", "kept.1")
    assert program.buffers == ("state", "kept", "kept.1")


def test_a_buffer_is_needed_until_it_is_the_networks_input(tape: Tape) -> None:
    point = tape.process.at(500.0)
    one = tape.keep(tape.raw(tape.state, point), "kept")
    two = tape.keep(tape.raw(tape.state, point), "kept")
    tape.advance(two + tape.raw(one, point))
    steps = tape.finish("x").steps
    assert [step.updates[0].into for step in steps] == ["kept", "kept.1", "state"]
    assert [term.buffer for term in steps[2].input] == ["kept"]


def test_terms_that_cancel_are_dropped(tape: Tape) -> None:
    output = tape.raw(tape.state, tape.process.at(500.0))
    tape.advance(0.1 * output + 0.2 * output - 0.3 * output + tape.state)
    (term,) = tape.finish("x").steps[0].updates[0].terms
    assert term.buffer == "state"


def test_the_last_noise_scale_counts(tape: Tape) -> None:
    tape.raw(tape.state, tape.process.at(500.0))
    tape.advance(tape.state + tape.noise((-2.0, -1.0)))
    (step,) = tape.finish("x").steps
    assert step.reads_noise
    assert step.log_variances == (-2.0, -1.0)
