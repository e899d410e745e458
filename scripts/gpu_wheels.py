"""Wheels and pictures for a machine without a network: ``pack FOLDER``, there ``unpack FOLDER``.

The wheels are for Python 3.12 on Linux (x86-64, glibc), of the versions in constraints.txt, and
of all that scripts/gpu needs but PyTorch, with what it alone brings: that the machine has. This
module needs nothing but Python where it unpacks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (3, 12)
GLIBC = (5, 12, 17, 24, 27, 28, 31, 34, 35)  # minor versions of the manylinux tags that are taken
EXTRAS = "build,cli,compare,cuda,diffusers,evaluate,export,precision,rtx"
TESTS = ("hypothesis", "pytest", "pytest-xdist")  # what the tests marked gpu need
THERE = {"torch"}  # on the machine, with what only it requires
INSTEAD = {"onnxruntime": "onnxruntime-gpu"}  # which have the same files
LIST = "wheels.json"


def pack(folder: Path) -> None:
    """Put the wheels, their list and, where they are here, the pictures into a folder."""
    from training import DATA

    folder.mkdir(parents=True, exist_ok=True)
    versions, left_out = needed()
    wheels = [wheel.name for wheel in downloaded(versions, folder)]
    listed = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in wheels}
    pictures = sorted(Path(os.environ.get("EECOMPILE_DATA", DATA)).glob("*.gz"))
    for path in pictures:
        shutil.copy(path, folder)
    (folder / LIST).write_text(json.dumps(listed, indent=1) + "\n")
    size = sum((folder / name).stat().st_size for name in wheels) / 2**20
    print(
        f"{len(wheels)} wheels for Python 3.12, {size:,.0f} MiB, and {len(pictures)} files of data"
    )
    print(f"not packed, as the machine is to have it: {', '.join(sorted(left_out))}")
    if not pictures:
        print("the parts 'quality' and 'train' need Fashion-MNIST's files in that folder")


def needed() -> tuple[dict[str, str], set[str]]:
    """Names and versions of what is to be packed, and of what is left to the machine.

    By the requirements of what is installed here, in the versions of constraints.txt.
    """
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    pinned = {canonicalize_name(name): exact for name, _, exact in lines if exact}
    there = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux"}

    def requirements(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
        try:
            listed = requires(name) or []
        except PackageNotFoundError:
            sys.exit(f"error: found no package {name}; expected eecompile[dev]; install it first.")
        for line in listed:
            each = Requirement(line)
            if each.marker and not any(
                each.marker.evaluate({**there, "extra": extra}) for extra in (extras or {""})
            ):
                continue
            yield canonicalize_name(each.name), frozenset(each.extras)

    def closure(names: set[tuple[str, frozenset[str]]], without: set[str]) -> set[str]:
        found, waiting = set(), [*names]
        while waiting:
            entry = waiting.pop()
            if entry not in found and entry[0] not in without:
                found.add(entry)
                waiting += requirements(*entry)
        return {name for name, _ in found}

    roots = {("eecompile", frozenset(EXTRAS.split(",")))} | {(n, frozenset()) for n in TESTS}
    names = closure(roots, THERE) - {"eecompile"}
    left_out = closure({(name, frozenset()) for name in THERE}, set()) - names
    versions = {name: pinned.get(name) or version(name) for name in sorted(names)}
    return {INSTEAD.get(name, name): each for name, each in versions.items()}, left_out


def downloaded(versions: dict[str, str], folder: Path) -> list[Path]:
    """The wheels, in the folder; of packages that have none, made of their source."""
    tags = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC] + ["manylinux2014_x86_64", "any"]
    options = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    options += [part for tag in tags for part in ("--platform", tag)]
    work = folder / "new"
    shutil.rmtree(work, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wanted, sources = dict(versions), []
    while True:
        listed = [f"{name}=={version}" for name, version in wanted.items()]
        command = [*pip, "download", "--no-deps", "-d", str(work), *options, *listed]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if not done.returncode:
            break
        missing = re.search(r"No matching distribution found for ([\w.-]+)==", done.stderr)
        if missing is None or missing[1] not in wanted:
            sys.exit(f"error: pip fails: {done.stderr.strip().splitlines()[-1]}")
        sources.append(f"{missing[1]}=={wanted.pop(missing[1])}")
    if sources:
        command = [*pip, "wheel", "--no-deps", "-w", str(work), *sources]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    for wheel in sorted(work.glob("*.whl")):
        if not re.search(r"-(py3|py2\.py3|cp312|cp3\d+-abi3)-|-cp312-", wheel.name):
            sys.exit(f"error: found {wheel.name} alone; expected a wheel for Python 3.12.")
        wheel.replace(folder / wheel.name)
    shutil.rmtree(work)
    return sorted(folder.glob("*.whl"))


def unpack(folder: Path) -> Path:
    """Install the wheels into a folder for PYTHONPATH, unless they are there; its path."""
    if sys.version_info[:2] != PYTHON or sysconfig.get_platform() != "linux-x86_64":
        here = f"Python {sys.version.split()[0]} on {sysconfig.get_platform()}"
        sys.exit(f"error: found {here}; expected Python 3.12 on linux-x86_64, as the wheels have.")
    if not (folder / LIST).is_file():
        sys.exit(f"error: found no {LIST} in {folder}; expected what scripts/gpu --pack made.")
    listed: dict[str, Any] = json.loads((folder / LIST).read_text())
    wrong = {}
    for name, digest in listed.items():
        path = folder / name
        if not path.is_file():
            wrong[name] = "is not there"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong[name] = "has other contents"
    if wrong:
        told = ", ".join(f"{name}, which {what}" for name, what in wrong.items())
        sys.exit(f"error: found in {folder} {told}; expected it as packed; copy it there again.")
    if importlib.util.find_spec("torch") is None:
        sys.exit("error: found no PyTorch; expected it on this machine, as it is not packed.")
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12]
    site = ROOT / "out" / f"site-{digest}"
    if not site.is_dir():
        part = site.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += [
            "--no-compile",
            "--root-user-action=ignore",
            "--target",
            str(part),
            *(str(folder / name) for name in listed),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        part.rename(site)
    return site


if __name__ == "__main__":
    what, place = sys.argv[1:]
    if what == "pack":
        pack(Path(place))
    else:
        print(unpack(Path(place)))
