"""Everything that the golden tests use from inside the package.

Where a module moves, or a function takes its arguments in another form, only this file changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import RenderableType

from eecompile import Interface, Program
from eecompile.compare.gate import regressions, unjudged
from eecompile.compare.page import write_page
from eecompile.compare.report import read_report, write_report
from eecompile.compare.tables import comparison_tables
from eecompile.doctor.examine import Report as DoctorReport
from eecompile.evaluate.report import Evaluation
from eecompile.evaluate.tables import evaluation_tables
from eecompile.programs.solvers import FACTS
from eecompile.report import (
    bundle_report,
    doctor_report,
    engine_report,
    exits_table,
    planned_report,
    program_facts,
    program_report,
)
from eecompile.store.bundle import BundleManifest, EngineManifest, records, write_manifest
from eecompile.tune.page import page_of
from eecompile.tune.report import read_front
from eecompile.tune.tables import front_tables

__all__ = [
    "FAMILIES",
    "exported_table",
    "figures_of",
    "json_of_program",
    "open_program",
    "page",
    "planned_table",
    "program_table",
    "regressed",
    "rewritten",
    "short_program_table",
    "table",
]

FAMILIES: Mapping[str, tuple[str, ...]] = {name: facts.families for name, facts in FACTS.items()}
"""The names of all native solvers, and the families of processes that each takes."""


def json_of_program(program: Program) -> dict[str, Any]:
    """What its file holds.

    Where another format writes the same facts in another form, this brings them back to the
    form that is stored, so that the coefficients stay compared.
    """
    written: dict[str, Any] = json.loads(program.to_json())
    return written


def open_program(program: Program) -> Program:
    """The same for which an exit schedule has yet to be chosen."""
    return program.with_choices(lambda time: None)


def program_table(
    program: Program, interface: Interface | None = None, *, whole: bool = False
) -> RenderableType:
    """What ``eecompile inspect`` shows of a program."""
    return program_report(program, interface, whole=whole)


def short_program_table(program: Program) -> RenderableType:
    """What ``eecompile program`` shows of one."""
    return program_facts(program)


def rewritten(path: Path, folder: Path) -> bytes:
    """A stored report, read and written again; ``folder`` may be written to."""
    if path.stem == "report":
        write_report(read_report(path), folder / path.name)
        return (folder / path.name).read_bytes()
    if path.stem == "evaluation":
        return msgspec.json.decode(path.read_bytes(), type=Evaluation).to_json()
    return read_front(path).to_json()


def table(path: Path) -> RenderableType:
    """What the terminal shows of a stored report or manifest."""
    data = path.read_bytes()
    match path.stem:
        case "front":
            return front_tables(read_front(path))
        case "report":
            return comparison_tables(read_report(path))
        case "evaluation":
            return evaluation_tables(msgspec.json.decode(data, type=Evaluation))
        case "doctor":
            return doctor_report(msgspec.json.decode(data, type=DoctorReport))
        case "bundle":
            return bundle_report(_manifest(path))
        case _:
            return engine_report(_manifest(path))


def interface_of(stored: Path) -> Interface:
    """What the network of a stored manifest takes and gives."""
    return _manifest(stored).interface


def write_folder(stored: Path, folder: Path) -> None:
    """An intact folder with a stored manifest; its only file holds three bytes."""
    folder.mkdir()
    (folder / "file.bin").write_bytes(b"abc")
    write_manifest(folder, msgspec.structs.replace(_manifest(stored), files=records(folder)))


def _manifest(stored: Path) -> BundleManifest | EngineManifest:
    kind = BundleManifest if stored.stem == "bundle" else EngineManifest
    return msgspec.json.decode(stored.read_bytes(), type=kind)


def exported_table(bundle: Path) -> RenderableType:
    """What ``eecompile export`` shows of the bundle that it wrote."""
    return exits_table(_manifest(bundle))


def planned_table(
    reasons: Sequence[str], segments: Sequence[tuple[str, Sequence[int], int, bool]]
) -> RenderableType:
    """What ``eecompile build --dry-run`` shows: reasons; (file, exits, bytes, kept) a segment."""
    return planned_report(reasons, segments)


def page(path: Path, images: Mapping[str, bytes], folder: Path) -> str:
    """The page of a stored front or comparison; ``folder`` may be written to."""
    if path.stem == "front":
        return page_of(read_front(path))
    write_page(read_report(path), images, folder / "report.html")
    return (folder / "report.html").read_text("utf-8")


def figures_of(page: str) -> list[dict[str, Any]]:
    """The plots of a page, as plotly's JSON."""
    text = page.partition('<script type="application/json" id="figures">')[2]
    found: list[dict[str, Any]] = json.loads(text.partition("</script>")[0])
    return found


def regressed(path: Path, baseline: Path) -> list[str]:
    """What the gate says of a comparison against an older one."""
    new, old = read_report(path), read_report(baseline)
    return [*regressions(new, old), f"{unjudged(new, old)} times were not measured now"]
