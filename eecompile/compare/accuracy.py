"""How far candidates are from the reference, by polygraphy's own comparison functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from polygraphy.comparator import (
    Comparator,
    CosineSimilarityCompareFunc,
    L2CompareFunc,
    PsnrCompareFunc,
    RunResults,
    SimpleCompareFunc,
)

from eecompile.arrays import Array
from eecompile.compare.measure import Point
from eecompile.compare.report import ExitFigures, OutputError
from eecompile.errors import VerificationError
from eecompile.store.target import Tolerance


def outputs_of(runner: object, points: Sequence[Point]) -> RunResults:
    """A runner's outputs at every point."""
    return Comparator.run([runner], data_loader=list(points))


def accuracy(
    depth: int,
    reference: RunResults,
    candidate: RunResults,
    points: Sequence[Point],
    tolerance: Tolerance,
) -> ExitFigures:
    """Compare one runner's outputs at an exit with the reference's, which are finite.

    An output may differ by ``absolute + relative * max |reference|``. Outputs that are not
    finite have not passed; metrics are of the others.

    Raises:
        VerificationError: an output has another shape.
    """
    errors, compared, passed = [], [], True
    pairs = zip(reference.split(), candidate.split(), points, strict=True)
    for right, found, point in pairs:
        finite = _check(found, right[0][1][0], point)
        here = list(_compared(right, found, tolerance)) if finite else []
        errors.append(_error(here, point))
        compared += here
        passed &= finite and all(each.passed for each in here)
    metrics = {
        "l2": max((each.norm for each in compared), default=math.nan),
        "cosine": min((each.cosine for each in compared), default=math.nan),
        "psnr": min((each.psnr for each in compared), default=math.nan),
    }
    # Equal outputs have no noise: JSON has no infinity.
    kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return ExitFigures(depth=depth, errors=tuple(errors), metrics=kept, passed=passed)


class _Compared(msgspec.Struct, frozen=True):
    """One output at one point."""

    worst: float
    mean: float
    relative: float
    norm: float
    cosine: float
    psnr: float
    passed: bool


def _error(compared: Sequence[_Compared], point: Point) -> OutputError:
    """The worst of one evaluation's outputs; JSON has None for what is not finite."""
    worst = max((each.worst for each in compared), default=math.inf)
    mean = float(np.mean([each.mean for each in compared])) if compared else math.inf
    relative = max((each.relative for each in compared), default=math.inf)
    return OutputError(
        timestep=float(point["t"].flat[0]),
        batch=len(point["x"]),
        worst=worst if math.isfinite(worst) else None,
        mean=mean if math.isfinite(mean) else None,
        relative=relative if math.isfinite(relative) else None,
    )


def _compared(right: RunResults, found: RunResults, tolerance: Tolerance) -> Iterator[_Compared]:
    """Each output of one evaluation; all of them are finite."""
    expected = right[0][1][0]
    sizes = {name: float(np.abs(array).max()) for name, array in expected.items()}
    bounds = {name: tolerance.absolute + tolerance.relative * s for name, s in sizes.items()}
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
        worst = float(simple[name].max_absdiff)
        yield _Compared(
            worst=worst,
            mean=float(simple[name].mean_absdiff),
            relative=worst / size if size else math.inf if worst else 0.0,
            norm=norm[name].l2_norm,
            cosine=cosine[name].cosine_similarity,
            psnr=psnr[name].psnr,
            passed=bool(simple[name]),
        )


def _check(found: RunResults, expected: Mapping[str, Array], point: Point) -> bool:
    """Whether outputs are finite, when they are shaped as the reference's."""
    name, (outputs,) = found[0]
    place = f"t = {point['t'].flat[0]:g}, batch {len(point['x'])}"
    for key, right in expected.items():
        if key not in outputs or outputs[key].shape != right.shape:
            shape = list(outputs[key].shape) if key in outputs else "none"
            raise VerificationError(
                found=f"output {key} of shape {shape} from {name} at {place}",
                expected=f"shape {list(right.shape)}",
                remedy="build the engines again from this bundle",
            )
    return all(bool(np.isfinite(outputs[key]).all()) for key in expected)
