"""Samples of a program, made in portions that are kept."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import numpy as np

from eecompile.arrays import Array
from eecompile.compiler.progress import Report
from eecompile.errors import UsageError
from eecompile.evaluate.kept import keep, kept
from eecompile.programs.program import Program
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.store.files import written


class SampleSource:
    """Samples of a program, in portions that are kept; see ``eecompile.evaluate.data.Source``.

    A ``batch`` of them is made, and kept, at a time, in a folder of its own within ``work``. The
    ``fingerprints`` are those of the sampler's engine sets.
    """

    def __init__(
        self,
        sampler: Sampler,
        fingerprints: list[str],
        program: Program,
        samples: SampleRequest,
        *,
        batch: int,
        name: str,
        work: Path,
    ) -> None:
        self.name, self._sampler, self.program = name, sampler, program
        self._samples, self._batch = samples, batch
        told = hashlib.sha256(program.to_json())
        told.update(repr((fingerprints, samples.digest())).encode())
        self._folder = work / "samples" / told.hexdigest()[:32]

    def make(self, report: Report) -> None:
        """Make those samples that the folder does not hold yet, or that are damaged there.

        Raises:
            UsageError: a condition is unknown or wrong.
            NonFiniteError: the network returned NaN or infinity.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with written(self._folder / "program.json") as partial:
            partial.write_bytes(self.program.to_json())
        interface, count = self._sampler.interface, len(self)
        for first in range(0, count, self._batch):
            report(f"sampling at {self.name}", first, count)
            name, n = self._portion(first), min(self._batch, count - first)
            if kept(self._folder, name) is not None:
                continue
            part = self._samples.part(interface, self._samples.first + first, n)
            (made,) = self._sampler.sample_requests([part], solver=self.program)
            # Half precision tells more shades than eight bits; unbounded samples may not fit.
            array = made.astype(np.float16) if interface.state.range else made
            keep(self._folder, name, cast(Array, array))
        report(f"sampling at {self.name}", count, count)

    def __len__(self) -> int:
        return self._samples.n

    def read(self, low: int, high: int) -> Array:
        """Samples ``low`` to ``high``, float32 [high - low, *shape].

        Raises:
            UsageError: they were removed or damaged since they were made.
        """
        rows = []
        for first in range(low // self._batch * self._batch, high, self._batch):
            part = kept(self._folder, self._portion(first))
            if part is None:
                raise UsageError(
                    found=f"samples in {self._folder} that have changed since they were made",
                    expected="nobody else to write there",
                    remedy="evaluate again: they are made anew",
                )
            rows.append(part[max(low - first, 0) : high - first])
        return cast(Array, np.concatenate(rows).astype(np.float32, copy=False))

    def _portion(self, first: int) -> str:
        return f"{first:07d}-{min(first + self._batch, len(self)):07d}"
