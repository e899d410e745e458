"""Calibration: what a network meets at the timesteps that samplings visit.

What is quantised needs the ranges of values, and those change over time (Q-Diffusion, arXiv
2302.04304; PTQ4DM, 2211.15736; ViDiT-Q, 2406.02540). So the bundle's own FP32 graph samples with
its default solver, and what goes into every evaluation is kept: latents, timesteps and conditions,
rows without condition included where guidance acts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import eecompile
from eecompile.arrays import AnyArray, Array, Inputs
from eecompile.compiler.graph.quantise import Range
from eecompile.compiler.progress import Report
from eecompile.compiler.sessions import optimised_session, run_session, session_from_graph
from eecompile.compiler.verify import random_inputs
from eecompile.errors import BackendError, EecompileError
from eecompile.programs.interface import Interface
from eecompile.runtime.protocol import Engine
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.store.files import read_private, written
from eecompile.store.manifest import BundleManifest, exit_graph_name, output_names

_STEPS = 25  # at most: neighbouring timesteps of longer samplings tell nothing new
_GUIDANCE = 2.0  # of samples that are guided, where the recipe guides none
_HELD_OUT_SEED = 1 << 32  # of samples for verification, beyond those for calibration
_HELD_OUT = 3  # samples
_AT_ONCE = 4  # rows of an evaluation that shows what is inside
_FEW = 32  # rows; fewer say little about ranges


class InputValues(NamedTuple):
    """Values of one input, of which equal ones are kept once: a condition is that of every step.

    Attributes:
        values: distinct ones, [values, ...].
        which: of each row, int64 [rows].
    """

    values: AnyArray
    which: NDArray[np.int64]

    def at(self, rows: slice | NDArray[np.intp]) -> AnyArray:
        """The values of some rows, [rows, ...]."""
        found: AnyArray = self.values[self.which[rows]]
        return found


Rows = Mapping[str, InputValues]
"""Rows of evaluations by the names of inputs: x, t and conditions, in the order of samplings."""


class CalibrationSet(NamedTuple):
    """What goes into evaluations.

    Attributes:
        rows: of samples to calibrate with.
        held_out: of other samples, for verification.
        digest: of both.
    """

    rows: Rows
    held_out: Rows
    digest: str

    @property
    def times(self) -> tuple[float, ...]:
        """The timesteps that samplings visited, the largest first."""
        return tuple(sorted(map(float, self.rows["t"].values), reverse=True))


def calibration_set(
    bundle: Path, manifest: BundleManifest, samples: int, report: Report, *, ranges: bool = True
) -> CalibrationSet:
    """The calibration set of a bundle: from the file beside it, or made and kept there.

    Half of the samples are guided, where the network knows what "no condition" is. Conditions
    without a default are drawn at random from their range.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        samples: seeds, from 0 on.
        report: told of its progress.
        ranges: whether ranges of values are to be taken, which few rows do not show.

    Raises:
        BackendError: ONNX Runtime refuses the bundle's deepest exit, or there are so few rows
            that ranges say little.
        NonFiniteError: the network returned NaN or infinity.
    """
    ingredients = [eecompile.__version__, manifest.digest, samples, _STEPS, _HELD_OUT]
    key = hashlib.sha256(msgspec.json.encode(ingredients)).hexdigest()
    end = "calibration" if ranges else "evaluations"
    place = bundle.resolve().with_name(f"{bundle.resolve().name}.{end}.npz")
    found = _kept(place, key, manifest.interface)
    if found is None:
        engine = _Recorder(bundle, manifest.interface)
        rows = _sampled(engine, manifest.interface, samples, 0, report)
        held_out = _sampled(engine, manifest.interface, _HELD_OUT, _HELD_OUT_SEED, report)
        found = rows, held_out
        with suppress(OSError, EecompileError), written(place) as partial:
            _write(partial, key, *found)
    rows, held_out = found
    if ranges and (count := len(rows["t"].which)) < _FEW:
        raise BackendError(
            found=f"{count} evaluations of {samples} samples, to calibrate with",
            expected=f"at least {_FEW}, at the timesteps that samplings visit",
            remedy="raise samples in the target's [quantise]",
        )
    return CalibrationSet(rows, held_out, _digest(rows, held_out))


class _Recorder(Engine):
    """The deepest exit's graph in ONNX Runtime, which keeps what it is given."""

    max_batch = 16
    precision = "fp32"

    def __init__(self, bundle: Path, interface: Interface) -> None:
        self.exits = interface.exits
        self._depth = interface.exits[-1]
        self._names = output_names(interface, self._depth)
        self._session = optimised_session(bundle / exit_graph_name(self._depth))
        self.rows: dict[str, _Distinct] = {}
        self.told: Callable[[], None] = lambda: None

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """The outputs; see :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        given: Mapping[str, AnyArray] = {"x": x, "t": t, **conditions}
        for name, array in given.items():
            self.rows.setdefault(name, _Distinct()).add(array)
        self.told()
        return run_session(self._session, given, self._names)


class _Distinct:
    """A column that grows."""

    def __init__(self) -> None:
        self.which: list[int] = []
        self._values: list[AnyArray] = []
        self._known: dict[bytes, int] = {}

    def add(self, array: AnyArray) -> None:
        """A batch of rows more."""
        for row in array:
            digest = hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest()
            place = self._known.setdefault(digest, len(self._values))
            if place == len(self._values):
                self._values.append(row.copy())
            self.which.append(place)

    def column(self) -> InputValues:
        """What was added."""
        return InputValues(np.stack(self._values), np.array(self.which, np.int64))


def _sampled(
    engine: _Recorder, interface: Interface, samples: int, seed: int, report: Report
) -> Rows:
    """What goes into the evaluations of samples from a seed on."""
    engine.rows = {}
    steps = min(interface.sampling.steps, _STEPS)
    known = all(spec.null is not None for spec in interface.conditions.values())
    scale = interface.sampling.guidance if interface.sampling.guidance != 1 else _GUIDANCE
    guided = bool(interface.conditions) and known
    drawn = random_inputs(interface, samples, 0, seed % _HELD_OUT_SEED + bool(seed))
    conditions = {
        name: drawn[name] for name, spec in interface.conditions.items() if spec.default is None
    }
    engine.told = lambda: report("sampling to calibrate", len(engine.rows["t"].which), 0)
    with Sampler(engine, interface) as sampler:
        scales = [scale if guided and index % 2 == 0 else 1.0 for index in range(samples)]
        request = SampleRequest(n=samples, seed=seed, guidance=scales, conditions=conditions)
        sampler.sample_requests([request], steps=steps, schedule="full")
    return {name: each.column() for name, each in engine.rows.items()}


def _arrays(rows: Rows, held_out: Rows) -> dict[str, AnyArray]:
    """As they are kept, by name."""
    return {
        f"{what} {name} {part}": array
        for what, each in (("rows", rows), ("held-out", held_out))
        for name, column in each.items()
        for part, array in column._asdict().items()
    }


def _digest(rows: Rows, held_out: Rows) -> str:
    digest = hashlib.sha256()
    for name, array in _arrays(rows, held_out).items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(path: Path, key: str, rows: Rows, held_out: Rows) -> None:
    arrays = _arrays(rows, held_out)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, key=np.array(key), **arrays)


def _kept(path: Path, key: str, interface: Interface) -> tuple[Rows, Rows] | None:
    """What is kept of a bundle; None where that is nothing, something else, or damaged."""
    data = read_private(path)
    names = ("x", "t", *interface.conditions)
    try:
        with np.load(BytesIO(data or b""), allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            rows, held_out = (
                {
                    name: InputValues(
                        *(file[f"{what} {name} {part}"] for part in InputValues._fields)
                    )
                    for name in names
                }
                for what in ("rows", "held-out")
            )
            if any(max(c.which) >= len(c.values) for c in (*rows.values(), *held_out.values())):
                return None
    except Exception:  # numpy and zipfile raise several kinds
        return None
    return rows, held_out


def points(rows: Rows, steps: int, largest: int) -> list[Inputs]:
    """Batches of rows of one timestep each, evenly over the timesteps, the largest first.

    Of each timestep so many rows at most, evenly over its samples, with and without condition.
    """
    moments = rows["t"].at(slice(None))
    times = np.unique(moments)[::-1]
    chosen = times[np.linspace(0, len(times) - 1, min(steps, len(times))).round().astype(int)]
    made: list[Inputs] = []
    for time in chosen:
        places = np.flatnonzero(moments == time)
        places = places[np.linspace(0, len(places) - 1, min(largest, len(places))).astype(int)]
        made.append({name: column.at(places) for name, column in rows.items()})
    return made


def value_ranges(
    model: ir.Model, values: Sequence[ir.Value], rows: Rows, work: Path, report: Report
) -> dict[str, Range]:
    """The smallest and the largest number that values of a graph take, by their names.

    Args:
        model: a graph.
        values: of the graph.
        rows: inputs.
        work: for the graph with these values as outputs.
        report: told of its progress.

    Raises:
        BackendError: a value is not finite.
    """
    ranges = {v.name: _range(rows[v.name].values) for v in values if v.is_graph_input() and v.name}
    inside = [v for v in values if v.name not in ranges]
    names = [str(value.name) for value in inside]
    before = list(model.graph.outputs)
    model.graph.outputs.extend(value for value in inside if not value.is_graph_output())
    path = work / "observed.onnx"
    try:
        ir.save(model, path, external_data="observed.data")
    finally:
        model.graph.outputs.clear()
        model.graph.outputs.extend(before)
    session = session_from_graph(path)
    for part, done, total in _parts(rows):
        report("looking at ranges of values", done, total)
        for name, array in zip(names, run_session(session, part, names), strict=True):
            low, high = _range(array)
            known = ranges.get(name, (low, high))
            ranges[name] = min(low, known[0]), max(high, known[1])
    if wrong := [name for name, bounds in ranges.items() if not np.isfinite(bounds).all()]:
        raise BackendError(
            found=f"NaN or infinity in {len(wrong)} tensors of the graph, over calibration data",
            expected="finite values",
            remedy="choose a wider precision in the target, or name the first in keep_fp32",
        )
    return ranges


def _range(array: AnyArray) -> Range:
    return float(array.min()), float(array.max())


def _parts(rows: Rows) -> Iterator[tuple[Inputs, int, int]]:
    total = len(rows["t"].which)
    for start in range(0, total, _AT_ONCE):
        yield {n: c.at(slice(start, start + _AT_ONCE)) for n, c in rows.items()}, start, total
