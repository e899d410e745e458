"""Compare predictions with a reference, and refuse what is too far away."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from eecompile.arrays import AnyArray, Array, Inputs
from eecompile.compiler.progress import Report, silent
from eecompile.errors import EecompileError, NonFiniteError, VerificationError
from eecompile.interrupt import check
from eecompile.programs.interface import Interface, State
from eecompile.store.manifest import PointError
from eecompile.store.target import Tolerance

_CALIBRATION_BATCH, _CALIBRATION_TIMES = 2, 5
_SAMPLES, _ORDER = 3, [2, 0, 1]
_TINY, _LARGE = 1e-12, 1e2  # the square of the first is still a float32
_CHAOTIC = 100.0  # times the tolerance, of large inputs: attention decides by differences there
_REMEDY = "look for state or randomness in the forward, or widen the tolerance"
_UNSTEADY = 32.0  # times what the last digit of large inputs moves the reference itself
Outputs = Mapping[int, Sequence[Array]]  # by depth: the prediction, and a learned variance
Evaluate = Callable[[Inputs], Outputs]


class Error(msgspec.Struct, frozen=True):
    """How far an exit is from its reference, over all points that were compared.

    Attributes:
        worst: largest |difference|.
        mean: mean |difference|.
        relative: largest |difference| over largest |reference| of one sample.
        points: the same of each sample.
    """

    worst: float
    mean: float
    relative: float
    points: tuple[PointError, ...] = ()


def check_points(timesteps: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Times t (small, middle, large) and batch sizes at which predictions are compared."""
    return tuple(sorted({0, timesteps // 2, timesteps - 1})), (1, _SAMPLES)


def random_inputs(
    interface: Interface,
    batch: int,
    time: float,
    seed: int,
    shape: Sequence[int] | None = None,
) -> dict[str, AnyArray]:
    """Inputs for tracing and verification, by name: ``x``, ``t``, and the conditions.

    The ``time``, of every row, is within [0, T]; the network gets it as its process says.

    Returns:
        x float32 [B, *shape], standard normal; t float32 [B]; conditions [B, *shape],
        uniform over their range, standard normal without one.
    """
    draws = np.random.default_rng(seed)
    inputs: dict[str, AnyArray] = {
        "x": draws.standard_normal((batch, *(shape or interface.state.shape)), np.float32),
        "t": np.full(batch, interface.process.at(time).timestep, np.float32),
    }
    for name, spec in interface.conditions.items():
        size = (batch, *spec.shape)
        if spec.dtype == "int64":
            low, high = spec.range or (0, 1)
            inputs[name] = draws.integers(int(low), int(high) + 1, size)
        elif spec.range is None:
            inputs[name] = draws.standard_normal(size, np.float32)
        else:
            inputs[name] = draws.uniform(*spec.range, size).astype(np.float32)
    return inputs


def calibration_inputs(interface: Interface, data: Array | None = None) -> dict[str, AnyArray]:
    """Inputs over all timesteps, stacked along the batch, from which value ranges are taken.

    The forward process noises ``data``, float32 [N, *shape]; None leaves noise alone.
    """
    process = interface.process
    points = []
    times = np.linspace(0, process.timesteps - 1, _CALIBRATION_TIMES).round()
    for index, time in enumerate(float(time) for time in times):
        point = random_inputs(interface, _CALIBRATION_BATCH, time, seed=index)
        if data is not None:
            chosen = np.arange(_CALIBRATION_BATCH) + index * _CALIBRATION_BATCH
            now = process.at(time)
            noise = point["x"].astype(np.float32)
            noised = now.alpha * data[chosen % len(data)] + now.sigma * noise
            point["x"] = (process.input_scale(now) * noised).astype(np.float32)
        points.append(point)
    return {name: np.concatenate([point[name] for point in points]) for name in points[0]}


def verification_points(interface: Interface) -> list[Inputs]:
    """Inputs at which predictions are compared.

    They begin with three samples, at a small, a middle and a large timestep, that differ in every
    input as far as its values allow: each alone, all in one batch, and the batch in another order.
    The samples hold the bounds of integer conditions, and what stands for "no condition".
    Where samples may have other shapes, each free axis follows at either bound.
    """
    timesteps, _ = check_points(interface.process.timesteps)
    samples = [
        random_inputs(interface, 1, time, seed=index)
        for index, time in enumerate(np.resize(timesteps, _SAMPLES))
    ]
    batch = {name: np.concatenate([each[name] for each in samples]) for name in samples[0]}
    _set_bounds(interface, batch)
    points: list[Inputs] = [
        *(_rows(batch, [row]) for row in range(_SAMPLES)),
        batch,
        _rows(batch, _ORDER),
    ]
    free = interface.state.resizable
    for index, axis in enumerate(free.axes if free else ()):
        assert free is not None
        for length in (free.min, free.max):
            shape = [*interface.state.shape[:axis], length, *interface.state.shape[axis + 1 :]]
            middle = interface.process.timesteps // 2
            points.append(random_inputs(interface, 1, middle, index, shape))
    return points


def extreme_inputs(interface: Interface) -> dict[str, Inputs]:
    """Single inputs by what is extreme about them: zero, tiny and large ones, null conditions.

    What a condition's range excludes is moved into it; integers stay random, unless null.
    """
    whole = random_inputs(interface, 1, interface.process.timesteps // 2, seed=2)
    conditions = interface.conditions.items()
    floats = {"x": None} | {name: spec.range for name, spec in conditions if spec.dtype != "int64"}
    made: dict[str, Inputs] = {}
    for what, scale in (("zero", 0.0), ("tiny", _TINY), ("large", _LARGE)):
        scaled = {name: np.multiply(whole[name], scale, dtype=np.float32) for name in floats}
        for name, bounds in floats.items():
            scaled[name] = scaled[name] if bounds is None else np.clip(scaled[name], *bounds)
        made[what] = {**whole, **scaled}
    nulls = {
        name: np.full_like(whole[name], spec.null or 0)
        for name, spec in conditions
        if spec.null is not None or spec.dtype != "int64"
    }
    if nulls:
        made["null"] = {**whole, **nulls}
    return made


def _set_bounds(interface: Interface, point: Inputs) -> None:
    """In a batch of three: integers at their bounds, and what stands for "no condition"."""
    for name, spec in interface.conditions.items():
        if spec.dtype == "int64":
            bounds = np.asarray(spec.range or (0, 1), np.int64)
            point[name][:2] = bounds.reshape(2, *(1 for _ in spec.shape))
        if spec.null is not None:
            point[name][2] = np.asarray(spec.null, spec.dtype)


def compare(
    points: Sequence[Inputs],
    reference: Evaluate,
    candidate: Evaluate,
    tolerance: Tolerance,
    what: str,
    report: Report = silent,
    remedy: str = _REMEDY,
) -> dict[int, Error]:
    """Evaluate both at every point; the errors by depth. The candidate may leave out depths.

    A sample's output may differ by ``absolute + relative * max |reference|``; ``what`` names
    candidate and reference in the error, and ``remedy`` says what to do about a difference.

    Raises:
        VerificationError: an output differs by more, or has another shape.
        NonFiniteError: an output is not finite.
    """
    errors: dict[int, list[Error]] = {}
    for index, point in enumerate(points):
        report(f"verifying: {what}", index, len(points))
        right = _evaluate(point, reference, f"the reference ({what})")
        found = _evaluate(point, candidate, what)
        for depth, outputs in found.items():
            _check_shapes(depth, point, right[depth])
            for output, expected in zip(outputs, right[depth], strict=True):
                error = _check(depth, point, expected, output, tolerance, what, remedy)
                errors.setdefault(depth, []).append(error)
    return {depth: worst_of(each) for depth, each in errors.items()}


def compare_extremes(
    points: Mapping[str, Inputs],
    reference: Evaluate,
    candidate: Evaluate,
    tolerance: Tolerance,
    what: str,
    remedy: str = _REMEDY,
) -> list[VerificationError | NonFiniteError]:
    """As :func:`compare`, for points by name, where the reference itself is finite.

    Of large inputs a hundred times the relative tolerance is allowed; and beyond it 32 times what
    the reference's own output moves by when inputs differ in their last digit, as those of deep
    networks with attention do.

    Returns:
        For each point with an output that is not finite, or that differs by more, the first.
    """
    errors: list[VerificationError | NonFiniteError] = []
    wide = msgspec.structs.replace(tolerance, relative=_CHAOTIC * tolerance.relative)
    for name, point in points.items():
        allowed = wide if name == "large" else tolerance
        right = _evaluate(point, reference, f"the reference ({what})")
        try:
            found = _evaluate(point, candidate, what)
            for depth, outputs in found.items():
                for output, expected in zip(outputs, right[depth], strict=True):
                    if np.isfinite(expected).all():
                        where = f"{what}, {name} inputs"
                        _check(depth, point, expected, output, allowed, where, remedy)
        except NonFiniteError as error:
            errors.append(error)
        except VerificationError as error:
            if name != "large" or not _is_rounding(point, reference, right, found):
                errors.append(error)
    return errors


def _is_rounding(point: Inputs, reference: Evaluate, right: Outputs, found: Outputs) -> bool:
    """Whether outputs are off by what the last digit of floating-point inputs does, 32 times."""
    other = {
        name: np.nextafter(value, np.float32(np.inf)) if value.dtype == np.float32 else value
        for name, value in point.items()
    }
    moved = _evaluate({**other, "t": point["t"]}, reference, "the reference")
    return all(
        bool(np.abs(output - expected).max() <= _UNSTEADY * np.abs(near - expected).max())
        for depth, outputs in found.items()
        for output, expected, near in zip(outputs, right[depth], moved[depth], strict=True)
        if np.isfinite(expected).all()
    )


def once(evaluate: Evaluate) -> Evaluate:
    """The same, that evaluates equal inputs once, and keeps their outputs."""
    known: dict[str, Outputs] = {}

    def evaluated(point: Inputs) -> Outputs:
        digest = hashlib.sha256()
        for name, array in point.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        key = digest.hexdigest()
        if key not in known:
            known[key] = evaluate(point)
        return known[key]

    return evaluated


def check_independent(points: Sequence[Inputs], network: Evaluate, tolerance: Tolerance) -> None:
    """Pass when each sample gives the same outputs alone, in a batch, and in another order.

    Args:
        points: of :func:`verification_points`.
        network: what is checked.
        tolerance: between outputs of one sample.

    Raises:
        VerificationError: a sample depends on others, as with ``t[0]``, or with means over them.
    """
    batch = points[_SAMPLES]
    together = _evaluate(batch, network, "the network")
    orders = [*([row] for row in range(_SAMPLES)), _ORDER]
    for rows, other in zip(orders, (*points[:_SAMPLES], points[_SAMPLES + 1]), strict=True):
        for depth, outputs in _evaluate(other, network, "the network").items():
            _check_shapes(depth, other, outputs)
            _check_shapes(depth, batch, together[depth])
            expected = [output[rows] for output in together[depth]]
            if difference := _beyond(outputs, expected, tolerance):
                names = _shared_inputs(batch, network, tolerance)
                raise VerificationError(
                    found=f"samples that depend on others in their batch at exit {depth}, on "
                    f"their {', '.join(names)}, by {difference:.3g}",
                    expected="outputs of each sample from that sample alone",
                    remedy="look in the network's forward for index 0 of the first axis, and for "
                    "means over it; what all samples share belongs into [network.constants], not "
                    "into a condition",
                )


def _shared_inputs(batch: Inputs, network: Evaluate, tolerance: Tolerance) -> list[str]:
    """Inputs of which one sample's reaches another; all, where none does by itself."""
    found = []
    for name in batch:
        varied = {**_rows(batch, [0] * _SAMPLES), name: batch[name]}
        together = _evaluate(varied, network, "the network")
        for row in range(_SAMPLES):
            apart = _evaluate(_rows(varied, [row]), network, "the network")
            if any(
                _beyond(outputs, [output[row : row + 1] for output in together[depth]], tolerance)
                for depth, outputs in apart.items()
            ):
                found.append(name)
                break
    return found or list(batch)


def _rows(batch: Inputs, rows: list[int]) -> dict[str, AnyArray]:
    return {name: value[rows] for name, value in batch.items()}


def _beyond(found: Sequence[Array], expected: Sequence[Array], tolerance: Tolerance) -> float:
    """The largest |difference| of outputs; 0 where the tolerance allows it."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        apart = np.abs(one - other, where=~same, out=np.zeros_like(one))
        difference = float(np.nan_to_num(apart, nan=np.inf).max())
        size = float(np.abs(other, where=np.isfinite(other), out=np.zeros_like(other)).max())
        if difference > tolerance.absolute + tolerance.relative * size:
            worst = max(worst, difference)
    return worst


def worst_of(errors: Sequence[Error]) -> Error:
    """The largest of several errors, and the mean of their means."""
    return Error(
        max(error.worst for error in errors),
        float(np.mean([error.mean for error in errors])),
        max(error.relative for error in errors),
        tuple(point for error in errors for point in error.points),
    )


def _evaluate(point: Inputs, candidate: Evaluate, what: str) -> Outputs:
    try:
        return candidate(point)
    except EecompileError:
        raise
    except (Exception, SystemExit) as error:  # a runtime's errors share no base class
        check()
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise VerificationError(
            found=f"{what} failing at input shape {list(point['x'].shape)} ({lines[0][:300]})",
            expected="a network that takes every batch size, and all values of its conditions",
            remedy="check the shapes in the network's forward, and the conditions' range and null",
        ) from error


def _check_shapes(depth: int, point: Inputs, outputs: Sequence[Array]) -> None:
    for output in outputs:
        if output.shape != point["x"].shape:
            raise VerificationError(
                found=f"an output of shape {list(output.shape)} at exit {depth}",
                expected=f"the state's shape, {list(point['x'].shape)}",
                remedy="fix state.shape and process.variance, or the network",
            )


def _check(
    depth: int,
    point: Inputs,
    expected: Array,
    found: Array,
    tolerance: Tolerance,
    what: str,
    remedy: str = _REMEDY,
) -> Error:
    timesteps, batch = point["t"].tolist(), len(point["x"])
    place = f"exit {depth} at timestep {{:g}}, batch {batch}"
    if found.shape != expected.shape:
        raise VerificationError(
            found=f"a prediction of shape {list(found.shape)} from {place.format(timesteps[0])} "
            f"({what})",
            expected=f"shape {list(expected.shape)}",
            remedy="check the shapes in the network's forward",
        )
    errors = []
    for timestep, one, right in zip(timesteps, found, expected, strict=True):
        here = place.format(timestep)
        if broken := np.mean(~np.isfinite(one)):
            raise NonFiniteError(
                found=f"NaN or infinity in {broken:.1%} of the output of {here} ({what})",
                expected="finite values",
                remedy="check the network's weights and its forward",
            )
        difference = np.abs(one - right)
        worst, size = float(difference.max()), float(np.abs(right).max())
        bound = tolerance.absolute + tolerance.relative * size
        if not worst <= bound:
            raise VerificationError(
                found=f"a difference of {worst:.3g} at {here} ({what})",
                expected=f"at most {bound:.3g}",
                remedy=remedy,
            )
        mean, relative = float(difference.mean()), worst / size if size else 0.0
        errors.append(
            PointError(timestep=timestep, batch=batch, worst=worst, mean=mean, relative=relative)
        )
    return Error(
        max(each.worst for each in errors),
        float(np.mean([each.mean for each in errors])),
        max(each.relative for each in errors),
        tuple(errors),
    )


def traced_shape(state: State) -> tuple[int, ...]:
    """The shape to trace with: free axes longer than one multiple, which would stay fixed."""
    shape, free = list(state.shape), state.resizable
    for axis in free.axes if free else ():
        assert free is not None
        shape[axis] = max(shape[axis], 2 * free.multiple)
    return tuple(shape)
