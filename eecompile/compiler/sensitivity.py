"""Which operators must stay as they are, so that a quantised graph holds a tolerance.

One graph has a switch for each operator, so that whatever set of them is quantised is an input,
not another graph. Where all of them together hold the tolerance, nothing else is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from eecompile.arrays import Array, Inputs
from eecompile.compiler.graph.quantise import SWITCHES, Operator, Range, Scheme, quantise
from eecompile.compiler.progress import Report
from eecompile.compiler.sessions import evaluate_joined, session_from_graph
from eecompile.compiler.verify import Evaluate, Outputs
from eecompile.errors import VerificationError
from eecompile.programs.interface import Interface
from eecompile.store.target import Tolerance

_MARGIN = 0.6  # of the tolerance: other samples, and engines, are further away
_FEW = 2  # rows of a point that suffice to tell operators apart
_LEAST = 0.1  # share of multiplications below which quantising is not worth its while
Chosen = NDArray[np.bool_]


class Sensitivity(NamedTuple):
    """What a search for operators that stay found.

    Attributes:
        kept: names of operators that stay as they are.
        errors: [operators, points]: root mean square of the difference over that of the output,
            the worst exit's, where that operator alone is quantised; None if not measured.
    """

    kept: frozenset[str]
    errors: NDArray[np.float64] | None


class SwitchedGraph:
    """A graph of all exits with a switch for each operator, and its errors at some points.

    Args:
        path: of the graph that is to be quantised; a copy is.
        scheme: of the target.
        ranges: of what operators read.
        interface: of the network.
        points: inputs.
        reference: what is right.
        tolerance: of the target.
        work: for the graph.
    """

    def __init__(
        self,
        path: Path,
        scheme: Scheme,
        ranges: Mapping[str, Range],
        interface: Interface,
        points: Sequence[Inputs],
        reference: Evaluate,
        tolerance: Tolerance,
        work: Path,
    ) -> None:
        model = ir.load(path)
        quantise(model, scheme, ranges, switches=True)
        place = work / "switched.onnx"
        ir.save(model, place, external_data="switched.data")
        self._evaluate = evaluate_joined(session_from_graph(place), interface)
        self.points = points
        self._right = [reference(point) for point in points]
        self._tolerance = tolerance

    def used(self, chosen: Chosen) -> float:
        """The share of the tolerance that the worst output takes where these are quantised."""
        return max(
            _used(self._outputs(point, chosen), right, self._tolerance)
            for point, right in zip(self.points, self._right, strict=True)
        )

    def errors(self, chosen: Chosen) -> list[float]:
        """The relative error at each point where these are quantised; see :class:`Sensitivity`."""
        return [
            _error(self._outputs(_first(point), chosen), {d: _firsts(o) for d, o in right.items()})
            for point, right in zip(self.points, self._right, strict=True)
        ]

    def _outputs(self, point: Inputs, chosen: Chosen) -> Outputs:
        return self._evaluate({**point, SWITCHES: chosen})


def _first(point: Inputs) -> Inputs:
    return {name: array[:_FEW] for name, array in point.items()}


def _firsts(outputs: Sequence[Array]) -> list[Array]:
    return [output[:_FEW] for output in outputs]


def _used(found: Outputs, right: Outputs, tolerance: Tolerance) -> float:
    worst = 0.0
    for depth, outputs in found.items():
        for one, other in zip(outputs, right[depth], strict=True):
            axes = tuple(range(1, one.ndim))
            size = np.abs(other).max(axes)
            allowed = np.maximum(tolerance.absolute + tolerance.relative * size, 1e-30)
            worst = max(
                worst,
                float(np.nan_to_num(np.abs(one - other).max(axes) / allowed, nan=np.inf).max()),
            )
    return worst


def _error(found: Outputs, right: Outputs) -> float:
    return max(
        float(np.sqrt(np.square(one - other).mean() / max(np.square(other).mean(), 1e-30)))
        for depth, outputs in found.items()
        for one, other in zip(outputs, right[depth], strict=True)
    )


def searched(
    graph: SwitchedGraph,
    operators: Sequence[Operator],
    kept: Collection[str],
    tolerance: Tolerance,
    *,
    search: bool,
    measure: bool,
    report: Report,
) -> Sensitivity:
    """The fewest operators found that, kept as they are, hold the tolerance.

    They are kept in the order of their error squared for each multiplication until the tolerance
    is held, and then quantised again one by one, the costliest first, if it still is.

    Args:
        graph: with a switch for each operator.
        operators: of the graph.
        kept: names of those that stay in any case.
        tolerance: of the target.
        search: whether others may stay.
        measure: whether each is measured even if none need stay.
        report: told of its progress.

    Raises:
        VerificationError: the tolerance is not held, or only where hardly anything is quantised.
    """
    report("quantising: all operators at once")
    chosen = np.array([each.name not in kept for each in operators])

    def holds(some: Chosen) -> bool:
        return graph.used(some) <= _MARGIN

    used = graph.used(chosen)
    limit = _MARGIN if search else 1.0  # what nobody chose by is verified afterwards
    held = used <= limit
    errors = None
    if measure or (search and not held):
        errors = _errors_alone(graph, len(operators), report)
    if not held:
        if errors is None or not search:
            instead = "set search = true in [quantise], or keep operators"
            raise _not_held(used, limit, tolerance, instead)
        chosen = _fewest(holds, chosen, errors, operators, report)
        share = _share(operators, chosen)
        if share < _LEAST:
            raise _not_held(used, limit, tolerance, "choose precision instead of [quantise]", share)
    names = frozenset(each.name for each, on in zip(operators, chosen, strict=True) if not on)
    return Sensitivity(names, errors)


def _errors_alone(graph: SwitchedGraph, count: int, report: Report) -> NDArray[np.float64]:
    rows = []
    for index in range(count):
        report("measuring each operator quantised alone", index, count)
        rows.append(graph.errors(np.arange(count) == index))
    return np.array(rows).reshape(count, -1)


def _fewest(
    holds: Callable[[Chosen], bool],
    chosen: Chosen,
    errors: NDArray[np.float64],
    operators: Sequence[Operator],
    report: Report,
) -> Chosen:
    costs = np.array([each.cost for each in operators], np.float64)
    gain = np.where(chosen, np.square(errors).max(1) / costs, -1.0)
    order = [int(index) for index in np.argsort(-gain, kind="stable") if chosen[index]]

    def without(count: int) -> Chosen:
        some = chosen.copy()
        some[order[:count]] = False
        return some

    low, high = 0, len(order)  # the first does not hold; the last quantises nothing
    while high - low > 1:
        report("searching for operators to keep", len(order) - (high - low), len(order))
        middle = (low + high) // 2
        low, high = (low, middle) if holds(without(middle)) else (middle, high)
    found = without(high)
    for index in sorted(order[:high], key=lambda index: -costs[index]):
        report("searching for operators to keep", int(found.sum()), len(order))
        found[index] = True
        found[index] = holds(found)
    return found


def share_of(operators: Sequence[Operator], kept: Collection[str]) -> float:
    """The share of multiplications that are quantised."""
    return _share(operators, np.array([each.name not in kept for each in operators]))


def _share(operators: Sequence[Operator], chosen: Chosen) -> float:
    costs = np.array([each.cost for each in operators], np.float64)
    return float(costs[chosen].sum() / costs.sum()) if costs.sum() else 0.0


def _not_held(
    used: float, limit: float, tolerance: Tolerance, instead: str, share: float | None = None
) -> VerificationError:
    what = "with all operators quantised"
    if share is not None:
        what += f", and within it with only {share:.0%} of the multiplications quantised"
    could = used / limit
    return VerificationError(
        found=f"an output {used:.2f} times as far away as the target's tolerance allows {what}",
        expected=f"at most {limit:g} times, at calibration samples; all operators would hold "
        f"absolute = {tolerance.absolute * could:.2g} and relative = "
        f"{tolerance.relative * could:.2g}",
        remedy=f"widen the target's tolerance, or {instead}",
    )
