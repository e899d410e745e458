"""Bytes become values in one place, with one error; every reader says which file is damaged."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eecompile.compare.report import read_report
from eecompile.decoding import MalformedError, from_json, from_msgpack, from_npy, from_toml
from eecompile.errors import EecompileError, RecipeError
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.recipe import load_recipe
from eecompile.store.bundle import (
    MANIFEST,
    file_names,
    older_identity,
    open_bundle,
    open_engine_set,
)
from eecompile.store.target import load_target
from eecompile.tune.report import read_front
from tests.conftest import ROOT

PACKAGE = ROOT / "eecompile"
DECODERS = ("json.decode", "msgpack.decode", "json.loads", "json.load", "tomllib.loads")
OWN_WORDS = {
    "decoding.py",
    "compiler/schedulers/config.py",  # other programs' JSON, which may hold -Infinity
}


def decoders(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(DECODERS):
            yield node.lineno


def test_bytes_are_decoded_in_one_place() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(decoders(ast.parse(path.read_text("utf-8"))))
    }
    assert found == OWN_WORDS


DEEP = b"[" * 100_000


@pytest.mark.parametrize("data", [b"\xff", b'"\xff"', b"{", DEEP, b'{"a": 1}', b"9" * 5000])
def test_one_error_for_all_that_is_wrong_with_json(data: bytes) -> None:
    with pytest.raises(MalformedError):
        from_json(data, int)


@pytest.mark.parametrize("data", [b"", b"\xa1\xff", b"\x91" * 100_000, b"\xa1a"])
def test_one_error_for_all_that_is_wrong_with_messagepack(data: bytes) -> None:
    with pytest.raises(MalformedError):
        from_msgpack(data, int)


@pytest.mark.parametrize("data", [b"\xff", b"a =", b"a = " + DEEP, b"a = " + b"9" * 5000])
def test_one_error_for_all_that_is_wrong_with_toml(data: bytes) -> None:
    with pytest.raises(MalformedError):
        from_toml(data)


HUGE = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "data",
    [b"", b"text", b"PK\3\4 no archive", b"\x80\4}.", b"\x93NUMPY", b"\x93NUMPY\1\0\4\0{}{}"]
    + [b"\x93NUMPY\1\0\x76\0" + HUGE],
)
def test_one_error_for_all_that_is_wrong_with_an_array(
    data: bytes, mapped: bool, tmp_path: Path
) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(MalformedError):
        from_npy(tmp_path / "a.npy", mapped=mapped)


def opened(path: Path) -> object:
    file_names(path.parent)
    older_identity(path.parent)
    return open_bundle(path.parent) if "bundle.json" in str(path) else open_engine_set(path.parent)


GOLDEN = ROOT / "tests" / "golden"
READERS: dict[Path, Callable[[Path], object]] = {
    GOLDEN / "reports" / "bundle.json": opened,
    GOLDEN / "reports" / "engine-set.json": opened,
    GOLDEN / "reports" / "front.json": read_front,
    GOLDEN / "reports" / "report.json": read_report,
    GOLDEN / "reports" / "schedule.json": ExitSchedule.read,
    GOLDEN / "programs" / "ddim.json": lambda path: Program.from_json(path.read_bytes()),
    ROOT / "engines" / "rtx-fp16.toml": load_target,
    ROOT / "export" / "fashion-dit.toml": load_recipe,
}


@pytest.mark.parametrize("stored", READERS, ids=lambda path: path.name)
def test_every_reader_tells_of_a_damaged_byte_wherever_it_is(stored: Path, tmp_path: Path) -> None:
    folder = tmp_path / stored.name
    folder.mkdir()
    path, data = folder / MANIFEST, stored.read_bytes()
    for place in range(0, len(data), len(data) // 200 or 1):
        path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
        with pytest.raises(EecompileError):
            READERS[stored](path)


def nested(opening: str, closing: str, depth: int = 10_000) -> str:
    return opening * depth + closing * depth


@pytest.mark.parametrize(
    "text",
    [
        "a = " + nested("[", "]"),
        "a = " + nested("{a=", "}", 1000),
        ".".join("a" * 10_000) + " = 1",
        "[" + ".".join("a" * 10_000) + "]",
        "[options]\n" + ".".join("a" * 3000) + " = 1.5",
        "threads = " + "9" * 5000,
        "threads = 0x" + "f" * 5000,
        "name = " + "9" * 5000,
        "threads = 1e999",
        "name = 2026-13-45",
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("read", [load_target, load_recipe])
def test_toml_that_is_nested_too_deeply_or_holds_huge_numbers_is_told_of(
    text: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text + "\n")
    with pytest.raises(RecipeError) as caught:
        read(path)
    assert len(str(caught.value)) < 2000
