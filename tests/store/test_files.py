"""Single files, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from eecompile.errors import BundleError, FormatError, UsageError
from eecompile.store.bundle import MANIFEST, file_names, open_bundle
from eecompile.store.files import (
    beside,
    file_bytes,
    is_private,
    read_form,
    read_private,
    written,
)
from eecompile.store.folders import new_folder


class Form(msgspec.Struct):
    format: int
    value: int


def read(path: Path) -> Form:
    return read_form(path, Form, 2, what="form", command="make")


def test_a_file_is_replaced_only_when_all_went_well(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail() -> None:
        with written(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "before"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    with written(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.posix
def test_what_somebody_has_beside_a_file_is_neither_followed_nor_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, precious = tmp_path / "a.txt", tmp_path / "precious"
    precious.write_text("years")
    for number in (os.getpid(), 1, "cafe"):  # whatever name may be guessed
        (tmp_path / f".a.txt.{number}.partial").symlink_to(precious)
    with written(path) as partial:
        assert not partial.is_symlink()
        partial.write_text("after")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "cafe")
    with pytest.raises(FileExistsError), written(path) as partial:
        partial.write_text("again")
    assert (path.read_text(), precious.read_text()) == ("after", "years")
    assert (tmp_path / ".a.txt.cafe.partial").is_symlink()


@pytest.mark.posix
def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    others = [tmp_path / name for name in (".a.txt.0123.partial", ".b.txt.01234567.partial")]
    precious = tmp_path / ".a.txt.89abcdef.partial"
    for other in (*others, tmp_path / "years"):
        other.touch()
    precious.symlink_to(tmp_path / "years")
    (tmp_path / ".a.txt.01234567.partial").write_text("half")
    with written(path) as partial:
        with written(path) as other:  # a second writer leaves the first one's alone
            other.write_text("second")
        assert partial.exists()
        partial.write_text("first")
    assert path.read_text() == "first"
    assert sorted(tmp_path.iterdir()) == sorted([path, precious, tmp_path / "years", *others])


@pytest.mark.parametrize("name", ["a" * 251 + ".txt", "é" * 127, "a" + "é" * 127])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("before")
    with written(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after"
    with new_folder(tmp_path / ("b" + name[1:]), replaces=False) as folder:
        (folder / "content").touch()
    assert len(list(tmp_path.iterdir())) == 2
    one, other = (beside(tmp_path / (name[:-4] + end), "partial") for end in ("abcd", "abce"))
    assert one != other


@pytest.mark.posix
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_is_not_private(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"code")
    path.chmod(mode)
    private = not mode & 0o022
    assert is_private(path) == private
    assert read_private(path) == (b"code" if private else None)


@pytest.mark.posix
def test_a_link_a_pipe_a_folder_and_another_user_s_file_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"code")
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe", ".", "missing"):
        assert read_private(tmp_path / name) is None
    assert not is_private(tmp_path / "link")
    assert not is_private(tmp_path / "missing")
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    if owner:  # the system's files are everybody's to trust
        assert (is_private(path), read_private(path)) == (False, None)
    else:
        os.chown(path, 12345, -1)
        assert (is_private(path), read_private(path)) == (False, None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "form.json")
    with pytest.raises(UsageError, match="no plain file"):
        read(tmp_path / "form.json")
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(BundleError, match=f"no {MANIFEST}"):
        open_bundle(tmp_path)
    assert file_names(tmp_path) == ()
    with pytest.raises(OSError, match="no plain file"):
        file_bytes(tmp_path)


def test_a_form_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "form.json"
    path.write_bytes(msgspec.json.encode(Form(2, 7)))
    assert read(path) == Form(2, 7)


@pytest.mark.parametrize(
    "text", [None, "", "[", "[" * 9999, "{}", '{"format": 2}', '{"format": "a"}']
)
def test_something_else_is_told_of(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "form.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=r"no form at .*'eecompile make' wrote"):
        read(path)


def test_another_format_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "form.json"
    path.write_bytes(msgspec.json.encode(Form(3, 7)))
    with pytest.raises(FormatError, match=r"form of format 3 .* format 2; make again"):
        read(path)


@pytest.mark.posix
def test_paths_are_utf8_where_the_locale_has_none() -> None:
    code = (
        "import os, sys; from pathlib import Path; "
        "from eecompile.store.files import in_utf8; "
        "print(ascii(in_utf8(Path(sys.argv[1]))))"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name, words in (("données", "'donn\\xe9es'"), ("b\udcff", "which is no UTF-8")):
        ran = subprocess.run(
            [sys.executable, "-c", code, os.fsencode(name)],
            env=os.environ | plain,
            capture_output=True,
            text=True,
            check=False,
        )
        assert words in ran.stdout + ran.stderr
