"""Timing in turns."""

from __future__ import annotations

from eecompile.measure.timing import interleaved


def test_actions_take_turns_and_a_failing_one_leaves_the_others() -> None:
    order: list[str] = []

    def fail() -> None:
        order.append("c")
        if order.count("c") == 3:
            raise ValueError("enough")

    timings = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b"), "c": fail}, rounds=4
    )
    assert order == ["a", "b", "c", "a", "b", "c", "b", "c", "a", "a", "b", "a", "b"]
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {
        "a": 4,
        "b": 4,
        "c": 1,
    }
    assert str(timings.failures["c"]) == "enough"


def test_rounds_are_bounded_by_time_between_a_least_and_a_most() -> None:
    for seconds, rounds in ((0.0, 3), (60.0, 5)):
        told: list[tuple[int, int]] = []
        timings = interleaved(
            {"a": lambda: None},
            seconds=seconds,
            least=3,
            most=5,
            report=lambda done, total, told=told: told.append((done, total)),
        )
        assert len(timings.seconds["a"]) == rounds
        assert told == [(done, 5) for done in range(rounds)]


def test_of_two_in_a_turn_the_second_counts() -> None:
    calls: list[str] = []
    timings = interleaved({"a": lambda: calls.append("a")}, rounds=3, twice=True, warm=True)
    assert len(calls) == 6
    assert len(timings.seconds["a"]) == 3
