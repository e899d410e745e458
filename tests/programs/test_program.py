from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from eecompile.errors import UsageError
from eecompile.programs.choice import Exit
from eecompile.programs.process import Process
from eecompile.programs.program import FORMAT, Program, Step, Term, Update
from eecompile.programs.schedule import ExitSchedule
from eecompile.programs.solvers import SOLVERS

STATE = (Term("state", 1.0),)


def program(*updates: Update, terms: tuple[Term, ...] = STATE, initial: float = 1.0) -> Program:
    return Program(solver="x", initial=initial, steps=(Step(Exit(1), 0.0, terms, updates),))


@given(
    name=st.sampled_from(["ddim", "ddpm"]),
    steps=st.integers(1, 60),
    depths=st.lists(st.integers(1, 12), min_size=1, max_size=10),
    prediction=st.sampled_from(["epsilon", "sample", "v_prediction"]),
    clip=st.sampled_from([None, (-1.0, 1.0)]),
)
def test_a_program_survives_json(
    name: str,
    steps: int,
    depths: list[int],
    prediction: str,
    clip: tuple[float, float] | None,
) -> None:
    process = Process(prediction=prediction)  # type: ignore[arg-type]
    schedule = ExitSchedule.from_slices(depths)
    made = SOLVERS[name](process, steps, lambda t: schedule.choice_at(t, 1000), clip=clip)
    assert Program.from_json(made.to_json()) == made
    assert made.choices == tuple(schedule.choice_at(s.timestep, 1000) for s in made.steps)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Program(solver="x", initial=1.0, steps=()), "without steps"),
        (lambda: program(terms=(Term("data", 1.0),)), "'data' read before"),
        (lambda: program(Update("state", (Term("old", 1.0),))), "'old' read before"),
        (lambda: program(Update("output", STATE)), "reserved buffer 'output'"),
        (lambda: program(Update("noise", STATE)), "reserved buffer 'noise'"),
        (lambda: program(Update("state", (Term("state", float("nan")),))), "not finite"),
        (lambda: program(Update("state", ())), "no terms"),
        (lambda: program(terms=()), "no terms"),
        (lambda: program(initial=float("inf")), "inf"),
        (lambda: Program.from_json(b'{"solver": 1}'), "no program"),
        (lambda: Program.from_json(b"{"), "no program"),
        (lambda: Program.from_json(b'{"a": ' + b"[" * 100_000), "no program"),
        (lambda: Program.from_json(b'{"solver": "\xff\xfe"}'), "no program"),
        (
            lambda: Program.from_json(
                program(Update("state", STATE, (-1, 1))).to_json().replace(b'"clip"', b'"clpi"')
            ),
            "clpi",
        ),
        (lambda: program(Update("state", (Term("state", 1e39),))), "not finite in float32"),
        (lambda: program(Update("state", STATE, (1.0, -1.0))), "clip to"),
        (
            lambda: Program.from_json(
                program().to_json().replace(f'"format": {FORMAT}'.encode(), b'"format": 9')
            ),
            "format 9",
        ),
    ],
)
def test_a_malformed_program_is_refused(make: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()  # type: ignore[operator]


def test_a_buffer_may_be_read_once_written() -> None:
    keep = Update("old", (Term("output", 1.0),))
    steps = (Step(Exit(1), 9.0, STATE, (keep,)), Step(Exit(1), 0.0, (Term("old", 1.0),), ()))
    assert Program(solver="x", initial=1.0, steps=steps).steps == steps


def test_a_program_is_told_in_a_line() -> None:
    choices = ["12", "12", "forecast1", "forecast1", *["6", "12"] * 8]
    schedule = ExitSchedule.from_slices([*reversed(choices)])
    made = SOLVERS["ddim"](Process(), 20, lambda t: schedule.choice_at(t, 1000))
    told = "12 x 2, forecast1 x 2, 6, 12, 6, 12, 6, ..."
    assert repr(made) == f"<Program ddim(eta=0, trailing), 20 steps: {told}>"
    assert "<Program x, 1 steps: open>" in repr(
        Program(solver="x", initial=1.0, steps=(Step(None, 0.0, STATE, ()),))
    )
