"""``inspect --check`` and ``--signed-by``, ``sign`` and ``build --sign``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eecompile.store.bundle import open_bundle, open_engine_set
from tests.cli.conftest import Run
from tests.cli.test_cli import fails
from tests.conftest import TARGETS
from tests.runtime.test_isolated import sealed
from tests.store import test_signature
from tests.store.test_signature import Keys

Copy = Callable[[Path], Path]
ours, theirs = test_signature.ours, test_signature.theirs


@pytest.fixture
def garbage(small_sets: dict[str, Path], copied: Copy) -> tuple[Path, str]:
    """An engine set with right digests, and its file that is no graph."""
    folder = copied(small_sets["per_exit"])
    file = open_engine_set(folder).segments[-1].file
    (folder / file).write_bytes(b"garbage")
    sealed(folder)
    return folder, file


def test_an_engine_set_is_checked(run: Run, small_sets: dict[str, Path]) -> None:
    status, out, _ = run("inspect", small_sets["per_exit"], "--check")
    assert status == 0
    assert "3 exits evaluated in " in out
    status, out, error = run("inspect", small_sets["per_exit"], "--check", "--json")
    report = json.loads(out)
    assert (status, error) == (0, "")
    assert 0 < report.pop("seconds") < 60
    assert report == {
        "path": str(small_sets["per_exit"]),
        "signed_by": None,
        "exits": [1, 2, 4],
        "error": None,
    }


def test_a_check_that_fails_says_so_in_a_sentence_and_in_json(
    run: Run, garbage: tuple[Path, str]
) -> None:
    folder, file = garbage
    fails(run("inspect", folder, "--check"), file, "build the engine set again")
    result = run("inspect", folder, "--check", "--json")
    fails(result, file)
    report = json.loads(result[1])
    assert report["exits"] == []
    assert file in report["error"]["found"]
    assert set(report["error"]) == {"found", "expected", "remedy"}


def test_folders_are_signed_and_verified(
    run: Run, small_bundle: Path, copied: Copy, tmp_path: Path, ours: Keys, theirs: Keys
) -> None:
    bundle, engines = copied(small_bundle), tmp_path / "engines"
    assert run("sign", bundle, "--key", ours.private)[1].startswith("signed: ")
    assert run("sign", bundle, "--key", ours.private)[1].startswith("signed, as before: ")
    open_bundle(bundle, ours.public)
    command = ("build", bundle, "--target", TARGETS["per_exit"], "-o", engines)
    assert run(*command, "--sign", ours.private)[0] == 0
    for folder in (bundle, engines):
        status, out, _ = run("inspect", folder, "--signed-by", ours.public)
        assert status == 0
        assert f"signed by {ours.public}" in " ".join(out.split())
        fails(run("inspect", folder, "--signed-by", theirs.public), "did not make")
    status, out, _ = run("inspect", engines, "--check", "--signed-by", ours.public, "--json")
    assert json.loads(out)["signed_by"] == str(ours.public)
    fails(run("inspect", engines, "--check", "--signed-by", theirs.public), "did not make")
