"""The folder that a tuning writes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

import eecompile
from eecompile.errors import OutputExistsError
from eecompile.runtime.request import SampleRequest
from eecompile.store.files import written
from eecompile.tune.report import Front, Point, Settings, read_front
from eecompile.tune.work import Work

__all__ = ["FRONT", "PAGE", "check_output", "identity_of", "opened_work", "write"]

FRONT, PAGE, _WORK = "front.json", "report.html", ".tune.partial"


def identity_of(
    settings: Settings,
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
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise _occupied(f"{folder}, which is no folder", "choose another output folder")
    ours = {FRONT, PAGE, _WORK, *_written(folder)}
    others = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    if others:
        more = ", ..." if len(others) > 3 else ""
        raise _occupied(
            f"{folder}, which holds {', '.join(others[:3])}{more}", "choose another output folder"
        )
    if (folder / FRONT).exists() and not force:
        raise _occupied(
            f"{folder}, which holds schedules already",
            "choose another output folder, or pass --force to replace them",
        )


def _written(folder: Path) -> set[str]:
    """Names of the schedules that a former tuning wrote."""
    if not (folder / FRONT).is_file():
        return set()
    return {f"{point.name}.json" for point in read_front(folder / FRONT).points}


def _occupied(found: str, remedy: str) -> OutputExistsError:
    return OutputExistsError(
        found=found, expected="an empty folder, or one that a tuning was begun in", remedy=remedy
    )


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
    """Write the schedules, the page if its packages are installed, and the front last.

    A folder without ``front.json`` is not complete.

    Returns:
        What was written, the front first.
    """
    former = _written(folder)
    (folder / FRONT).unlink(missing_ok=True)
    for name in former | {PAGE}:
        (folder / name).unlink(missing_ok=True)
    made = []
    for point in front.points:
        if point.kind == "found":
            _whole(folder / f"{point.name}.json", point.schedule.to_json(**_about(point, front)))
            made.append(folder / f"{point.name}.json")
    if page := _page(front):
        _whole(folder / PAGE, page.encode())
        made.insert(0, folder / PAGE)
    _whole(folder / FRONT, front.to_json())
    return [folder / FRONT, *made]


def _page(front: Front) -> str:
    """The page; "" where its packages are not installed."""
    try:
        from eecompile.tune.page import page_of
    except ModuleNotFoundError as error:
        if error.name != "plotly":
            raise
        return ""
    return page_of(front)


def _about(point: Point, front: Front) -> dict[str, object]:
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
        "time": round(point.time, 4),
        "ideal": round(point.ideal, 4),
        "distance": float(f"{point.distance:.4g}"),
        "interval": [float(f"{bound:.4g}") for bound in point.interval],
        "unit": front.unit,
        "psnr": None if point.psnr is None else round(point.psnr, 2),
        "eecompile": front.eecompile,
    }


def _whole(path: Path, data: bytes) -> None:
    with written(path) as partial:
        partial.write_bytes(data)
