"""The folder that a comparison is written to."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from eecompile.compare.report import Report, write_report
from eecompile.errors import OutputExistsError, UsageError

__all__ = ["PAGE", "REPORT", "check_output", "write_files"]

REPORT, PAGE = "report.json", "report.html"


def check_output(folder: Path) -> None:
    """Pass when a report may be written into a folder, which need not exist yet.

    Raises:
        OutputExistsError: it holds something else, or is none.
        UsageError: nothing can be written there.
    """
    place = folder
    while not place.exists() and not place.is_symlink():
        place = place.parent
    others = (
        sorted({path.name for path in folder.iterdir()} - {REPORT, PAGE})
        if (folder.is_dir())
        else []
    )
    if others or not place.is_dir():
        held = f"which holds {', '.join(others[:3])}" + (", ..." if len(others) > 3 else "")
        raise OutputExistsError(
            found=f"{folder}, {held}" if others else f"{place}, which is no folder",
            expected="an empty folder, or one with an older report",
            remedy="choose another output folder",
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(
            found=f"{place}, where nothing may be written",
            expected="a place for the report",
            remedy="choose another output folder",
        )


def write_files(report: Report, images: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write ``report.json``, and ``report.html`` where its package is installed.

    Args:
        report: what to write.
        images: PNG files by label, for the page.
        folder: where to; it is made.

    Returns:
        What was written.

    Raises:
        OutputExistsError: the folder holds something else.
    """
    check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / REPORT]
    write_report(report, written[0])
    if find_spec("plotly"):
        page = importlib.import_module("eecompile.compare.page")
        page.write_page(report, images, folder / PAGE)
        written.append(folder / PAGE)
    else:  # one of another report would mislead
        (folder / PAGE).unlink(missing_ok=True)
    return written
