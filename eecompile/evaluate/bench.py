"""Features of everything that is compared, and the figures of a set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eecompile.arrays import Array
from eecompile.compiler.progress import Report
from eecompile.errors import UsageError
from eecompile.evaluate.data import (
    ArraySource,
    SomeSource,
    Source,
    Space,
    open_array,
    open_source,
)
from eecompile.evaluate.features import (
    Decoder,
    FeatureNetwork,
    FeatureStore,
    default_features,
    onnx_features,
)
from eecompile.evaluate.metrics import (
    GROUPS,
    NEIGHBOURS,
    Frechet,
    frechet_distance,
    manifolds,
)
from eecompile.evaluate.report import SampleFigures

FEWEST = 2 * GROUPS
"""Samples that every set must have."""
_PICTURES = (-1.0, 1.0)
_LOOKED_AT = 1000


class Bench:
    """A feature network, of the ``name``, and what it is given.

    See :class:`eecompile.evaluate.Options`; with a decoder, real data are pictures.

    Raises:
        UsageError: samples do not go into these networks.
        BackendError: ONNX Runtime refuses one.
    """

    def __init__(
        self,
        space: Space,
        features: Path | None,
        decoder: Path | None,
        work: Path,
        report: Report,
    ) -> None:
        self._space, self.report = space, report
        decodes = Decoder(decoder, space) if decoder else None
        self._shown = decodes.space if decodes else space
        network = (
            onnx_features(features, self._shown) if features else default_features(self._shown)
        )
        self.name, folder = network.name, work / "features"
        self._real = self._made = FeatureStore(folder, network, report)
        if decodes:
            decoded = FeatureNetwork(
                network.name,
                f"{network.digest} of {decodes.digest}",
                lambda samples: network.compute(decodes(samples)),
            )
            self._made = FeatureStore(folder, decoded, report)

    def real(self, path: Path, most: int | None = None) -> Source:
        """Real data, opened; ``most`` samples of it, or all."""
        source = _enough(open_source(path, self._shown))
        return source if most is None or most >= len(source) else SomeSource(source, most)

    def ready(self, path: Path) -> Source:
        """Ready samples, opened."""
        return _enough(ArraySource(str(path), open_array(path), self._space))

    def of_real(self, source: Source, most: int | None = None) -> Array:
        """Features of the first ``most`` samples of real data, float32 [N, D]."""
        return self._real.features(source, most)

    def of_made(self, source: Source) -> Array:
        """Features of samples, float32 [N, D]."""
        return self._made.features(source)

    def compare(
        self, name: str, samples: Array, reference: Array, *, in_turns: bool = False
    ) -> tuple[SampleFigures, Frechet]:
        """Features of samples against those of real data; see :func:`frechet_distance`."""
        self.report(f"comparing {name}", 0, 0)
        found = frechet_distance(samples, reference, in_turns=in_turns)
        precision, recall = manifolds(samples, reference)
        figures = SampleFigures(
            name=name,
            samples=len(samples),
            frechet_distance=round(found.distance, 4),
            error=round(found.error, 4),
            precision=round(precision, 5),
            recall=round(recall, 5),
        )
        return figures, found


def space_of(path: Path) -> Space:
    """What ready samples look like: floats near [-1, 1], and bytes, are taken for pictures."""
    array = open_array(path)
    shape = array.shape[1:]
    if len(shape) == 2:
        shape = (1, *shape)
    elif len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3):
        shape = (shape[2], *shape[:2])
    some = np.asarray(array[:_LOOKED_AT], np.float64) if array.dtype.kind == "f" else np.zeros(1)
    largest = np.abs(some[np.isfinite(some)]).max(initial=0)
    return Space(shape, _PICTURES if largest < 2 * _PICTURES[1] else None)


def _enough(source: Source) -> Source:
    if len(source) < FEWEST:
        raise UsageError(
            found=f"{len(source)} samples in {source.name}",
            expected=f"{FEWEST} or more: their {NEIGHBOURS} nearest neighbours, and {GROUPS} "
            "groups of them, are looked at",
            remedy="give more (10,000 are usual)",
        )
    return source
