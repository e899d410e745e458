from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eecompile.errors import BusyError, OutputExistsError
from eecompile.store import folders
from eecompile.store.bundle import FORMAT, MANIFEST
from eecompile.store.folders import new_folder


def fill(folder: Path, text: str) -> None:
    manifest = {"kind": "bundle", "format": FORMAT, "files": [{"name": "content"}]}
    (folder / MANIFEST).write_text(json.dumps(manifest))
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
        "import sys, time; from pathlib import Path\n"
        "from eecompile.store.folders import new_folder\n"
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


def test_what_somebody_put_into_a_bundle_protects_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, "one")
    (path / "notes.txt").write_text("years")
    with pytest.raises(OutputExistsError, match=r"also holds notes\.txt"):
        write(path, "two", replaces=True)
    assert (path / "notes.txt").read_text() == "years"
    assert (path / "content").read_text() == "one"


@pytest.mark.parametrize("place", [".", ".."])
def test_the_folder_in_which_one_works_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    with pytest.raises(OutputExistsError, match="in which this command runs"):
        write(Path(place), "one")
    assert list(inner.iterdir()) == []


def test_a_writer_killed_between_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    write(path, "one")
    path.rename(tmp_path / ".out.previous")  # the state between the two
    with pytest.raises(OutputExistsError, match="--force"):
        write(path, "two")
    assert (path / "content").read_text() == "one"
    assert leftovers(path) == []


def test_where_folders_cannot_be_exchanged_a_failure_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    path = tmp_path / "out"
    write(path, "one")
    rename = Path.rename

    def fails_once(self: Path, target: Path) -> Path:
        if self.name == ".out.partial":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(OSError, match="no"):
        write(path, "two", replaces=True)
    assert (path / "content").read_text() == "one"
    assert leftovers(path) == []


def test_signals_wait_until_the_cleanup_is_done(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from eecompile import interrupt\nfrom eecompile.store import folders\n"
        "interrupt.install()\n"
        "remove = folders._remove\n"
        "def slow(path):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    remove(path)\n"
        "try:\n"
        "    with folders.new_folder(Path(sys.argv[1]), replaces=False) as folder:\n"
        "        (folder / 'half').write_text('two')\n"
        "        folders._remove = slow\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "interrupted\n"
    assert list(tmp_path.iterdir()) == []
