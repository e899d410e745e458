"""Samples of a program, made in portions that are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from eecompile.arrays import Array
from eecompile.evaluate.features import save_whole
from eecompile.programs.program import Program
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler

Report = Callable[[str, int, int], None]


class SampleSource:
    """Samples that :func:`sample_all` has made; see ``eecompile.evaluate.data.Source``."""

    def __init__(self, name: str, folder: Path, count: int, batch: int) -> None:
        self.name, self._folder, self._count, self._batch = name, folder, count, batch

    def __len__(self) -> int:
        return self._count

    def read(self, low: int, high: int) -> Array:
        """Samples ``low`` to ``high``, float32 [high - low, *shape]."""
        size, rows = self._batch, []
        for first in range(low // size * size, high, size):
            part = np.load(_portion(self._folder, first, self._count, size), allow_pickle=False)
            rows.append(part[max(low - first, 0) : high - first])
        return cast(Array, np.concatenate(rows).astype(np.float32, copy=False))


def sample_all(
    sampler: Sampler,
    fingerprints: list[str],
    program: Program,
    samples: SampleRequest,
    *,
    batch: int,
    name: str,
    work: Path,
    report: Report,
) -> SampleSource:
    """Make those samples that ``work`` does not hold yet.

    Args:
        sampler: with all engine sets that the program names.
        fingerprints: of these engine sets.
        program: that is run.
        samples: which ones.
        batch: samples made, and kept, at a time.
        name: of the schedule, for the progress.
        work: folder that keeps samples, also of other programs.
        report: told of the progress.

    Raises:
        UsageError: a condition is unknown or wrong.
        NonFiniteError: the network returned NaN or infinity.
    """
    told = hashlib.sha256(program.to_json())
    told.update(repr((fingerprints, samples.digest())).encode())
    folder = work / "samples" / told.hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.json").write_bytes(program.to_json())
    bounded = sampler.interface.state.range is not None
    for first in range(0, samples.n, batch):
        report(f"sampling at {name}", first, samples.n)
        path, n = _portion(folder, first, samples.n, batch), min(batch, samples.n - first)
        if path.exists():
            continue
        part = samples.part(sampler.interface, samples.first + first, n)
        (made,) = sampler.sample_requests([part], solver=program)
        # Half precision tells more shades than eight bits; unbounded samples may not fit.
        save_whole(path, made.astype(np.float16) if bounded else made)
    report(f"sampling at {name}", samples.n, samples.n)
    return SampleSource(name, folder, samples.n, batch)


def _portion(folder: Path, first: int, count: int, batch: int) -> Path:
    return folder / f"{first:07d}-{min(first + batch, count):07d}.npy"
