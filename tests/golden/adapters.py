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
from eecompile.compare.page import page_of as page_of_comparison
from eecompile.compare.report import read_report
from eecompile.compare.tables import comparison_parts
from eecompile.doctor.examine import MachineReport
from eecompile.doctor.tables import doctor_parts
from eecompile.evaluate.report import Evaluation
from eecompile.evaluate.tables import evaluation_parts
from eecompile.programs.solvers import FACTS
from eecompile.show.bundles import bundle_parts, engine_parts, exits_table, planned_parts
from eecompile.show.programs import program_facts, program_parts
from eecompile.show.terminal import rendered
from eecompile.store.bundle import records, write_manifest
from eecompile.store.files import form_bytes
from eecompile.store.manifest import BundleManifest, EngineManifest, ExitGraph
from eecompile.tune.page import page_of
from eecompile.tune.report import read_front
from eecompile.tune.tables import front_parts

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
    return rendered(*program_parts(program, interface, whole=whole))


def short_program_table(program: Program) -> RenderableType:
    """What ``eecompile program`` shows of one."""
    return rendered(program_facts(program))


def rewritten(path: Path, folder: Path) -> bytes:
    """A stored report, read and written again; ``folder`` may be written to."""
    if path.stem == "report":
        return form_bytes(read_report(path))
    if path.stem == "evaluation":
        return form_bytes(msgspec.json.decode(path.read_bytes(), type=Evaluation))
    return form_bytes(read_front(path))


def table(path: Path) -> RenderableType:
    """What the terminal shows of a stored report or manifest."""
    data = path.read_bytes()
    match path.stem:
        case "front":
            return rendered(*front_parts(read_front(path)))
        case "report":
            return rendered(*comparison_parts(read_report(path)))
        case "evaluation":
            return rendered(*evaluation_parts(msgspec.json.decode(data, type=Evaluation)))
        case "doctor":
            return rendered(*doctor_parts(msgspec.json.decode(data, type=MachineReport)))
        case "bundle":
            return rendered(*bundle_parts(_manifest(path)))
        case _:
            return rendered(*engine_parts(_manifest(path)))


def interface_of(stored: Path) -> Interface:
    """What the network of a stored manifest takes and gives; it has no cuts."""
    return _without_cuts(stored).interface


def write_folder(stored: Path, folder: Path) -> None:
    """An intact folder with a stored manifest, without cuts; a file of it holds three bytes."""
    folder.mkdir()
    (folder / "file.bin").write_bytes(b"abc")
    manifest = _without_cuts(stored)
    parts = manifest.exits if isinstance(manifest, BundleManifest) else manifest.segments
    for part in parts:
        name = part.graph if isinstance(part, ExitGraph) else part.file
        (folder / name).write_bytes(b"abc")
    write_manifest(folder, msgspec.structs.replace(manifest, files=records(folder)))


def _without_cuts(stored: Path) -> BundleManifest | EngineManifest:
    """Stored spans are made up, for tables: the segments do not have their tensors."""
    manifest = _manifest(stored)
    interface = msgspec.structs.replace(manifest.interface, cuts=())
    return msgspec.structs.replace(manifest, interface=interface, spans=())


def _manifest(stored: Path) -> BundleManifest | EngineManifest:
    kind = BundleManifest if stored.stem == "bundle" else EngineManifest
    return msgspec.json.decode(stored.read_bytes(), type=kind)


def exported_table(bundle: Path) -> RenderableType:
    """What ``eecompile export`` shows of the bundle that it wrote."""
    return rendered(exits_table(_manifest(bundle)))


def planned_table(
    reasons: Sequence[str], segments: Sequence[tuple[str, Sequence[int], int, bool]]
) -> RenderableType:
    """What ``eecompile build --dry-run`` shows: reasons; (file, exits, bytes, kept) a segment."""
    return rendered(*planned_parts(reasons, segments))


def page(path: Path, images: Mapping[str, bytes], folder: Path) -> str:
    """The page of a stored front or comparison; ``folder`` may be written to."""
    if path.stem == "front":
        return page_of(read_front(path))
    return page_of_comparison(read_report(path), images)


def figures_of(page: str) -> list[dict[str, Any]]:
    """The plots of a page, as plotly's JSON."""
    text = page.partition('<script type="application/json" id="figures">')[2]
    found: list[dict[str, Any]] = json.loads(text.partition("</script>")[0])
    return found


def regressed(path: Path, baseline: Path) -> list[str]:
    """What the gate says of a comparison against an older one."""
    new, old = read_report(path), read_report(baseline)
    return [*regressions(new, old), f"{unjudged(new, old)} times were not measured now"]
