"""Memory in use, in MiB."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def resident() -> float | None:
    """MiB that this process has in memory; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def on_gpus() -> float | None:
    """MiB in use on all GPUs, by any process; None without a driver that says."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return float(sum(map(int, done.stdout.split())))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
