"""Names and boundaries that hold over the whole package, read from its syntax trees."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "eecompile"
MODULES = sorted(PACKAGE.rglob("*.py"))
_DRAWN = {"plotly", "rich", "jinja2", "markupsafe"}
_BESIDE = ("compare", "tune", "evaluate", "serve")


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_a_public_class_name_has_one_meaning() -> None:
    places = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_what_draws_is_imported_only_where_something_is_drawn() -> None:
    for path in MODULES:
        inside = path.relative_to(PACKAGE)
        drawing = inside.parts[0] in ("show", "cli", "__main__.py")  # that asks for rich first
        if not drawing and inside.name != "page.py":
            assert not {name.partition(".")[0] for name in imported(path)} & _DRAWN, inside


@pytest.mark.parametrize("area", _BESIDE)
def test_areas_that_stand_side_by_side_do_not_import_one_another(area: str) -> None:
    others = tuple(f"eecompile.{other}" for other in _BESIDE if other != area)
    for path in (PACKAGE / area).rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith(others)], path
