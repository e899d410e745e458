"""Engines that a build keeps beside the engine set until the whole is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from eecompile.compiler.segments import SegmentStore
from eecompile.errors import OutputExistsError
from eecompile.store.folders import MARK


def test_a_finished_engine_is_used_again_only_if_it_is_intact(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "set", None)
    store.start()
    (tmp_path / "made").write_bytes(b"plan")
    place = store.add("a" * 64, tmp_path / "made")
    again = SegmentStore(tmp_path / "set", None)
    assert again.find("a" * 64) == place
    assert again.find("b" * 64) is None
    place.write_bytes(b"plAn")
    assert again.find("a" * 64) is None
    again.tidy()
    assert place.exists()
    again.clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.posix
@pytest.mark.parametrize("mode", [0o770, 0o777])
def test_an_engine_that_another_user_may_have_put_there_is_not_used(
    tmp_path: Path, mode: int
) -> None:
    store = SegmentStore(tmp_path / "set", None)
    store.start()
    assert store.folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "made").write_bytes(b"plan")
    store.add("a" * 64, tmp_path / "made")
    store.cache.write_bytes(b"times")
    store.folder.chmod(mode)
    assert store.find("a" * 64) is None
    store.start()
    assert store.find("a" * 64) is None
    assert [path.name for path in store.folder.iterdir()] == [MARK]


def test_a_store_with_nothing_in_it_is_removed_and_somebody_s_folder_never(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "set", None)
    store.start()
    store.cache.write_bytes(b"times")
    store.tidy()
    assert list(tmp_path.iterdir()) == []
    store.folder.mkdir()
    (store.folder / "thesis.txt").write_text("years")
    with pytest.raises(OutputExistsError, match="did not write"):
        store.start()
    store.clear()
    assert (store.folder / "thesis.txt").read_text() == "years"
