"""The folder that a tuning writes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

import eecompile
from eecompile.runtime.request import SampleRequest
from eecompile.store.files import form_bytes, outline
from eecompile.store.folders import FolderKind, check_folder
from eecompile.store.results import PAGE, page_file, write_results
from eecompile.tune.report import Front, FrontPoint, TuningSettings
from eecompile.tune.work import Work, is_work

FRONT, _WORK = "front.json", ".tune.partial"


def identity_of(
    settings: TuningSettings,
    engines: Sequence[Path],
    samples: SampleRequest,
    *,
    threads: int | None = None,
) -> str:
    """Digest of what measurements depend on: settings, engine sets, samples, threads.

    Budgets and minutes are not among them: what was measured serves for others too.
    """
    measured = msgspec.structs.replace(settings, budgets=(), minutes=0.0)
    facts = (eecompile.__version__, measured, samples.digest(), threads)
    digest = hashlib.sha256(msgspec.json.encode(facts))
    for folder in engines:
        digest.update((folder / "manifest.json").read_bytes())
    return digest.hexdigest()[:32]


def check_output(folder: Path, *, force: bool) -> None:
    """Pass when schedules may be written into a folder.

    Raises:
        OutputExistsError: it holds a tuning that is not to be replaced, or something else.
        UsageError: nothing can be written there.
    """
    check_folder(folder, replaces=force or not (folder / FRONT).exists(), kind=TUNINGS)


class _Point(msgspec.Struct):
    name: str


class _Outline(msgspec.Struct):
    """What fronts of every format have."""

    format: int
    eecompile: str
    points: tuple[_Point, ...]


def _names(folder: Path) -> set[str]:
    begun = {_WORK} if is_work(folder / _WORK) else set()
    if (front := outline(folder / FRONT, _Outline)) is None:
        return begun
    return begun | {FRONT, PAGE, *(f"{point.name}.json" for point in front.points)}


TUNINGS = FolderKind("a tuning", _names)


@contextmanager
def opened_work(folder: Path, identity: str) -> Iterator[Work]:
    """What has been measured already; kept if the block fails, removed when it ends.

    Raises:
        BusyError: another process is tuning into the folder.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(folder / _WORK, identity)
    try:
        yield work
        work.remove()
    finally:
        measured = set(work.kept) - {"elapsed"}
        work.close()
        if not measured and (folder / _WORK).exists():
            (folder / _WORK).unlink()
            if made and not any(folder.iterdir()):
                folder.rmdir()


def write(front: Front, folder: Path) -> list[Path]:
    """Write the front, the schedules, and the page if its packages are installed.

    They take the place of what a tuning wrote there before.

    Returns:
        What was written, the front first.
    """

    def page() -> str:
        from eecompile.tune.page import page_of

        return page_of(front)

    files = {FRONT: form_bytes(front), **page_file(page)}
    for point in front.points:
        if point.kind == "found":
            files[f"{point.name}.json"] = point.schedule.to_json(**_about(point, front))
    return write_results(folder, files, TUNINGS, replaces=True)


def _about(point: FrontPoint, front: Front) -> dict[str, object]:
    """What a schedule's file says of it, for people."""
    return {
        "network": front.network,
        "engines": list(front.engines),
        "solver": front.settings.solver,
        "steps": point.steps,
        "guidance": front.settings.guidance,
        "guidance_interval": front.settings.guidance_interval,
        "shape": front.settings.shape,
        "budget": point.budget,
        "time_share": round(point.time_share, 4),
        "ideal_share": round(point.ideal_share, 4),
        "distance": float(f"{point.distance:.4g}"),
        "interval": [float(f"{bound:.4g}") for bound in point.interval],
        "unit": front.unit,
        "psnr": None if point.psnr is None else round(point.psnr, 2),
        "eecompile": front.eecompile,
    }
