"""The machine and the software that a figure was measured with, as public facts."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def facts(*packages: str) -> dict[str, object]:
    """CPU model, cores, memory, operating system, and the packages' versions."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        # Absolute paths are the machine's own business: what lies in the project keeps
        # its path within it, anything else its last part.
        "command": " ".join(["python", *(_short(argument) for argument in sys.argv)]),
    }


def _short(argument: str) -> str:
    path, root = Path(argument), Path(__file__).resolve().parent.parent
    if not path.is_absolute():
        return argument
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    text = info.read_text()
    rows = dict(
        (part.strip() for part in line.split(":", 1)) for line in text.splitlines() if ":" in line
    )
    vector = "AVX-512" if "avx512f" in rows.get("flags", "") else "no AVX-512"
    return f"{rows.get('model name', platform.processor())} ({vector})"
