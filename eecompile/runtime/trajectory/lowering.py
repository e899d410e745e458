"""Lowering: the steps of a plan become operations, which the host or a GPU executes.

Operations work on places, by name: ``input x``, the network's input; ``output 0``, the
prediction; ``output 1``, a learned variance; ``noise``, this step's noise, and ``spread``, the
same scaled by a learned variance; ``buffer NAME``, the buffers of the program; ``kept K``,
predictions for later forecasts; and ``forecast``, the prediction that is one. Tensors of spans
have places of their own (:class:`SpanPlaces`). Only this module tells the kinds of choices apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from eecompile.errors import NonFiniteError
from eecompile.programs.choice import OUTPUT, Exit, Forecast, Span
from eecompile.programs.forecasts import Weights, forecasts
from eecompile.programs.program import Step, Term
from eecompile.runtime.trajectory.plan import WHOLE, Member, Plan, Stretch
from eecompile.runtime.trajectory.spans import Blend, SpanPlaces, TensorPlace, rows_of_steps

INPUT = "input x"
_PREDICTION, _FORECAST = "output 0", "forecast"


class Sum(NamedTuple):
    """Set a place to a sum of products, in their order.

    Attributes:
        into: the place, of n rows; it may be among those that are read.
        terms: places and coefficients.
        clip: bounds of the sum, or None.
        repeated: how many of its first rows are copied behind its n rows.
    """

    into: str
    terms: tuple[tuple[str, float], ...]
    clip: tuple[float, float] | None = None
    repeated: int = 0


class Evaluate(NamedTuple):
    """Evaluate an exit, or a part of it, on the first rows of its inputs, all at one timestep."""

    engine: str
    depth: int
    timestep: float
    rows: int
    stretch: Stretch = WHOLE


class Check(NamedTuple):
    """Find NaN and infinity in the first rows of an output, by its index."""

    output: int
    rows: int


class Guide(NamedTuple):
    """Lead the predictions of the first rows away from those without conditions.

    Classifier-free guidance (arXiv 2207.12598): the rows without conditions follow the n rows
    of the batch; the leading ``channels`` are guided, or all.
    """

    rows: int
    channels: int | None


class Draw(NamedTuple):
    """Draw the step's noise, the ``order``-th of the trajectory, from 0."""

    order: int


class Spread(NamedTuple):
    """Scale the noise by the learned standard deviation, into ``spread``.

    ``output 1`` is from -1 to 1; the logarithms of the variances there are ``low`` and
    ``high`` (arXiv 2102.09672, equation 15).
    """

    low: float
    high: float


Operation = Sum | Blend | Evaluate | Check | Guide | Draw | Spread


class Lowered(NamedTuple):
    """What a trajectory executes.

    Attributes:
        steps: the operations of each step, in order.
        buffers: the places of n rows that sums write and later ones read, ``buffer state``
            first.
        draws: of each step that draws noise: its index and the order of the draw.
        rows: how many rows each step evaluates.
        tensors: the places of tensors that enter, leave, or are added by spans.
        crossing: of those that enter and leave, the place by engine set and name.
    """

    steps: tuple[tuple[Operation, ...], ...]
    buffers: tuple[str, ...]
    draws: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    tensors: Mapping[str, TensorPlace]
    crossing: Mapping[str, Mapping[str, str]]


def lowered(plan: Plan, engine: Member) -> Lowered:
    """The operations of a plan on an engine, and the memory that they need."""
    steps: list[tuple[Operation, ...]] = []
    buffers: dict[str, None] = {"buffer state": None}
    draws: list[tuple[int, int]] = []
    made_of = forecasts(plan.program)
    rows, spans = rows_of_steps(plan, made_of), SpanPlaces(plan.program, engine, made_of)
    predicted = [step.chosen.memory == OUTPUT for step in plan.program.steps]
    kept = _kept([made if is_ else () for made, is_ in zip(made_of, predicted, strict=True)])
    for index, step in enumerate(plan.program.steps):
        terms = _forecast_terms(made_of[index], kept) if predicted[index] else ()
        choice = [*_choice(plan, step, terms, spans.extrapolated(index, rows[index]), rows[index])]
        choice += spans.kept(index, rows[index])
        if index in kept:
            choice.append(Sum(kept[index], ((_PREDICTION, 1.0),)))
        prediction = _FORECAST if len(terms) > 1 else _PREDICTION
        operations = (*choice, *_updates(step, len(draws), prediction))
        draws += [(index, each.order) for each in operations if isinstance(each, Draw)]
        sums = [each.into for each in operations if isinstance(each, Sum)]
        buffers |= dict.fromkeys(into for into in sums if into != INPUT)
        steps.append(operations)
    return Lowered(tuple(steps), tuple(buffers), tuple(draws), rows, spans.tensors, spans.crossing)


def _kept(made_of: Sequence[Weights]) -> dict[int, str]:
    """Where the predictions of steps are kept that forecasts read after the next evaluation.

    A place is used again once no forecast reads it any more.
    """
    last = {
        source: index
        for index, weights in enumerate(made_of)
        for source, _ in weights[1:]  # the latest prediction lies where it was made
    }
    places: dict[int, str] = {}
    ends: list[int] = []  # of each place, the step that reads it last
    for source, end in sorted(last.items()):
        free = next((place for place, used in enumerate(ends) if used < source), len(ends))
        ends[free : free + 1] = [end]
        places[source] = f"kept {free}"
    return places


def _forecast_terms(weights: Weights, kept: Mapping[int, str]) -> tuple[tuple[str, float], ...]:
    """The terms of a forecast: the latest prediction lies where it was made, earlier ones kept."""
    return tuple(
        (kept[source] if back else _PREDICTION, weight)
        for back, (source, weight) in enumerate(weights)
    )


def _choice(
    plan: Plan,
    step: Step,
    forecast: tuple[tuple[str, float], ...],
    span: Sequence[Blend],
    rows: int,
) -> Iterator[Operation]:
    """What brings the prediction, guided, into ``output 0``, or ``forecast``."""
    evaluations: list[Operation] = []
    match step.chosen:
        case Exit(depth, engine):
            evaluations = [Evaluate(engine, depth, step.timestep, rows)]
        case Span(start, stop, _, depth, engine):
            first, rest = Stretch(upto=start), Stretch(above=stop)
            evaluations = [
                Evaluate(engine, depth, step.timestep, rows, first),
                *span,
                Evaluate(engine, depth, step.timestep, rows, rest),
            ]
        case Forecast():
            if len(forecast) > 1:  # of order 0, it is the last one, which lies where it was made
                yield Sum(_FORECAST, forecast)
    if evaluations:
        yield Sum(INPUT, _terms(step.input), repeated=rows - plan.size)
        yield from evaluations
        for output in range(len(plan.interface.outputs)):
            yield Check(output, rows)
        if plan.acts(step):
            yield Guide(plan.guided, plan.interface.sampling.guided_channels)


def _updates(step: Step, drawn: int, prediction: str) -> Iterator[Operation]:
    """The noise that a step reads, and what it sets its buffers to."""
    noise = "noise"
    if step.reads_noise:
        yield Draw(drawn)
        if step.log_variances is not None:
            yield Spread(*step.log_variances)
            noise = "spread"
    for update in step.updates:
        yield Sum(f"buffer {update.into}", _terms(update.terms, noise, prediction), update.clip)


def _terms(
    terms: tuple[Term, ...], noise: str = "noise", prediction: str = _PREDICTION
) -> tuple[tuple[str, float], ...]:
    places = {OUTPUT: prediction, "noise": noise}
    return tuple((places.get(t.buffer, f"buffer {t.buffer}"), t.coefficient) for t in terms)


def non_finite(index: int, step: Step, precision: str, what: str = "the output") -> NonFiniteError:
    """The error for NaN or infinity in step ``index``, in what the network returned or else."""
    return NonFiniteError(
        found=f"NaN or infinity in {what} of {_named(step)} at step {index} "
        f"(timestep {step.timestep:g}, {precision})",
        expected="finite predictions",
        remedy="check the inputs, or build for a wider precision",
    )


def _named(step: Step) -> str:
    choice = step.chosen
    exits = "".join(map(str, choice.exits))
    return f"exit {exits}" if choice.evaluates else f"the choice {choice.text!r}"
