from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from eecompile.errors import ScheduleError
from eecompile.programs.schedule import REUSE, ExitSchedule

depths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(depths=depths, timesteps=st.integers(1, 2000), data=st.data())
def test_equal_slices_follow_integer_arithmetic(
    depths: list[int], timesteps: int, data: st.DataObject
) -> None:
    timestep = data.draw(st.integers(0, timesteps - 1))
    schedule = ExitSchedule.from_slices(depths)
    expected = depths[timestep * len(depths) // timesteps]
    assert schedule.depth_at(timestep, timesteps) == expected


@given(depths=depths)
def test_the_mean_cost_is_the_mean_over_time(depths: list[int]) -> None:
    share = ExitSchedule.from_slices(depths).mean(lambda depth: depth / 40)
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
    assert [schedule.depth_at(t, 1000) for t in (0, 199, 200, 500, 999)] == [28, 28, 24, 20, 12]


@pytest.mark.parametrize(
    "text",
    ["", "a", "12,", "12:0.5", "12:0.5,6:0.2,3", "12:2,3", "0", "-3", "12@", "9,0", "12@a,@b"],
)
def test_a_text_that_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError):
        ExitSchedule.parse(text)


def test_tables_check_themselves() -> None:
    with pytest.raises(ScheduleError, match="one depth more"):
        ExitSchedule((3, 6), ())
    with pytest.raises(ScheduleError, match="ascending"):
        ExitSchedule((3, 6, 9), (0.5, 0.5))
    with pytest.raises(ScheduleError, match="ascending"):
        ExitSchedule((3, 6), (float("nan"),))
    with pytest.raises(ScheduleError, match="no previous output yet"):
        ExitSchedule((0,))
    with pytest.raises(ScheduleError, match=r"depth 5 .* one of the exits \[3, 6\]"):
        ExitSchedule((3, 5), (0.5,)).check([6, 3])


def test_lists_are_as_good_as_tuples() -> None:
    assert ExitSchedule([12, 6], [0.5]) == ExitSchedule((12, 6), (0.5,))  # type: ignore[arg-type]
    assert hash(ExitSchedule([12, 6], [0.5]))  # type: ignore[arg-type]
    for depths, thresholds in (((6, 3), ("a",)), ((6.5, 3), (0.5,)), ((6, 3), 5)):
        with pytest.raises(ScheduleError, match="fractions of T"):
            ExitSchedule(depths, thresholds)  # type: ignore[arg-type]


def test_no_block_runs_where_the_previous_output_is_used_again() -> None:
    schedule = ExitSchedule.parse("12,0,6")
    assert [schedule.depth_at(t, 300) for t in (0, 100, 299)] == [12, REUSE, 6]
    assert schedule.check([3, 6, 12]) is schedule
    with pytest.raises(ScheduleError, match="no previous output yet"):
        ExitSchedule((6, 0), (0.5,))
    with pytest.raises(ScheduleError, match="no previous output yet"):
        ExitSchedule.constant(REUSE)


@given(
    depths=depths,
    names=st.lists(st.sampled_from(["", "cpu", "gpu-fp16"]), min_size=12, max_size=12),
)
def test_engine_sets_are_chosen_by_slice_and_survive_text_and_file(
    depths: list[int], names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    engines = tuple(names[: len(depths)])
    schedule = msgspec.structs.replace(ExitSchedule.from_slices(depths), engines=engines)
    found = [schedule.engine_at(index, len(depths)) for index in range(len(depths))]
    assert found == list(engines)
    text = ",".join(f"{d}@{n}" if n else str(d) for d, n in zip(depths, engines, strict=True))
    assert ExitSchedule.parse(text) == schedule
    file = tmp_path_factory.mktemp("schedules") / "found.json"
    file.write_bytes(schedule.to_json(budget=0.7, solver="ddim"))
    assert ExitSchedule.read(file) == ExitSchedule.parse(str(file)) == schedule
    assert json.loads(file.read_text())["about"] == {"budget": 0.7, "solver": "ddim"}


def test_engine_sets_must_fit_the_slices() -> None:
    with pytest.raises(ScheduleError, match="for each depth"):
        ExitSchedule((3, 6), (0.5,), ("cpu",))
    with pytest.raises(ScheduleError, match="for each depth"):
        ExitSchedule((3,), (), "cpu")  # type: ignore[arg-type]
    assert ExitSchedule((3, 6), (0.5,), ("", "")).engines == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b'{"format": 2, "schedule": {"depths": [3]}}', b"\xff\xfe",
     b'{"format": 1, "schedule": {"depths": [3], "speed": 2}}',
     b'{"format": 1, "schedule": {"depths": [0]}}'],
)  # fmt: skip
def test_a_file_that_holds_no_schedule_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(ScheduleError, match="no exit schedule"):
        ExitSchedule.read(tmp_path / "s.json")
    with pytest.raises(ScheduleError, match="no exit schedule"):
        ExitSchedule.read(tmp_path / "missing.json")
