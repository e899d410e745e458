from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eecompile.errors import BusyError, OutputExistsError
from eecompile.store import folders
from eecompile.store.bundle import MANIFEST
from eecompile.store.folders import MARK, make_marked, new_folder, remove_marked
from eecompile.store.manifest import FORMAT


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


@pytest.mark.posix
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


def killed(moment: int, work: Callable[[], object]) -> bool:
    """Work in a process that is killed as it touches a file for the ``moment``-th time."""
    if (child := os.fork()) == 0:
        touched = 0

        def count(event: str, args: tuple[Any, ...]) -> None:
            nonlocal touched
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                touched += 1
                if touched == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(count)
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.posix
def test_a_folder_is_ours_until_nothing_is_left_of_it(tmp_path: Path) -> None:
    made, moment = tmp_path / "made", 1
    while True:
        make_marked(made)
        for name in "abcdefgh":
            (made / name).mkdir(exist_ok=True)
            (made / name / "file").touch()
            (made / f"{name}.txt").touch()
        if not killed(moment, lambda: remove_marked(made)):
            break
        remove_marked(made)
        assert not made.exists()
        moment += 1
    assert moment > 20
    assert not made.exists()


@pytest.mark.posix
@pytest.mark.parametrize("exchange", [True, False])
def test_a_writer_killed_at_any_moment_leaves_a_whole_folder_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    path = tmp_path / "out"

    for text, former in (("one", None), ("two", "one")):
        moment = 1
        while killed(moment, lambda text=text: write(path, text, replaces=True)):
            moment += 1
            if path.exists():
                assert (path / "content").read_text() in (text, former)
                assert len(list(path.iterdir())) == 2
            elif former is not None:  # between two renames
                assert (tmp_path / ".out.partial" / "previous" / "content").read_text() == former
        assert moment > 10
        assert (path / "content").read_text() == text
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


def belongings(path: Path, kind: str) -> None:
    """Something of somebody else's at a path."""
    if kind == "file":
        path.write_text("years")
        return
    other = path.with_name("elsewhere")
    other.mkdir()
    (other / "thesis.txt").write_text("years")
    if kind == "link":
        path.symlink_to(other)
    else:
        other.rename(path)


@pytest.mark.posix
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
@pytest.mark.parametrize("name", [".out.partial", ".out.lock"])
def test_what_somebody_has_beside_the_folder_is_left_alone(
    tmp_path: Path, name: str, kind: str
) -> None:
    belongings(tmp_path / name, kind)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for replaces in (False, True):
        with pytest.raises(OutputExistsError, match=f"{name}, which eecompile did not write"):
            write(tmp_path / "out", "one", replaces=replaces)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert (tmp_path / name).is_symlink() == (kind == "link")


@pytest.mark.parametrize("mark", [None, b"", b"eecompile may"])
def test_what_a_writer_left_that_was_killed_as_it_began_is_removed(
    tmp_path: Path, mark: bytes | None
) -> None:
    (tmp_path / ".out.partial").mkdir()
    if mark is not None:
        (tmp_path / ".out.partial" / MARK).write_bytes(mark)
    write(tmp_path / "out", "one")
    assert leftovers(tmp_path / "out") == []


@pytest.mark.posix
def test_links_in_a_folder_that_is_removed_are_not_followed(tmp_path: Path) -> None:
    belongings(tmp_path / "home", "folder")
    make_marked(tmp_path / "made")
    (tmp_path / "made" / "link").symlink_to(tmp_path / "home")
    remove_marked(tmp_path / "made")
    remove_marked(tmp_path / "home")
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "thesis.txt"]


def test_a_damaged_folder_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, "one")
    data = (path / MANIFEST).read_bytes()
    (path / MANIFEST).write_bytes(data.replace(b"}]}", b'}], "interface": {"name": "\xff"}}'))
    write(path, "two", replaces=True)
    assert (path / "content").read_text() == "two"


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
    make_marked(tmp_path / ".out.partial")
    path.rename(tmp_path / ".out.partial" / "previous")  # the state between the two
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
        if self.name == "new":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(OSError, match="no"):
        write(path, "two", replaces=True)
    assert (path / "content").read_text() == "one"
    assert leftovers(path) == []


@pytest.mark.posix
def test_signals_wait_until_the_cleanup_is_done(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from eecompile import interrupt\nfrom eecompile.store import folders\n"
        "interrupt.install()\n"
        "remove = folders.remove_marked\n"
        "def slow(path):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    remove(path)\n"
        "try:\n"
        "    with folders.new_folder(Path(sys.argv[1]), replaces=False) as folder:\n"
        "        (folder / 'half').write_text('two')\n"
        "        folders.remove_marked = slow\n"
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
