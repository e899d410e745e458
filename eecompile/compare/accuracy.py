"""How far candidates are from the reference, by polygraphy's own comparison functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from polygraphy.comparator import (
    Comparator,
    CosineSimilarityCompareFunc,
    L2CompareFunc,
    PsnrCompareFunc,
    RunResults,
    SimpleCompareFunc,
)

from eecompile.bundle import PointError
from eecompile.compare.measure import Point
from eecompile.errors import NonFiniteError, VerificationError
from eecompile.recipe import Tolerance

__all__ = ["Accuracy", "accuracy", "outputs_of"]

Array = NDArray[np.float32]


class Accuracy(msgspec.Struct, frozen=True):
    """One exit's errors, metrics and verdict; see :class:`eecompile.compare.report.ExitFigures`."""

    errors: tuple[PointError, ...]
    metrics: dict[str, float]
    passed: bool


def outputs_of(runner: object, points: Sequence[Point]) -> RunResults:
    """A runner's outputs at every point."""
    return Comparator.run([runner], data_loader=list(points))


def accuracy(
    reference: RunResults, candidate: RunResults, points: Sequence[Point], tolerance: Tolerance
) -> Accuracy:
    """Compare one exit's outputs with the reference's at the same points.

    Args:
        reference: of one runner.
        candidate: of one runner.
        points: the inputs.
        tolerance: an output may differ by ``absolute + relative * max |reference|``.

    Raises:
        NonFiniteError: an output is not finite.
        VerificationError: an output has another shape.
    """
    errors, norms, cosines, ratios, passed = [], [], [], [], True
    pairs = zip(reference.split(), candidate.split(), points, strict=True)
    for right, found, point in pairs:
        worst, mean, relative = 0.0, [], 0.0
        for each in _compared(right, found, point, tolerance):
            worst, relative = max(worst, each.worst), max(relative, each.relative)
            mean.append(each.mean)
            norms.append(each.norm)
            cosines.append(each.cosine)
            ratios.append(each.psnr)
            passed &= each.passed
        errors.append(
            PointError(
                timestep=float(point["t"].flat[0]),
                batch=len(point["x"]),
                worst=worst,
                mean=float(np.mean(mean)),
                relative=relative,
            )
        )
    metrics = {"l2": max(norms), "cosine": min(cosines), "psnr": min(ratios)}
    # Equal outputs have no noise: JSON has no infinity.
    kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return Accuracy(tuple(errors), kept, passed)


class _Compared(msgspec.Struct, frozen=True):
    """One output at one point."""

    worst: float
    mean: float
    relative: float
    norm: float
    cosine: float
    psnr: float
    passed: bool


def _compared(
    right: RunResults, found: RunResults, point: Point, tolerance: Tolerance
) -> Iterator[_Compared]:
    """Each output of one evaluation."""
    expected = right[0][1][0]
    sizes = {name: float(np.abs(array).max()) for name, array in expected.items()}
    bounds = {name: tolerance.absolute + tolerance.relative * s for name, s in sizes.items()}
    _check(found, expected, point)
    functions = [
        # The bound is on the largest difference alone: the relative part is in it.
        SimpleCompareFunc(check_error_stat="max", atol=bounds, rtol=0.0),
        L2CompareFunc(),
        CosineSimilarityCompareFunc(),
        PsnrCompareFunc(),
    ]
    # One verdict an output is needed of each function, whatever its own threshold says.
    results = Comparator.compare_accuracy(
        [right, found], comparisons=[(0, 1)], compare_func=functions
    )
    simple, norm, cosine, psnr = (next(iter(result.values()))[0] for result in results)
    for name, size in sizes.items():
        yield _Compared(
            worst=float(simple[name].max_absdiff),
            mean=float(simple[name].mean_absdiff),
            relative=float(simple[name].max_absdiff) / size if size else 0.0,
            norm=norm[name].l2_norm,
            cosine=cosine[name].cosine_similarity,
            psnr=psnr[name].psnr,
            passed=bool(simple[name]),
        )


def _check(found: RunResults, expected: object, point: Point) -> None:
    """Pass when outputs are finite, and shaped as the reference's."""
    name, (outputs,) = found[0]
    place = f"t = {point['t'].flat[0]:g}, batch {len(point['x'])}"
    for key, right in expected.items():  # type: ignore[attr-defined]
        if key not in outputs or outputs[key].shape != right.shape:
            shape = list(outputs[key].shape) if key in outputs else "none"
            raise VerificationError(
                found=f"output {key} of shape {shape} from {name} at {place}",
                expected=f"shape {list(right.shape)}",
                remedy="build the engines again from this bundle",
            )
        if not np.isfinite(outputs[key]).all():
            raise NonFiniteError(
                found=f"NaN or infinity in output {key} of {name} at {place}",
                expected="finite values",
                remedy="choose a precision with a larger range, or keep_fp32 in the target",
            )
