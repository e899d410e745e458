"""What callers ask a sampler for, checked and divided into batches."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from eecompile.arrays import AnyArray, Array
from eecompile.errors import ConditionError, UsageError
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program
from eecompile.runtime.trajectory.plan import Plan, Rows

Inputs = dict[str, AnyArray]
Interval = tuple[float, float]
"""The smallest and the largest time t at which guidance acts."""
_MOST = 1_000_000  # samples of one request; ask for more in portions


class SampleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says of its samples, beside how many there are: see :class:`SampleRequest`.

    Attributes:
        conditions: names of those that were given; others took the recipe's default.
        nulls: the same, of what stands for "no condition".
    """

    seed: int = 0
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    shape: tuple[int, ...] | None = None
    conditions: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ()
    digest: str = ""


class SampleRequest(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Which samples a caller wants.

    A sampler takes one value for all samples, or one for each; :meth:`part` repeats a list of
    fewer values.

    Attributes:
        n: how many, 1 or more.
        seed: 0 to 2**64 - 1. Sample i of a seed is the same whatever batch it is in.
        guidance: scale of classifier-free guidance (arXiv 2207.12598), one for all samples or
            one for each; 1 is none; None takes the recipe's.
        guidance_interval: smallest and largest time t, of [0, T], at which guidance acts
            (arXiv 2404.07724); None takes the recipe's.
        conditions: by name, a value for all samples or one for each.
        nulls: by condition, what stands for "no condition"; those left out take the recipe's.
        shape: of a sample, where the network allows a choice; None takes the recipe's.
        first: index of the first sample, so that samples can be made in portions.

    Raises:
        ConditionError: conditions or nulls are not by name.
    """

    n: int = 1
    seed: int = 0
    guidance: ArrayLike | None = None
    guidance_interval: tuple[float, float] | None = None
    conditions: Mapping[str, ArrayLike] = {}
    nulls: Mapping[str, ArrayLike] = {}
    shape: Sequence[int] | None = None
    first: int = 0

    def __post_init__(self) -> None:
        for name, values in (("conditions", self.conditions), ("nulls", self.nulls)):
            if not isinstance(values, Mapping):
                raise ConditionError(
                    found=f"{name} {values!r}",
                    expected="values by the conditions' names",
                    remedy="pass a dictionary, which may be empty",
                )

    def part(self, interface: Interface, first: int, n: int) -> SampleRequest:
        """``n`` of these samples, from index ``first`` on, as a sampler takes them.

        A list of values has one for each sample, from this request's first one on; where there
        are more samples, the list is repeated in turn. So a sample has the same values in
        whatever part it is. A list of more values than this request has samples stays as it
        is, and a sampler refuses it, as whatever else is wrong.

        Args:
            interface: of the network, whose recipe also gives guidance where that is None.
            first: index of the part's first sample.
            n: how many.
        """
        limit, start, usual = min(self.n, _MOST), first - self.first, interface.sampling
        axes = {name: len(spec.shape) for name, spec in interface.conditions.items()}
        conditions, nulls = (
            {
                name: _repeated(given, axes[name], limit, start, n) if name in axes else given
                for name, given in values.items()
            }
            for values in (self.conditions, self.nulls)
        )
        scale, interval = self.guidance, self.guidance_interval
        return msgspec.structs.replace(
            self,
            n=n,
            first=first,
            guidance=_repeated(usual.guidance if scale is None else scale, 0, limit, start, n),
            guidance_interval=usual.guidance_interval if interval is None else interval,
            conditions=conditions,
            nulls=nulls,
        )

    def facts(self, interface: Interface) -> dict[str, Any]:
        """The fields of :class:`SampleFacts`.

        Raises:
            UsageError: guidance is not one scale for all samples.
        """
        whole = self.part(interface, self.first, self.n)
        if np.asarray(whole.guidance).ndim:
            raise UsageError(
                found="guidance with a scale for each sample",
                expected="one scale for all samples of a report",
                remedy="give one number",
            )
        return {
            "seed": self.seed,
            "guidance": whole.guidance,
            "guidance_interval": whole.guidance_interval,
            "shape": None if self.shape is None else tuple(self.shape),
            "conditions": tuple(self.conditions),
            "nulls": tuple(self.nulls),
            "digest": self.digest(),
        }

    def digest(self) -> str:
        """Of all that decides a sample, but for the network and ``n``.

        Requests of one digest have the same samples at the indices that both have.
        """
        shape = None if self.shape is None else tuple(self.shape)
        told = hashlib.sha256(repr((self.first, self.seed, self.guidance_interval, shape)).encode())
        scales = {} if self.guidance is None else {"": np.asarray(self.guidance, np.float64)}
        for what, values in (("g", scales), ("c", self.conditions), ("n", self.nulls)):
            for name, given in sorted(values.items()):
                array = np.asarray(given)
                told.update(repr((what, name, array.dtype.str, array.shape)).encode())
                told.update(array.tobytes())
        return told.hexdigest()


def _repeated(given: ArrayLike, axes: int, limit: int, start: int, n: int) -> ArrayLike:
    """Values ``start`` to ``start + n`` of a list of values, which begins again at its end.

    A single value, which has so many ``axes``, is left as it is, and so is a list that is empty
    or of more values than ``limit``.
    """
    try:
        values = np.asarray(given)
    except Exception:  # whatever other libraries' arrays raise: the sampler says what is wrong
        return given
    if values.ndim != axes + 1 or not 0 < len(values) <= limit:
        return given
    return values[np.arange(start, start + n) % len(values)]


class Checked(NamedTuple):
    """A request's samples, one row each; ``nulls`` is empty where none is guided."""

    shape: tuple[int, ...]
    seeds: NDArray[np.uint64]
    samples: NDArray[np.uint64]
    scales: Array
    conditions: Inputs
    nulls: Inputs


class Batch(NamedTuple):
    """Samples that are evaluated together.

    Attributes:
        plan: of their trajectory; without guided samples it has no guidance interval.
        rows: what is particular to each.
        places: of each row, the request and the sample within it.
    """

    plan: Plan
    rows: Rows
    places: list[tuple[int, int]]


def checked(interface: Interface, request: SampleRequest) -> Checked:
    """The rows of a request, once all of its arguments have been found right."""
    if not isinstance(request, SampleRequest):
        raise UsageError(
            found=f"a request of type {type(request).__name__}",
            expected="a SampleRequest",
            remedy="make one: SampleRequest(n=4, conditions={...})",
        )
    n, seed, first = _counts(request.n, request.seed, request.first)
    samples = range(first, first + n)
    scales = guidance_scales(interface, request.guidance, n)
    state = interface.state
    shape = state.shape if request.shape is None else state.check_shape(request.shape)
    interface.check_conditions(request.nulls, "a null value for condition")
    for name, value in request.nulls.items():  # checked even where guidance is 1
        interface.conditions[name].nulls(name, samples, value)
    interface.check_conditions(request.conditions)
    known = interface.conditions
    given = {
        name: c.values(name, request.conditions.get(name), samples) for name, c in known.items()
    }
    nulls: Inputs = {}
    if (scales != 1).any():
        if not known:
            raise ConditionError(
                found="guidance for a network without conditions",
                expected="guidance 1",
                remedy="sample without guidance",
            )
        nulls = {name: c.nulls(name, samples, request.nulls.get(name)) for name, c in known.items()}
    seeds = np.full(n, seed, np.uint64)
    return Checked(shape, seeds, np.array(samples, np.uint64), scales, given, nulls)


def common_interval(interface: Interface, requests: Sequence[SampleRequest]) -> Interval | None:
    """The times at which guidance acts, which all requests must have in common."""
    usual, limit = interface.sampling.guidance_interval, interface.process.timesteps
    each = [usual if r.guidance_interval is None else r.guidance_interval for r in requests]
    found = list(dict.fromkeys(g if g is None else _checked_interval(g, limit) for g in each))
    if len(found) > 1:
        raise UsageError(
            found=f"requests with guidance intervals {found[0]} and {found[1]}",
            expected="the same for all requests that are sampled together",
            remedy="sample them in calls of their own",
        )
    return found[0] if found else None


def _checked_interval(given: Interval, limit: float) -> Interval:
    try:
        low, high = (float(bound) for bound in given)
    except (TypeError, ValueError, OverflowError):
        low, high = 1.0, 0.0
    if isinstance(given, str) or not 0 <= low <= high <= limit:
        raise UsageError(
            found=f"guidance interval {given!r}",
            expected="two ascending times within [0, T]",
            remedy="give the smallest and the largest t at which guidance is to act",
        )
    return low, high


def filled(interface: Interface, request: SampleRequest) -> SampleRequest:
    """The request with what has no default: zeros, or the least in a condition's range."""
    known = interface.conditions.items()
    conditions = {
        name: np.full(c.shape, c.range[0] if c.range else 0, c.dtype)
        for name, c in known
        if c.default is None
    }
    nulls = {name: np.zeros(c.shape, c.dtype) for name, c in known if c.null is None}
    return msgspec.structs.replace(request, conditions=conditions, nulls=nulls)


def batches(
    requests: Sequence[Checked],
    largest: int,
    program: Program,
    interface: Interface,
    interval: Interval | None,
) -> Iterator[Batch]:
    """The samples of all requests, in batches of at most ``largest`` rows an evaluation.

    A guided sample takes two rows. Samples of one shape share batches, whatever request
    they are of.
    """
    for shape in dict.fromkeys(request.shape for request in requests):
        alike = [(index, r) for index, r in enumerate(requests) if r.shape == shape]
        places = [(index, row) for index, r in alike for row in range(len(r.seeds))]
        joined = _joined([r for _, r in alike])
        guided = joined.scales != 1
        for part in _parts(guided, largest):
            rows = np.concatenate([part[guided[part]], part[~guided[part]]])
            count = int(guided[part].sum())
            plan = Plan(
                program=program,
                interface=interface,
                shape=shape,
                size=len(rows),
                guided=count,
                interval=interval if count else None,
                apart=len(rows) + count > largest,
            )
            yield Batch(plan, _rows(joined, rows, count), [places[row] for row in rows])


def _joined(requests: Sequence[Checked]) -> Checked:
    """The rows of all requests, which are of one shape, as those of one."""
    conditions = {
        name: np.concatenate([r.conditions[name] for r in requests])
        for name in requests[0].conditions
    }
    nulls: Inputs = {}
    if any(r.nulls for r in requests):
        nulls = {  # rows without guidance read none of it
            name: np.concatenate([(r.nulls or r.conditions)[name] for r in requests])
            for name in conditions
        }
    return Checked(
        requests[0].shape,
        np.concatenate([r.seeds for r in requests]),
        np.concatenate([r.samples for r in requests]),
        np.concatenate([r.scales for r in requests]),
        conditions,
        nulls,
    )


def _parts(guided: NDArray[np.bool_], largest: int) -> Iterator[NDArray[np.intp]]:
    """Consecutive rows that fit into an evaluation; at least one each."""
    ends = np.cumsum(1 + guided.astype(np.int64))
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + largest, side="right")), start + 1)
        yield np.arange(start, stop)
        start = stop


def _rows(joined: Checked, rows: NDArray[np.intp], guided: int) -> Rows:
    """Those rows, of which the first ``guided`` are guided."""
    conditions = {
        name: np.concatenate([array[rows], joined.nulls[name][rows[:guided]]])
        if guided
        else array[rows]
        for name, array in joined.conditions.items()
    }
    return Rows(
        seeds=joined.seeds[rows],
        samples=joined.samples[rows],
        scales=joined.scales[rows[:guided]],
        conditions=conditions,
    )


def guidance_scales(interface: Interface, guidance: ArrayLike | None, n: int) -> Array:
    """Guidance of each sample."""
    given = interface.sampling.guidance if guidance is None else guidance
    try:
        scales = np.asarray(given)
        fits = scales.dtype.kind in "iuf" and scales.shape in ((), (n,))
        fits = fits and bool((np.abs(scales.astype(np.float64)) < 1e30).all())
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise UsageError(
            found=f"guidance {given!r}" if not isinstance(given, float) else f"guidance {given}",
            expected=f"a finite scale for all samples, or one for each of {n}",
            remedy="1 means no guidance",
        )
    return np.broadcast_to(scales, (n,)).astype(np.float32)


def _counts(n: int, seed: int, first: int) -> tuple[int, int, int]:
    checks = (
        ("number of samples", n, 1, _MOST),
        ("seed", seed, 0, 2**64 - 1),
        ("index of the first sample", first, 0, 2**63),
    )
    for what, value, low, high in checks:
        if not low <= whole(what, value) <= high:
            raise UsageError(
                found=f"{what} {value}",
                expected=f"{low} to {high}",
                remedy="choose another",
            )
    return int(n), int(seed), int(first)


def whole(what: str, value: int) -> int:
    """``value`` as an int; a UsageError where it is no whole number."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise UsageError(
            found=f"{what} {value!r}", expected="a whole number", remedy="pass an int"
        ) from error
