"""What has been measured is kept, whatever interrupts it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eecompile.errors import BusyError, OutputExistsError
from eecompile.tune.work import Work


def filled(path: Path) -> None:
    with Work(path, "a") as work:
        work.put("list", [1.5, [2, float("inf")]])
        work.put("array", np.arange(6, dtype=np.float32).reshape(2, 3))


def test_results_are_there_again(tmp_path: Path) -> None:
    filled(tmp_path / "work")
    with Work(tmp_path / "work", "a") as work:
        assert work.get("list") == [1.5, [2, float("inf")]]
        np.testing.assert_array_equal(work.get("array"), [[0, 1, 2], [3, 4, 5]])
        assert work.get("other") is None


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    filled(tmp_path / "work")
    with Work(tmp_path / "work", "b") as work:
        assert work.get("list") is None
        work.put("list", 1)
    with Work(tmp_path / "work", "b") as work:
        assert work.kept == {"list": 1}


def test_every_torn_end_is_dropped_and_what_came_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "work"
    with Work(path, "a") as work:
        work.put("first", 1)
        whole = path.stat().st_size
        work.put("second", [2.0] * 50)
    data = path.read_bytes()
    for end in range(whole, len(data)):
        path.write_bytes(data[:end])
        with Work(path, "a") as work:
            assert work.kept == {"first": 1}
            work.put("third", 3)
        with Work(path, "a") as work:
            assert work.kept == {"first": 1, "third": 3}


def test_what_is_damaged_is_not_taken_for_a_result(tmp_path: Path) -> None:
    path = tmp_path / "work"
    filled(path)
    data = path.read_bytes()
    with Work(path, "a") as work:
        whole = dict(work.kept)
    for place in range(data.index(b"list"), len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with Work(path, "a") as work:
            assert work.kept == dict(list(whole.items())[: len(work.kept)])
            assert work.kept != whole


@pytest.mark.posix
def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "work"
    for data in (b"x", b"\xff" * 100, b"\x03\0\0\0\0\0\0\0abc"):
        path.write_bytes(data)
        with pytest.raises(OutputExistsError, match="did not write"):
            Work(path, "a")
        assert path.read_bytes() == data
    path.rename(tmp_path / "mine")
    path.symlink_to(tmp_path / "mine")
    with pytest.raises(OutputExistsError, match="did not write"):
        Work(path, "a")
    assert (tmp_path / "mine").read_bytes() == data


def test_an_empty_file_and_one_of_other_settings_are_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "work"
    path.touch()
    for identity in ("a", "b"):
        with Work(path, identity) as work:
            assert work.kept == {}
            work.put("first", 1)


def test_a_record_that_is_damaged_ends_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "work"
    with Work(path, "a") as work:
        work.put("first", 1)
        work.put("second", "text")
    path.write_bytes(path.read_bytes().replace(b"text", b"te\xfft"))
    with Work(path, "a") as work:
        assert work.kept == {"first": 1}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Work(tmp_path / "work", "a"), pytest.raises(BusyError, match="another process"):
        Work(tmp_path / "work", "a")
    Work(tmp_path / "work", "a").close()
