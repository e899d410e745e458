"""Samples of a program, made in portions that are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from eecompile.arrays import Array
from eecompile.evaluate.features import save_whole
from eecompile.programs.program import Program
from eecompile.runtime.sampler import Sampler

__all__ = ["Draw", "SampleSource", "sample_all"]

Report = Callable[[str, int, int], None]


class Draw(msgspec.Struct, frozen=True, kw_only=True):
    """Which samples are drawn.

    Attributes:
        count: how many.
        seed: same seed, same samples.
        guidance: scale; None takes the network's own.
        guidance_interval: times t between which it acts; None takes the network's own.
        nulls: by condition, what stands for "no condition" in guidance.
        shape: of a sample; None takes the network's own.
        conditions: by name; one value for all samples, or one for each of ``count``.
        batch: samples made, and kept, at a time.
    """

    count: int
    seed: int = 0
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    nulls: Mapping[str, ArrayLike] = {}
    shape: tuple[int, ...] | None = None
    conditions: Mapping[str, ArrayLike] = {}
    batch: int = 256

    @property
    def orders(self) -> bool:
        """Whether conditions were given for each sample, in whatever order."""
        return any(np.ndim(given) for given in self.conditions.values())

    def part(self, low: int, high: int) -> dict[str, ArrayLike]:
        """The conditions of samples ``low`` to ``high``."""
        made: dict[str, ArrayLike] = {}
        for name, given in self.conditions.items():
            array = np.asarray(given)
            each = array.ndim > 0 and len(array) == self.count
            made[name] = array[low:high] if each else array
        return made

    def check(self, sampler: Sampler) -> None:
        """Pass when a network takes all this.

        Raises:
            UsageError: a condition is unknown, missing, wrongly shaped, or out of range,
                or another argument is.
        """
        interface = sampler.interface
        interface.check_conditions(self.conditions)
        for name, condition in interface.conditions.items():
            condition.values(name, self.conditions.get(name), range(self.count))
        sampler.steps(1, **self._arguments(0, 1))  # which are checked before the first step

    def sample(self, sampler: Sampler, program: Program, low: int, high: int) -> Array:
        """Samples ``low`` to ``high``, float32 [high - low, *shape]."""
        return sampler.sample(high - low, solver=program, **self._arguments(low, high))

    def _arguments(self, low: int, high: int) -> dict[str, Any]:
        """Of a sampler, but for their number and the program."""
        return {
            "seed": self.seed,
            "guidance": self.guidance,
            "guidance_interval": self.guidance_interval,
            "nulls": self.nulls,
            "shape": self.shape,
            "first": low,
            **self.part(low, high),
        }

    def digest(self, fingerprints: list[str], program: Program) -> str:
        """Of all that decides the samples, but for how many there are."""
        told = hashlib.sha256(program.to_json())
        sampling = (self.seed, self.guidance, self.guidance_interval, self.shape)
        told.update(repr((fingerprints, *sampling)).encode())
        for what, values in (("", self.conditions), ("null ", self.nulls)):
            for name in sorted(values):
                array = np.asarray(values[name])
                told.update(f"{what}{name} {array.dtype} {array.shape}".encode())
                told.update(array.tobytes())
        return told.hexdigest()


class SampleSource:
    """Samples that :func:`sample_all` has made; see ``eecompile.evaluate.data.Source``."""

    def __init__(self, name: str, folder: Path, draw: Draw) -> None:
        self.name, self._folder, self._draw = name, folder, draw

    def __len__(self) -> int:
        return self._draw.count

    def read(self, low: int, high: int) -> Array:
        """Samples ``low`` to ``high``, float32 [high - low, *shape]."""
        size, rows = self._draw.batch, []
        for first in range(low // size * size, high, size):
            part = np.load(_portion(self._folder, first, self._draw), allow_pickle=False)
            rows.append(part[max(low - first, 0) : high - first])
        return cast(Array, np.concatenate(rows).astype(np.float32, copy=False))


def sample_all(
    sampler: Sampler,
    fingerprints: list[str],
    program: Program,
    draw: Draw,
    *,
    name: str,
    work: Path,
    report: Report,
) -> SampleSource:
    """Make those samples that ``work`` does not hold yet.

    Args:
        sampler: with all engine sets that the program names.
        fingerprints: of these engine sets.
        program: that is run.
        draw: which samples.
        name: of the schedule, for the progress.
        work: folder that keeps samples, also of other programs.
        report: told of the progress.

    Raises:
        UsageError: a condition is unknown or wrong.
        NonFiniteError: the network returned NaN or infinity.
    """
    folder = work / "samples" / draw.digest(fingerprints, program)[:32]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.json").write_bytes(program.to_json())
    bounded = sampler.interface.state.range is not None
    for first in range(0, draw.count, draw.batch):
        report(f"sampling at {name}", first, draw.count)
        path, last = _portion(folder, first, draw), min(first + draw.batch, draw.count)
        if path.exists():
            continue
        made = draw.sample(sampler, program, first, last)
        # Half precision tells more shades than eight bits; unbounded samples may not fit.
        save_whole(path, made.astype(np.float16) if bounded else made)
    report(f"sampling at {name}", draw.count, draw.count)
    return SampleSource(name, folder, draw)


def _portion(folder: Path, first: int, draw: Draw) -> Path:
    last = min(first + draw.batch, draw.count)
    return folder / f"{first:07d}-{last:07d}.npy"
