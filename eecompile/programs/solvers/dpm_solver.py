"""DPM-Solver, singlestep (Lu et al., arXiv 2206.00927, algorithms 1 and 2).

Runge-Kutta's way in half the logarithm of the signal-to-noise ratio, lambda. A number of
evaluations is divided into steps of the method, and these are spaced, by the rule of
DPM-Solver-fast (section 3.4, appendix D). The data form is that of DPM-Solver++ (arXiv
2211.01095, appendix B).
"""

from __future__ import annotations

import math
from itertools import islice, pairwise
from typing import Literal, get_args

import numpy as np

from eecompile.errors import UsageError
from eecompile.programs.grids import Grid, points
from eecompile.programs.process import DATA, Point, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers._common import (
    data_step,
    first_step,
    log_ratios,
    noise_step,
    title,
)
from eecompile.programs.tape import ChoiceAt, Prediction, Tape, Value

Form = Literal["noise", "data"]
_ENDLESS = ("trailing", "uniform")  # grids that end before t = 0


def dpm_solver_2(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    form: Form = "noise",
    denoise: bool = False,
    grid: Grid = "logsnr",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Second order; deterministic; two evaluations make one step of the method.

    As in the paper, the trajectory ends at t = 0, where a process has some noise left.

    Args:
        steps: number of evaluations, 1 to T; where it is odd, the last makes a step of first
            order.
        form: interpolate the predicted ``noise`` (DPM-Solver) or ``data``
            (DPM-Solver++).
        denoise: end at the data instead: the last evaluation, at t = 0, predicts it
            (``denoise_to_zero`` in the authors' code).
        grid: with ``logsnr``, steps of the method, whatever their order, are even in lambda,
            as the moments within each are. With other grids, all are moments of the grid
            (of ``linspace`` without ``denoise``, not in whole timesteps). Times that
            are given, ``trailing`` and ``uniform``, do not end at t = 0: they want ``denoise``.
    """
    return _recorded(process, steps, choice_at, 2, form, denoise, grid, clip)


def dpm_solver_3(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    *,
    form: Form = "noise",
    denoise: bool = False,
    grid: Grid = "logsnr",
    clip: tuple[float, float] | None = None,
) -> Program:
    """Third order; deterministic; three evaluations make one step of the method.

    Arguments and errors are those of :func:`dpm_solver_2`. DPM-Solver-fast: evaluations left
    over make a last step of their number's order; where none are, the last three make one of
    second and one of first order.
    """
    return _recorded(process, steps, choice_at, 3, form, denoise, grid, clip)


def _recorded(
    process: Process,
    steps: int,
    choice_at: ChoiceAt,
    order: int,
    form: Form,
    denoise: bool,
    grid: Grid,
    clip: tuple[float, float] | None,
) -> Program:
    if form not in get_args(Form):
        raise UsageError(
            found=f"form {form!r}",
            expected=f"one of {list(get_args(Form))}",
            remedy="choose one of these",
        )
    sizes = _sizes(steps - denoise, order)
    visited = _visited(process, steps, grid, sizes, denoise)
    tape = Tape(process, choice_at, visited[0], clip)
    if not visited[0].alpha and sizes:  # nothing can be extrapolated from pure noise
        sizes = [1, *([sizes[0] - 1] if sizes[0] > 1 else []), *sizes[1:]]
    moments = iter(visited)
    start = next(moments)
    for size in sizes:
        ends = list(islice(moments, size))
        _step(tape, start, ends, form)
        start = ends[-1]
    if denoise:
        tape.advance(first_step(tape.evaluate(tape.state, start), DATA))
    options: dict[str, object] = {"form": form, **({"denoise": True} if denoise else {})}
    return tape.finish(title(f"dpm-solver-{order}", grid, options))


def _sizes(evaluations: int, order: int) -> list[int]:
    """How many evaluations each step of the method has: DPM-Solver-fast's rule."""
    whole, rest = divmod(evaluations, order)
    if rest or order == 2 or not whole:
        return [order] * whole + ([rest] if rest else [])
    return [3] * (whole - 1) + [2, 1]


def _visited(
    process: Process, steps: int, grid: Grid, sizes: list[int], denoise: bool
) -> list[Point]:
    """The moments of evaluation; without ``denoise``, with the one where the trajectory ends."""
    visited = points(process, steps, grid)
    if grid == "logsnr":
        first, last = visited[0], visited[-1] if steps > 1 else points(process, 2, grid)[-1]
        edges = np.linspace(first.half_log_snr, last.half_log_snr, len(sizes) + 1)
        inner = [
            process.at_ratio(math.exp(-(low + (high - low) * part / size)))
            for size, (low, high) in zip(sizes, pairwise(map(float, edges)), strict=True)
            for part in range(size)
        ]
        return [first, *inner[1:], *([last] if sizes else [])]
    if denoise:
        return visited
    if not isinstance(grid, str) or grid in _ENDLESS:
        raise UsageError(
            found=f"a grid that ends before t = 0 ({grid if isinstance(grid, str) else 'times'})",
            expected="one that ends there, or denoise",
            remedy="choose another grid, such as logsnr, or add denoise=true",
        )
    if grid == "linspace" and process.family == "diffusion":  # not whole, as the authors' are
        times = np.linspace(process.last.time, process.at(0.0).time, steps + 1)
        return [process.at(float(time)) for time in times]
    return points(process, steps + 1, grid)


def _step(tape: Tape, start: Point, ends: list[Point], form: Form) -> None:
    """A step from ``start`` to the last of ``ends``, evaluated at the others too."""
    prediction = tape.evaluate(tape.state, start)
    if len(ends) == 1:
        tape.advance(first_step(prediction, ends[0]))
        return
    cross = noise_step if form == "noise" else data_step
    first = tape.keep(_pick(prediction, form), "first")
    state = cross(tape.state, start, ends[0], first)
    for now, after in pairwise(ends):
        state = tape.keep(state, "inner")
        value = _pick(tape.evaluate(state, now), form)
        h, (place,) = log_ratios(start, after, [now])
        weight = _weight(start, after, h, form, halved=len(ends) == 2)
        state = cross(tape.state, start, after, first) + (weight / place) * (value - first)
    tape.advance(state)


def _pick(prediction: Prediction, form: Form) -> Value:
    return prediction.noise if form == "noise" else prediction.data


def _weight(start: Point, after: Point, h: float, form: Form, *, halved: bool) -> float:
    """Of the change over h: half the step (algorithm 1), or equation 3.3's integral (2)."""
    if form == "noise":
        whole = after.sigma - start.sigma * after.alpha / start.alpha
        return whole / 2 if halved else whole / h + after.sigma
    whole = after.alpha - start.alpha * after.sigma / start.sigma
    return whole / 2 if halved else after.alpha - whole / h
