"""What is installed, and which packages do not go together."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Literal

import msgspec

from eecompile.backends import BACKENDS
from eecompile.measure.machine import Gpu

OLD_DRIVER = "update the NVIDIA driver, or install the package for the driver's CUDA"
Packages = Mapping[str, metadata.Distribution]


class Conflict(msgspec.Struct, frozen=True):
    """Packages that do not go together; a ``note`` does no harm by itself."""

    kind: Literal["conflict", "note"]
    found: str
    remedy: str


def pip(what: str) -> str:
    """The command that installs a package, or an extra of one."""
    return f"pip install '{what}'" if re.search(r"[\[>]", what) else f"pip install {what}"


def installed() -> dict[str, metadata.Distribution]:
    """What is installed, by normalised name; of two copies, the one that is imported."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        if "Name" in distribution.metadata:  # not in what a broken installation leaves
            found.setdefault(_normal(distribution.metadata["Name"]), distribution)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def conflicts(packages: Packages, gpus: Sequence[Gpu] = ()) -> tuple[Conflict, ...]:
    """What does not go together, of distributions by normalised name."""
    return (
        *_same_files(packages),
        *_too_old(packages),
        *_other_cuda(packages, gpus),
        *_hidden_gpus(gpus),
        *_one_tensorrt(packages),
    )


def _same_files(packages: Packages) -> Iterator[Conflict]:
    for backend in BACKENDS.values():
        names = sorted(name for name in packages if re.fullmatch(backend.family, name))
        if len(names) > 1:
            both = " and ".join(names)
            remedy = f"pip uninstall -y {' '.join(names)}; pip install {names[-1]}"
            yield Conflict("conflict", f"{both} overwrite each other's files", remedy)


def _too_old(packages: Packages) -> Iterator[Conflict]:
    """What is older than eecompile's own requirements, in any extra, ask for."""
    if "eecompile" not in packages:
        return
    seen = set()
    for requirement in packages["eecompile"].requires or ():
        wanted = requirement.partition(";")[0]
        floor = re.search(r">=\s*([\d.]+)", wanted)
        name = _normal(re.split(r"[^\w.-]", wanted)[0])
        if floor is None or name not in packages or name in seen:
            continue
        seen.add(name)
        version = packages[name].version
        if _release(version) < _release(floor[1]):
            found = f"{name} {version}, where eecompile needs {floor[1]} or newer"
            yield Conflict("conflict", found, pip(f"{name}>={floor[1]}"))


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _other_cuda(packages: Packages, gpus: Sequence[Gpu]) -> Iterator[Conflict]:
    driver = next((gpu.cuda for gpu in gpus if gpu.cuda), "")
    for name in packages if driver else ():
        matches = (re.fullmatch(backend.family, name) for backend in BACKENDS.values())
        match = next((match for match in matches if match and match.lastindex), None)
        if match and int(driver.partition(".")[0]) < int(match[1]):
            found = f"{name} is for CUDA {match[1]}; the NVIDIA driver supports CUDA {driver}"
            yield Conflict("conflict", found, OLD_DRIVER)


def _hidden_gpus(gpus: Sequence[Gpu]) -> Iterator[Conflict]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and visible is not None:
        yield Conflict(
            "note",
            f"CUDA_VISIBLE_DEVICES is {visible!r}: other GPUs are hidden",
            "unset CUDA_VISIBLE_DEVICES to use every GPU",
        )


def _one_tensorrt(packages: Packages) -> Iterator[Conflict]:
    if {"tensorrt", "tensorrt-rtx", "polygraphy"} <= packages.keys():
        yield Conflict(
            "note",
            "polygraphy uses tensorrt or tensorrt-rtx, one of them in a process",
            "set POLYGRAPHY_USE_TENSORRT_RTX=1 for tensorrt-rtx",
        )
