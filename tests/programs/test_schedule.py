from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from eecompile.errors import ScheduleError
from eecompile.programs.choice import Exit, Forecast
from eecompile.programs.schedule import ExitSchedule

EXIT = b'{"type": "exit", "depth": 3}'
depths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(depths=depths, timesteps=st.integers(1, 2000), data=st.data())
def test_equal_slices_follow_integer_arithmetic(
    depths: list[int], timesteps: int, data: st.DataObject
) -> None:
    timestep = data.draw(st.integers(0, timesteps - 1))
    schedule = ExitSchedule.from_slices(depths)
    expected = depths[timestep * len(depths) // timesteps]
    assert schedule.choice_at(timestep, timesteps) == Exit(expected)


@given(depths=depths)
def test_the_mean_cost_is_the_mean_over_time(depths: list[int]) -> None:
    share = ExitSchedule.from_slices(depths).mean(lambda choice: choice.blocks / 40)
    assert share == pytest.approx(sum(depths) / len(depths) / 40)


@given(
    depths=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    ends=st.sets(st.floats(0.01, 0.99), min_size=7, max_size=7),
)
def test_a_schedule_survives_its_text(depths: list[int], ends: set[float]) -> None:
    thresholds = tuple(sorted(ends)[: len(depths) - 1])
    text = ",".join(
        [f"{d}:{end!r}" for d, end in zip(depths, thresholds, strict=False)] + [str(depths[-1])]
    )
    assert ExitSchedule.parse(text) == ExitSchedule(tuple(depths), thresholds)


def test_the_papers_schedule() -> None:
    # arXiv 2408.05927's published schedule for 28 blocks: t = 0 first.
    schedule = ExitSchedule.from_slices((28, 28, 24, 24, 20, 20, 16, 16, 12, 12))
    found = [schedule.choice_at(t, 1000) for t in (0, 199, 200, 500, 999)]
    assert found == [Exit(28), Exit(28), Exit(24), Exit(20), Exit(12)]
    assert schedule.exits == (28, 24, 20, 16, 12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "12,",
        "12:0.5",
        "12:0.5,6:0.2,3",
        "12:2,3",
        "0",
        "-3",
        "12@",
        "9,0",
        "12@a,@b",
        "9,again",
        "again",
        "12,reuse,6",
        "12,again@cpu,6",
        "9,forecast1",
        "12,forecast3,6",
        "12,forecast1@cpu,6",
        "12,0,6",
        "12:0.2,0:0.6,6",
        "1e1",
        "12,,6",
    ],
)
def test_a_text_that_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError):
        ExitSchedule.parse(text)


def test_tables_check_themselves() -> None:
    with pytest.raises(ScheduleError, match="one choice more"):
        ExitSchedule((3, 6), ())
    with pytest.raises(ScheduleError, match="ascending"):
        ExitSchedule((3, 6, 9), (0.5, 0.5))
    with pytest.raises(ScheduleError, match="ascending"):
        ExitSchedule((3, 6), (float("nan"),))
    with pytest.raises(ScheduleError, match="nothing to extrapolate from yet"):
        ExitSchedule((Forecast(),))
    with pytest.raises(ScheduleError, match=r"depth 5 .* one of the exits \[3, 6\]"):
        ExitSchedule((3, 5), (0.5,)).check([6, 3])


def test_lists_are_as_good_as_tuples() -> None:
    assert ExitSchedule([12, 6], [0.5]) == ExitSchedule((12, 6), (0.5,))  # type: ignore[arg-type]
    assert hash(ExitSchedule([12, 6], [0.5]))  # type: ignore[arg-type]
    for choices, thresholds in (((6, 3), ("a",)), (5, (0.5,)), ((6, 3), 5), ("63", (0.5,))):
        with pytest.raises(ScheduleError, match="fractions of T"):
            ExitSchedule(choices, thresholds)  # type: ignore[arg-type]
    for choices in ((6.5, 3), (6, None), (0, 6), (-1, 6), (True, 6)):
        with pytest.raises(ScheduleError, match="expected a positive depth, or 'again'"):
            ExitSchedule(choices, (0.5,))  # type: ignore[arg-type]
    for choices in (5, "63", None):
        with pytest.raises(ScheduleError, match="a choice for each slice of time"):
            ExitSchedule.from_slices(choices)  # type: ignore[arg-type]


def test_depths_and_texts_stand_for_choices() -> None:
    choices = (Exit(12), Forecast(), Exit(6, "cpu"))
    expected = ExitSchedule(choices, (0.2, 0.6))
    assert ExitSchedule((12, "again", "6@cpu"), (0.2, 0.6)) == expected  # type: ignore[arg-type]
    assert ExitSchedule.parse("12:0.2,again:0.6,6@cpu") == expected
    assert expected.text == "12:0.2,again:0.6,6@cpu"
    assert expected.exits == (12, 6)
    assert ExitSchedule.from_slices([12, "again", Exit(6)]).choices == (*choices[:2], Exit(6))
    assert ExitSchedule.constant(6) == ExitSchedule.constant(Exit(6)) == ExitSchedule((Exit(6),))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_no_block_runs_in_a_forecast(order: int) -> None:
    schedule = ExitSchedule.parse(f"12,{Forecast(order).text},6")
    found = [schedule.choice_at(t, 300) for t in (0, 100, 299)]
    assert found == [Exit(12), Forecast(order), Exit(6)]
    assert schedule == ExitSchedule.from_slices([12, Forecast(order), 6])
    assert schedule.mean(lambda choice: choice.blocks / 12) == pytest.approx(1.5 / 3)
    assert schedule.check([3, 6, 12]) is schedule
    with pytest.raises(ScheduleError, match="nothing to extrapolate from yet"):
        ExitSchedule((Exit(6), Forecast(order)), (0.5,))
    with pytest.raises(ScheduleError, match="nothing to extrapolate from yet"):
        ExitSchedule.constant(Forecast(order))


@given(
    depths=depths,
    names=st.lists(st.sampled_from(["", "cpu", "gpu-fp16"]), min_size=12, max_size=12),
)
def test_engine_sets_are_chosen_by_slice_and_survive_text_and_file(
    depths: list[int], names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    engines = tuple(names[: len(depths)])
    schedule = ExitSchedule.from_slices(list(map(Exit, depths, engines)))
    found = [schedule.choice_at(index, len(depths)).engine for index in range(len(depths))]
    assert found == list(engines)
    text = ",".join(f"{d}@{n}" if n else str(d) for d, n in zip(depths, engines, strict=True))
    assert ExitSchedule.parse(text) == schedule
    file = tmp_path_factory.mktemp("schedules") / "found.json"
    file.write_bytes(schedule.to_json(budget=0.7, solver="ddim"))
    assert ExitSchedule.read(file) == ExitSchedule.parse(str(file)) == schedule
    assert json.loads(file.read_text())["about"] == {"budget": 0.7, "solver": "ddim"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b'{"format": 3, "schedule": {"choices": [%s]}}' % EXIT, b"\xff\xfe",
     b'{"format": 2, "schedule": {"choices": [%s], "speed": 2}}' % EXIT,
     b'{"format": 2, "schedule": {"choices": [3]}}',
     b'{"format": 2, "schedule": {"choices": [{"type": "exit", "depth": 0}]}}',
     b'{"format": 2, "schedule": {"choices": [{"type": "forecast"}]}}',
     b'{"format": 2, "schedule": {"choices": [{"type": "skip"}]}}'],
)  # fmt: skip
def test_a_file_that_holds_no_schedule_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(ScheduleError, match="no exit schedule"):
        ExitSchedule.read(tmp_path / "s.json")
    with pytest.raises(ScheduleError, match="no exit schedule"):
        ExitSchedule.read(tmp_path / "missing.json")


def test_a_file_of_the_former_format_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(b'{"format": 2, "schedule": {"choices": [%s]}}' % EXIT)
    assert ExitSchedule.read(path) == ExitSchedule.constant(3)
    path.write_bytes(b'{"format": 1, "schedule": {"depths": [3]}, "about": {"solver": "ddim"}}')
    with pytest.raises(ScheduleError, match=r"its format is 1, not 2.*; .*write the file again"):
        ExitSchedule.read(path)
