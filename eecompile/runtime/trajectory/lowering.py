"""Lowering: the steps of a plan become operations, which the host or a GPU executes.

Operations work on places, by name: ``input x``, the network's input; ``output 0``, the
prediction; ``output 1``, a learned variance; ``noise``, this step's noise, and ``spread``, the
same scaled by a learned variance; and ``buffer NAME``, the buffers of the program. Only this
module tells the kinds of choices apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from eecompile.errors import NonFiniteError
from eecompile.programs.choice import OUTPUT, Exit, Forecast
from eecompile.programs.program import Step, Term
from eecompile.runtime.trajectory.plan import Plan

INPUT = "input x"


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
    """Evaluate the network on the first rows of its inputs, all at one timestep."""

    engine: str
    depth: int
    timestep: float
    rows: int


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


Operation = Sum | Evaluate | Check | Guide | Draw | Spread


class Lowered(NamedTuple):
    """What a trajectory executes.

    Attributes:
        steps: the operations of each step, in order.
        buffers: the places of n rows that sums write and later ones read, ``buffer state``
            first.
        draws: of each step that draws noise: its index and the order of the draw.
    """

    steps: tuple[tuple[Operation, ...], ...]
    buffers: tuple[str, ...]
    draws: tuple[tuple[int, int], ...]


def lowered(plan: Plan) -> Lowered:
    """The operations of a plan, and the memory that they need."""
    steps: list[tuple[Operation, ...]] = []
    buffers: dict[str, None] = {"buffer state": None}
    draws: list[tuple[int, int]] = []
    for index, step in enumerate(plan.program.steps):
        operations = (*_choice(plan, step), *_updates(step, len(draws)))
        draws += [(index, each.order) for each in operations if isinstance(each, Draw)]
        sums = [each.into for each in operations if isinstance(each, Sum)]
        buffers |= dict.fromkeys(into for into in sums if into != INPUT)
        steps.append(operations)
    return Lowered(tuple(steps), tuple(buffers), tuple(draws))


def _choice(plan: Plan, step: Step) -> Iterator[Operation]:
    """What brings the prediction, guided, into ``output 0``."""
    match step.chosen:
        case Exit(depth, engine):
            rows = plan.rows(step)
            yield Sum(INPUT, _terms(step.input), repeated=rows - plan.size)
            yield Evaluate(engine, depth, step.timestep, rows)
            for output in range(len(plan.interface.outputs)):
                yield Check(output, rows)
            if rows > plan.size:
                yield Guide(plan.guided, plan.interface.sampling.guided_channels)
        case Forecast():
            return  # the outputs stay as they are


def _updates(step: Step, drawn: int) -> Iterator[Operation]:
    """The noise that a step reads, and what it sets its buffers to."""
    noise = "noise"
    if step.reads_noise:
        yield Draw(drawn)
        if step.log_variances is not None:
            yield Spread(*step.log_variances)
            noise = "spread"
    for update in step.updates:
        yield Sum(f"buffer {update.into}", _terms(update.terms, noise), update.clip)


def _terms(terms: tuple[Term, ...], noise: str = "noise") -> tuple[tuple[str, float], ...]:
    places = {OUTPUT: "output 0", "noise": noise}
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
    return f"exit {choice.blocks}" if choice.evaluates else f"the choice {choice.text!r}"
