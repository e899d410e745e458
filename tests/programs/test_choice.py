"""What a step evaluates: its text, what it needs, and what is refused."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given

from eecompile.errors import ScheduleError, UsageError
from eecompile.programs.choice import (
    HIGHEST,
    OUTPUT,
    Choice,
    Exit,
    Forecast,
    Span,
    check_choices,
    choice_from_text,
    choice_of,
)
from eecompile.programs.interface import Interface, State
from eecompile.programs.program import FORMAT, Program, Step, Term, Update

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
ENGINES = st.one_of(st.just(""), NAMES)
ENDS = st.lists(st.integers(0, 10_000), min_size=2, max_size=2, unique=True).map(sorted)
CHOICES = st.one_of(
    st.builds(Exit, st.integers(1, 10_000), ENGINES),
    st.builds(
        lambda ends, more, order, engine: Span(*ends, order, ends[1] + more, engine),
        ENDS,
        st.integers(0, 99),
        st.integers(0, HIGHEST),
        ENGINES,
    ),
    st.builds(Forecast, st.integers(0, HIGHEST)),
)


def program(*choices: Choice | None) -> Program:
    updates = (Update("state", (Term("output", 1.0),)),)
    steps = tuple(
        Step(choice, float(len(choices) - at), (Term("state", 1.0),), updates)
        for at, choice in enumerate(choices)
    )
    return Program(solver="x", initial=1.0, steps=steps)


@given(CHOICES)
def test_a_choice_survives_its_text_and_json(choice: Choice) -> None:
    assert choice_from_text(choice.text) == choice_of(choice.text) == choice
    assert choice_from_text(f" {choice.text} ") == choice
    assert choice_of(choice) is choice
    assert msgspec.json.decode(msgspec.json.encode(choice), type=Choice) == choice
    assert hash(choice_from_text(choice.text)) == hash(choice)


def test_the_texts_are_those_of_schedules() -> None:
    choices = (Exit(12), Exit(12, "cpu"), Forecast(), Forecast(1), Forecast(2))
    assert [c.text for c in choices] == ["12", "12@cpu", "again", "forecast1", "forecast2"]
    assert choice_from_text("012 @ cpu") == Exit(12, "cpu")
    assert choice_of(7) == choice_of("7") == Exit(7)
    assert choice_of(np.int64(7)) == Exit(7)  # type: ignore[arg-type]
    assert type(Exit(np.int64(7)).depth) is int  # type: ignore[arg-type]
    assert type(Forecast(np.int64(1)).order) is int  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", " ", "0", "00", "-1", "+1", "1.5", "twelve", "12@", "@x", "@", "reuse", "again@cpu",
     "Again", "again again", "1_2", "12;6", "forecast", "forecast0", "forecast3", "forecast-1",
     "12/6-9", "/6-9:1", "12/6:1", "12/6-9:1@", "12/6-9:1:1", "12/-6-9:1", "12/6-9:10",
     "forecast 1", "forecast1@cpu", "forecast01", "Forecast1", "9" * 5000,
     "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT TWO}"],
)  # fmt: skip
def test_a_text_that_is_no_choice_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        choice_from_text(text)
    found = f"{text.strip()!r} in an exit schedule"
    assert caught.value.found[:1000] == found[:1000], "longer ones are cut"
    forecasts = "'again', 'forecast1' or 'forecast2' for a forecast"
    assert forecasts in caught.value.expected
    assert caught.value.remedy == "name the exits to run"
    with pytest.raises(ScheduleError):
        choice_of(text)


@pytest.mark.parametrize("depth", [0, -1, -12, True, False, 1.0, float("nan"), None, (3,), "3"])
def test_a_depth_that_is_none_is_refused(depth: Any) -> None:
    with pytest.raises(ScheduleError) as caught:
        Exit(depth)
    assert caught.value.found == f"depth {depth!r} in an exit schedule"
    forecasts = "'again', 'forecast1' or 'forecast2' for a forecast"
    assert caught.value.expected == f"a positive depth, or {forecasts}"
    if not isinstance(depth, str):
        with pytest.raises(ScheduleError, match="a positive depth"):
            choice_of(depth)


def test_the_name_of_an_engine_set_is_a_text() -> None:
    with pytest.raises(ScheduleError, match="depth 12 of engine set 5"):
        Exit(12, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [-1, 3, True, False, 1.0, float("nan"), None, "1", (1,)])
def test_an_order_that_is_none_is_refused(order: Any) -> None:
    with pytest.raises(ScheduleError) as caught:
        Forecast(order)
    assert caught.value.found == f"a forecast of order {order!r}"
    assert caught.value.expected == "an order from 0 to 2"


def test_what_a_choice_needs_and_costs() -> None:
    def cost(depth: int) -> float:
        return {3: 0.4, 12: 1.0}[depth]

    exit_, again = Exit(3, "cpu"), Forecast()
    assert (exit_.evaluates, exit_.blocks, exit_.exits, exit_.engine) == (True, 3, (3,), "cpu")
    assert (again.evaluates, again.blocks, again.exits, again.engine) == (False, 0, (), "")
    assert (exit_.memory, exit_.order, exit_.makes(OUTPUT)) == (None, 0, True)
    assert (again.memory, again.order, again.makes(OUTPUT)) == (OUTPUT, 0, False)
    assert (Forecast(2).memory, Forecast(2).order) == (OUTPUT, 2)
    assert not exit_.makes("blocks 2 to 3")
    assert (exit_.cost(cost), again.cost(cost)) == (0.4, 0)
    state = State(shape=(3,))
    by_blocks = Interface(name="n", exits=(3, 12), state=state)
    measured = Interface(name="n", exits=(3, 12), state=state, costs=(4.0, 5.0))
    for interface, share in ((by_blocks, 0.25), (measured, 0.8)):
        assert interface.cost(exit_) == interface.cost_of_exit(3) == share
        assert interface.cost(Exit(12)) == 1
        assert interface.cost(again) == 0


def test_what_a_span_needs_makes_and_costs() -> None:
    span = Span(6, 9, 1, 12, "cpu")
    assert span.text == "12/6-9:1@cpu"
    assert (span.evaluates, span.blocks, span.exits, span.cuts) == (True, 9, (12,), (6, 9))
    assert (span.memory, span.order, span.engine) == ("span 6-9", 1, "cpu")
    made = {m for m in ("0-6", "0-7", "6-9", "7-8", "9-12", "3-12") if span.makes(f"span {m}")}
    assert made == {"0-6", "9-12"}
    assert span.makes(OUTPUT)
    assert [Exit(9).makes(f"span {m}") for m in ("0-6", "6-9", "6-12")] == [True, True, False]
    assert not any(Forecast().makes(f"span {m}") for m in ("0-6", "6-9"))
    assert span.cost({12: 2.0}.__getitem__) == 1.5
    interface = Interface(name="n", exits=(6, 12), state=State(shape=(3,)), cuts=(0, 6, 9, 12))
    assert interface.cost(span) == 1 - interface.spans[6, 9] == 0.75
    assert list(interface.spans) == [(0, 6), (0, 9), (0, 12), (6, 9), (6, 12), (9, 12)]
    kinds = Span(*(np.int64(n) for n in (6, 9, 1, 12)))  # type: ignore[arg-type]
    assert {type(each) for each in (kinds.start, kinds.stop, kinds.order, kinds.depth)} == {int}


@pytest.mark.parametrize("text", ["12/9-6:1", "12/6-6:1", "12/6-13:1", "12/6-9:3"])
def test_a_text_of_a_span_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match=r"ascending cuts from 0 to the exit|an order from 0"):
        choice_from_text(text)


@pytest.mark.parametrize("ends", [(6, 6), (9, 6), (-1, 6), (6, 13), (1.0, 6), (True, 6), (None, 6)])
def test_ends_that_do_not_fit_are_refused(ends: Any) -> None:
    with pytest.raises(ScheduleError, match="expected ascending cuts from 0 to the exit"):
        Span(*ends, 1, 12)


def test_cuts_are_checked() -> None:
    choices = [Exit(12), Span(6, 9, 0, 12)]
    check_choices(choices, {12}, (6, 9))
    message = r"'12/6-9:0' .* needs a cut at 9; expected one of the cuts \[0, 6\]; .* network.cuts"
    with pytest.raises(ScheduleError, match=message):
        check_choices(choices, {12}, (0, 6))
    with pytest.raises(ScheduleError, match="no spans: the network has no cuts"):
        check_choices(choices, {12})


def test_exits_are_checked_and_open_choices_need_none() -> None:
    check_choices([Exit(3), None, Forecast(), Exit(12, "cpu")], {12, 3})
    with pytest.raises(ScheduleError, match=r"depth 5 .* one of the exits \[3, 12\]; use these"):
        check_choices([Exit(3), Exit(5)], {12, 3})


@pytest.mark.parametrize(
    "written",
    [b"12", b'"again"', b"{}", b'{"type": "skip"}', b'{"type": "exit"}',
     b'{"type": "exit", "depth": 0}', b'{"type": "exit", "depth": true}',
     b'{"type": "exit", "depth": 3, "speed": 2}', b'{"type": "exit", "depth": 3, "engine": 1}',
     b'{"type": "forecast", "order": 3}', b'{"type": "forecast", "order": -1}',
     b'{"type": "forecast", "order": true}', b'{"type": "forecast", "order": 1.5}',
     b'{"type": "forecast", "depth": 3}', b'{"type": "span", "start": 1, "stop": 2, "order": 0}'],
)  # fmt: skip
def test_json_that_is_no_choice_is_refused(written: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(written, type=Choice)
    step = msgspec.json.encode(program(Exit(3))).replace(b'{"type":"exit","depth":3}', written)
    with pytest.raises(UsageError, match="no program"):
        Program.from_json(step)


@given(st.lists(st.one_of(CHOICES, st.none()), max_size=6))
def test_the_choices_of_a_program_survive_json(choices: list[Choice | None]) -> None:
    first = [Exit(20_000)] * (HIGHEST + 1)
    made = program(*first, *choices)
    assert made.choices == (*first, *choices)
    assert Program.from_json(made.to_json()) == made
    assert set(made.with_choices(lambda time: None).choices) == {None}


@pytest.mark.parametrize(
    ("choices", "found", "least"),
    [
        ((Forecast(),), "step 0 is 'again', after 0 evaluations", 1),
        ((Forecast(1), Exit(3)), "step 0 is 'forecast1', after 0 evaluations", 2),
        ((Exit(3), Forecast(1), Exit(3)), "step 1 is 'forecast1', after 1 evaluation", 2),
        ((None, Exit(3), Forecast(1), Forecast(2)), "step 3 is 'forecast2', after 2 eval", 3),
    ],
)
def test_a_forecast_needs_more_evaluations_than_its_order(
    choices: tuple[Choice | None, ...], found: str, least: int
) -> None:
    with pytest.raises(UsageError) as caught:
        program(*choices)
    error = caught.value
    assert error.found.startswith(f"a program whose {found}")
    assert error.expected == f"at least {least} before it to extrapolate from"
    assert error.remedy.startswith("give exits to the largest times of the exit schedule")
    assert ("a lower order" in error.remedy) == ("after 0" not in found)
    with pytest.raises(UsageError, match="whose step 0 is 'again', after 0 evaluations"):
        program(Exit(3), Exit(3)).with_choices(lambda time: Forecast())


@pytest.mark.parametrize("depth", [12, 0, -1])
def test_a_program_of_the_former_format_is_recognised(depth: int) -> None:
    step = {"depth": depth, "timestep": 0.0, "input": [["state", 1.0]], "updates": []}
    older = {"solver": "ddim", "initial": 1.0, "steps": [step], "process": None, "format": 3}
    with pytest.raises(UsageError) as caught:
        Program.from_json(msgspec.json.encode(older))
    error = caught.value
    assert (error.found, error.expected) == ("a program of format 3", f"format {FORMAT}")
    assert error.remedy == "compile the program again"
