"""What the documentation imports from the package, and the names that it offers."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import eecompile
from tests.conftest import ROOT
from tests.golden.stored import check

PUBLIC = [
    f"eecompile.{name}"
    for name in (
        *("compare", "compiler", "evaluate", "networks", "programs", "programs.solvers"),
        *("runtime", "serve", "serve.ray", "store", "tune"),
    )
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^[ ]*```(?:python|py)\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(eecompile(?:\.\w+)+)")


def blocks(page: Path) -> list[ast.Module]:
    """The Python in a page's code blocks."""
    return [ast.parse(textwrap.dedent(code)) for code in _BLOCK.findall(page.read_text("utf-8"))]


def ours(name: str | None) -> bool:
    return (name or "").partition(".")[0] == "eecompile"


def names(page: Path) -> set[str]:
    """Dotted names of what a page imports from the package, reads of it, or speaks of."""
    text = page.read_text("utf-8")
    outside = _BLOCK.sub("", text)
    return {*_INLINE.findall(outside), *(name for block in blocks(page) for name in used(block))}


def used(block: ast.Module) -> Iterator[str]:
    for node in ast.walk(block):
        match node:
            case ast.ImportFrom(module=str(module), names=found) if ours(module):
                yield from (f"{module}.{each.name}" for each in found)
            case ast.Import(names=found):
                yield from (each.name for each in found if ours(each.name))
            case ast.Attribute() if ours(ast.unparse(node)):
                yield ast.unparse(node)


def resolve(name: str) -> object:
    """The module, or the attribute of one, that a dotted name stands for."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        try:
            found: object = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or "\0"):
                raise
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"no module of {name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    for name in sorted(names(page)):
        assert resolve(name) is not None, name


def test_names_that_pages_use() -> None:
    lines = [f"{page.relative_to(ROOT)}: {name}" for page in PAGES for name in sorted(names(page))]
    check("public/documented.txt", "\n".join(lines) + "\n")


def test_names_that_the_package_offers() -> None:
    packages = [eecompile, *map(importlib.import_module, PUBLIC)]
    names = [f"{package.__name__}.{name}" for package in packages for name in package.__all__]
    check("public/names.txt", "\n".join(names) + "\n")


def test_pages_name_public_packages_only() -> None:
    """What a page imports stands in ``eecompile`` or in one named package of it."""
    for page in PAGES:
        for block in blocks(page):
            for node in ast.walk(block):
                if isinstance(node, ast.ImportFrom) and ours(node.module):
                    assert node.module in {"eecompile", *PUBLIC}, page
