"""Folders of results: a report as JSON, its page, and what else a command found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from eecompile.store.folders import FolderKind, new_folder

PAGE = "report.html"


def write_results(
    folder: Path, files: Mapping[str, bytes], kind: FolderKind, *, replaces: bool
) -> list[Path]:
    """Write files by name, all or none; their paths. See :func:`.folders.new_folder`."""
    with new_folder(folder, replaces=replaces, kind=kind) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)
    return [folder / name for name in files]


def page_file(page: Callable[[], str]) -> dict[str, bytes]:
    """The file of a page; none where the packages that it needs are not installed."""
    try:
        found = find_spec("plotly") and find_spec("jinja2")
    except ImportError:  # of a finder that refuses
        found = None
    return {PAGE: page().encode()} if found else {}
