"""The commands about what ships: ``recipes``, ``recipe``, ``targets`` and ``target``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from eecompile.backends import backend_from_target
from eecompile.cli.console import mode, phases, result, say, show
from eecompile.recipe import ExportRecipe
from eecompile.show.table import Table, Toned, words
from eecompile.store.shipped import missing_package, named_file, packaged, shipped
from eecompile.store.target import Target, load_target
from eecompile.store.toml import read_toml

_YES = "yes"


class ListedRecipe(msgspec.Struct, frozen=True):
    """A recipe that ships; ``needs`` says what it lacks here, and is empty if nothing."""

    name: str
    state: tuple[int, ...]
    exits: tuple[int, ...]
    needs: str


class ListedTarget(msgspec.Struct, frozen=True):
    """A target that ships; whether it builds and runs on this machine: yes, or why not."""

    name: str
    backend: str
    precision: str
    layout: str
    builds: str
    runs: str


def recipes() -> None:
    """List the export recipes that ship: 'eecompile export NAME' takes one by its name."""
    rows = [_recipe(name, path) for name, path in shipped("export").items()]
    result(rows)
    columns = [
        words("recipe", lambda each: each.name),
        words("state", lambda each: "x".join(map(str, each.state))),
        words("exits", lambda each: ", ".join(map(str, each.exits))),
        words("needs", lambda each: each.needs or "nothing more"),
    ]
    show(Table("recipes", "recipes", columns, rows))
    say("'eecompile recipe NAME > mine.toml' begins one of your own.")


def targets() -> None:
    """List the targets that ship: 'eecompile build --target NAME' takes one by its name."""
    from eecompile.doctor.examine import examine

    with phases() as progress:
        progress("asking every backend")
        found = {each.name: each for each in examine().backends}
    rows = []
    for name, path in shipped("engines").items():
        read = load_target(path)
        here = found[backend_from_target(read.backend, read.options).name]
        builds, runs = (_YES if each.yes else each.reason for each in (here.builds, here.runs))
        facts = (read.backend, read.numbers, read.layout)
        rows.append(ListedTarget(name, *facts, builds=builds, runs=runs))
    result(rows)
    columns = [
        words("target", lambda each: each.name),
        words("backend", lambda each: each.backend),
        words("precision", lambda each: each.precision),
        words("layout", lambda each: each.layout),
        words("builds", lambda each: _yes(each.builds)),
        words("runs", lambda each: _yes(each.runs)),
    ]
    show(Table("targets", "targets, and what builds and runs here", columns, rows))
    say(
        "'eecompile target NAME > mine.toml' begins one of your own; "
        "'eecompile doctor' says why a backend does not build or run."
    )


def recipe(name: Annotated[str, typer.Argument(help="Of a recipe that ships.")]) -> None:
    """Print an export recipe that ships, to begin one of your own."""
    _print(named_file("export", name), ExportRecipe)


def target(name: Annotated[str, typer.Argument(help="Of a target that ships.")]) -> None:
    """Print a target that ships, to begin one of your own."""
    _print(named_file("engines", name), Target)


def _yes(answer: str) -> Toned:
    return Toned(_YES, "good") if answer == _YES else Toned("no", "bad")


def _print(path: Path, kind: type[msgspec.Struct]) -> None:
    result(read_toml(path, kind, example=str(path)))
    if not mode.json:
        sys.stdout.buffer.write(path.read_bytes())


def _recipe(name: str, path: Path) -> ListedRecipe:
    read = read_toml(path, ExportRecipe, example=str(path))
    return ListedRecipe(name, read.state.shape, read.network.exits, _needs(read, path.parent))


def _needs(recipe: ExportRecipe, folder: Path) -> str:
    package = (recipe.network.factory or "").partition(".")[0].partition(":")[0]
    wanted = [] if not package or find_spec(package) else [f"the package {package}"]
    place = packaged(recipe.network.checkpoint or "", folder)
    if missing := missing_package(place):
        wanted.append(missing.remedy.partition(", or")[0])
    elif not (folder / place).is_file():
        wanted.append("a checkpoint of yours")
    return ", ".join(wanted)
