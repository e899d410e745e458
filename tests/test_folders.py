from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eecompile import folders
from eecompile.bundle import MANIFEST
from eecompile.errors import BusyError, OutputExistsError
from eecompile.folders import new_folder


def fill(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text('{"kind": "bundle", "format": 2}')
    (folder / "content").write_text(text)


def write(path: Path, text: str, *, replaces: bool = False) -> None:
    with new_folder(path, replaces=replaces) as folder:
        fill(folder, text)


def leftovers(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p != path)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with new_folder(path, replaces=False) as folder:
        fill(folder, "one")
        assert not path.exists()
    assert (path / "content").read_text() == "one"
    assert leftovers(path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    path = tmp_path / "out"
    write(path, "one")
    write(path, "two", replaces=True)
    assert (path / "content").read_text() == "two"
    assert leftovers(path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out"
    write(path, "one")
    with pytest.raises(error), new_folder(path, replaces=True) as folder:
        fill(folder, "two")
        raise error
    assert (path / "content").read_text() == "one"
    assert leftovers(path) == []


def test_a_failure_leaves_no_empty_parents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), new_folder(tmp_path / "a" / "b", replaces=False):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, "one")
    with pytest.raises(OutputExistsError, match="--force"):
        write(path, "two")
    assert (path / "content").read_text() == "one"


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    (path / "thesis.txt").write_text("years")
    with pytest.raises(OutputExistsError, match="no folder that eecompile wrote"):
        write(path, "two", replaces=True)
    assert (path / "thesis.txt").read_text() == "years"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    write(path, "one")
    assert (path / "content").read_text() == "one"


def test_a_second_writer_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with new_folder(path, replaces=False) as folder:
        with pytest.raises(BusyError, match="another process"):
            write(path, "two")
        fill(folder, "one")
    assert (path / "content").read_text() == "one"


def test_a_killed_writer_leaves_the_previous_folder_and_the_next_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, "one")
    code = (
        "import sys, time; from pathlib import Path; from eecompile.folders import new_folder\n"
        "with new_folder(Path(sys.argv[1]), replaces=True) as folder:\n"
        "    (folder / 'half').write_text('two'); print('ready', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with pytest.raises(BusyError):
            write(path, "three", replaces=True)
        os.kill(writer.pid, signal.SIGKILL)
    assert (path / "content").read_text() == "one"
    for _ in range(100):  # the kernel drops the lock when the process is gone
        try:
            write(path, "three", replaces=True)
            break
        except BusyError:
            time.sleep(0.05)
    assert (path / "content").read_text() == "three"
    assert leftovers(path) == []


def test_a_manifest_of_another_program_protects_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / MANIFEST).write_text('{"name": "somebody\'s"}')
    with (
        pytest.raises(OutputExistsError, match="no folder that eecompile wrote"),
        new_folder(path, replaces=True),
    ):
        pass
    assert (path / MANIFEST).is_file()
