"""Folders of results: checked before the work, and written so that none is half there."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from eecompile.errors import OutputExistsError, UsageError
from eecompile.store.files import written

PAGE = "report.html"


def check_results(folder: Path, ours: Collection[str], expected: str) -> None:
    """Pass when results may be written into a folder, which need not exist yet.

    It may hold ``ours``, the files of former results; the message says what is ``expected``.

    Raises:
        OutputExistsError: it holds something else, or is none.
        UsageError: nothing can be written there.
    """
    place = folder
    while not place.exists() and not place.is_symlink():
        place = place.parent
    others = sorted({p.name for p in folder.iterdir()} - set(ours)) if folder.is_dir() else []
    if others or not place.is_dir():
        held = f"which holds {', '.join(others[:3])}" + (", ..." if len(others) > 3 else "")
        raise OutputExistsError(
            found=f"{folder}, {held}" if others else f"{place}, which is no folder",
            expected=expected,
            remedy="choose another output folder",
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(
            found=f"{place}, where nothing may be written",
            expected="a place for the results",
            remedy="choose another output folder",
        )


def write_results(
    folder: Path, files: Mapping[str, bytes], former: Iterable[str] = ()
) -> list[Path]:
    """Write files by name, the first last: a folder without it is not complete; their paths.

    Files of the names ``former`` are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, *others = files
    for name in {first, *former}:
        (folder / name).unlink(missing_ok=True)
    for name in (*others, first):
        with written(folder / name) as partial:
            partial.write_bytes(files[name])
    return [folder / name for name in files]


def page_file(page: Callable[[], str]) -> dict[str, bytes]:
    """The file of a page; none where the packages that it needs are not installed."""
    try:
        found = find_spec("plotly") and find_spec("jinja2")
    except ImportError:  # of a finder that refuses
        found = None
    return {PAGE: page().encode()} if found else {}
