"""Memory in use, in MiB."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from eecompile.measure.machine import smi


def resident(process: int | None = None) -> float | None:
    """MiB that a process has in memory, this one by default; None where the system does not say."""
    try:
        pages = int(Path(f"/proc/{process or 'self'}/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def on_gpus() -> float | None:
    """MiB in use on all GPUs, by any process; None without a driver that says."""
    try:
        used = smi("--query-gpu=memory.used", "--format=csv,noheader,nounits")
        return float(sum(map(int, used.split())))
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError):
        return None
