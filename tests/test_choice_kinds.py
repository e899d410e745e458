"""Only the lowering tells the kinds of choices apart; all else goes by what choices say."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.conftest import ROOT

PACKAGE = ROOT / "eecompile"
KINDS = {"Exit", "Forecast", "Span"}
LOWERING = PACKAGE / "runtime" / "trajectory" / "lowering.py"


def told_apart(tree: ast.AST) -> Iterator[int]:
    """Lines that match on a kind of choice, or ask for it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.MatchClass) and ast.unparse(node.cls) in KINDS:
            yield node.cls.lineno
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "type"):
            named = {
                each.id for arg in node.args for each in ast.walk(arg) if isinstance(each, ast.Name)
            }
            if named & KINDS:
                yield node.lineno


def test_the_lowering_tells_kinds_apart_and_this_test_sees_it() -> None:
    assert len(list(told_apart(ast.parse(LOWERING.read_text("utf-8"))))) == len(KINDS)
    assert list(told_apart(ast.parse("if isinstance(choice, Exit | int): pass"))) == [1]


def test_nothing_else_tells_kinds_apart() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in PACKAGE.rglob("*.py")
        if path != LOWERING
        for line in told_apart(ast.parse(path.read_text("utf-8")))
    ]
    assert not found, "ask the choice what it reads, writes, needs and costs instead"
