"""What a network takes and gives, as a sampler needs to know it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import ArrayLike

from eecompile.arrays import AnyArray
from eecompile.decoding import PlainName
from eecompile.errors import ConditionError, RecipeError, UsageError
from eecompile.programs.choice import Choice
from eecompile.programs.companions import PromptEncoder, SampleDecoder
from eecompile.programs.process import Process
from eecompile.programs.schedule import ExitSchedule


class Resizable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Axes of a sample whose length a caller may choose.

    Attributes:
        axes: their indices in the sample's shape; axis 0 is usually the channels.
        min: smallest length.
        max: largest length.
        multiple: of which every length is a multiple, such as the side of a patch.
    """

    axes: tuple[Annotated[int, Meta(ge=0)], ...]
    min: Annotated[int, Meta(ge=1)]
    max: Annotated[int, Meta(ge=1)]
    multiple: Annotated[int, Meta(ge=1)] = 1

    def __post_init__(self) -> None:
        fits = self.min < self.max and self.min % self.multiple == 0 == self.max % self.multiple
        if not fits or not self.axes or len(set(self.axes)) < len(self.axes):
            raise RecipeError(
                found=f"state.resizable with axes {list(self.axes)}, {self.min} to {self.max} "
                f"in multiples of {self.multiple}",
                expected="distinct axes, and ascending bounds that are such multiples",
                remedy="fix the bounds",
            )


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is sampled: float32 [B, *shape].

    Attributes:
        shape: of one sample, unless the caller chooses another.
        range: bounds of the data; solvers clip the data they predict to it, unless
            ``Sampling.clip`` is false. None for data without bounds, such as latents.
        resizable: axes whose length a caller may choose; None for a fixed shape.
    """

    shape: tuple[Annotated[int, Meta(ge=1)], ...]
    range: tuple[float, float] | None = None
    resizable: Resizable | None = None

    def __post_init__(self) -> None:
        if self.resizable:
            try:
                self.check_shape(self.shape)
            except UsageError as error:
                raise RecipeError(
                    found=f"state.shape = {list(self.shape)} that state.resizable forbids",
                    expected=error.expected,
                    remedy="make the default shape one of those allowed",
                ) from error
        if self.range and not self.range[0] < self.range[1]:
            raise RecipeError(
                found=f"state.range = {list(self.range)}",
                expected="two ascending bounds",
                remedy="give the bounds of the data, or leave it out",
            )

    @property
    def shortest(self) -> tuple[int, ...]:
        """The least lengths of a sample."""
        free = self.resizable
        return tuple(
            free.min if free and axis in free.axes else length
            for axis, length in enumerate(self.shape)
        )

    def check_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """``shape`` as a tuple, when samples may have it.

        Raises:
            UsageError: they may not.
        """
        try:
            found = tuple(operator.index(length) for length in shape)
        except TypeError as error:
            raise UsageError(
                found=f"shape {shape!r}",
                expected=f"whole numbers, such as {list(self.shape)}",
                remedy="choose such a shape",
            ) from error
        free = self.resizable
        axes = free.axes if free else ()
        fixed = len(found) == len(self.shape) and all(
            index in axes or length == self.shape[index] for index, length in enumerate(found)
        )
        lengths = [found[axis] if axis < len(found) else 0 for axis in axes]
        allowed = not free or all(
            free.min <= length <= free.max and length % free.multiple == 0 for length in lengths
        )
        if not fixed or not allowed:
            rule = free and (
                f", but axes {list(axes)} from {free.min} to {free.max} "
                f"in multiples of {free.multiple}"
            )
            raise UsageError(
                found=f"shape {list(found)}",
                expected=f"{list(self.shape)}{rule or ''}",
                remedy="choose such a shape",
            )
        return found


_HOST = 1  # DLPack's number for memory that the processor reads
_LARGEST = {"int64": 2.0**63, "float32": float(np.finfo(np.float32).max)}


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An input of the network beside the state and the timestep: [B, *shape].

    Attributes:
        dtype: of the input.
        shape: for one sample.
        range: smallest and largest value that a caller may give; None for any.
        default: the value when the caller gives none: a number for every element, or
            ``cycle``, which counts through ``range`` by sample index. None makes the
            condition required.
        null: the value that stands for "no condition", which guidance needs.
        names: a word for each value, from the smallest, for pictures and tables.
    """

    dtype: Literal["int64", "float32"]
    shape: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    range: tuple[float, float] | None = None
    default: float | Literal["cycle"] | None = None
    null: float | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.default == "cycle" and (self.range is None or self.dtype != "int64"):
            raise RecipeError(
                found="default = 'cycle' in a condition without a range of integers",
                expected="dtype 'int64' and a range to cycle through",
                remedy="give the range, or a number as the default",
            )
        low, high = self.range or (-math.inf, math.inf)
        known = isinstance(self.default, float | int)
        if low > high or (known and not low <= float(self.default or 0) <= high):
            raise RecipeError(
                found=f"range {self.range} and default {self.default} in a condition",
                expected="an ascending range that holds the default",
                remedy="fix either",
            )
        self._check_numbers()
        if self.names and len(self.names) != high - low + 1:
            raise RecipeError(
                found=f"{len(self.names)} names in a condition with range {self.range}",
                expected="a name for each value of the range",
                remedy="give as many names as there are values",
            )

    def _check_numbers(self) -> None:
        """Pass when bounds, default and null are finite, and whole where integers are taken."""
        for what, values in (
            ("range", self.range or ()),
            ("default", (self.default,)),
            ("null", (self.null,)),
        ):
            for value in values:
                if value is None or isinstance(value, str):
                    continue
                finite = abs(value) < _LARGEST[self.dtype]
                if not finite or (self.dtype == "int64" and value != int(value)):
                    raise RecipeError(
                        found=f"{what} {value} in a condition of dtype {self.dtype}",
                        expected="finite numbers that this dtype holds",
                        remedy=f"fix {what}, or dtype",
                    )

    def values(self, name: str, given: ArrayLike | None, samples: Sequence[int]) -> AnyArray:
        """The input for ``samples``, dtype ``dtype``, [len(samples), *shape].

        Args:
            name: the condition's, for messages.
            given: a value for all samples, or one for each; None takes the default.
            samples: the samples' indices.

        Raises:
            ConditionError: a value is missing, wrongly shaped, of another kind, or out
                of range.
        """
        shape = (len(samples), *self.shape)
        if given is None:
            return self._default(name, samples, shape)
        try:
            array = _as_array(given)
        except Exception as error:  # whatever other libraries' arrays raise
            unequal = isinstance(error, ValueError) and isinstance(given, list | tuple)
            reason = "lists of unequal lengths" if unequal else f"a form without numbers ({error})"
            raise ConditionError(
                found=f"condition {name!r} in {reason}",
                expected=f"{self.dtype} of shape {list(self.shape)} or {list(shape)}, on the host",
                remedy="give an array, or copy it to the host first",
            ) from error
        fits = array.shape in (self.shape, shape) and array.dtype.kind in "iuf"
        if not fits or (self.dtype == "int64" and array.dtype.kind == "f"):
            raise ConditionError(
                found=f"condition {name!r} of dtype {array.dtype} and shape {list(array.shape)}",
                expected=f"{self.dtype} of shape {list(self.shape)} or {list(shape)}",
                remedy="give one value for all samples, or one for each",
            )
        self._check_range(name, array)
        # 2**63 is no int64, and 1e300 no float32, though numpy would make something of them.
        if not (np.abs(array.astype(np.float64)) < _LARGEST[self.dtype]).all():
            raise ConditionError(
                found=f"condition {name!r} with NaN, infinity, or beyond {self.dtype}",
                expected="finite numbers",
                remedy="check where they come from",
            )
        return np.broadcast_to(array, shape).astype(self.dtype)

    def nulls(self, name: str, samples: Sequence[int], given: ArrayLike | None = None) -> AnyArray:
        """The input that stands for "no condition", [len(samples), *shape].

        Arguments and errors are those of :meth:`values`, but ``given`` may be of any range, and
        None takes ``null``.
        """
        value = self.null if given is None else given
        if value is None:
            raise ConditionError(
                found=f"guidance, and condition {name!r} without a null value",
                expected="a null value, which the network was trained with",
                remedy="sample with guidance 1, pass it in nulls, or add it to the recipe and "
                "export again",
            )
        if given is None:
            return np.full((len(samples), *self.shape), value, self.dtype)
        known = None
        if self.dtype == "int64" and self.range and self.null is not None:
            known = min(self.range[0], self.null), max(self.range[1], self.null)
        anything = msgspec.structs.replace(self, range=known, default=None, names=())
        return anything.values(name, given, samples)

    def _default(self, name: str, samples: Sequence[int], shape: tuple[int, ...]) -> AnyArray:
        if self.default is None:
            raise ConditionError(
                found=f"no condition {name!r}",
                expected=f"{self.dtype} of shape {list(self.shape)} or {list(shape)}",
                remedy=f"pass {name}=...",
            )
        if self.default != "cycle":
            return np.full(shape, self.default, self.dtype)
        low, high = (int(bound) for bound in self.range or (0, 0))
        index = np.fromiter((low + s % (high - low + 1) for s in samples), np.int64, len(samples))
        column = index.reshape(-1, *(1 for _ in self.shape))
        return np.broadcast_to(column, shape).copy()

    def _check_range(self, name: str, array: AnyArray) -> None:
        if self.range is None or not array.size:
            return
        low, high = self.range
        wrong = array[~((array >= low) & (array <= high))]  # type: ignore[operator]
        if wrong.size:
            raise ConditionError(
                found=f"{name} = {wrong.flat[0]}",
                expected=f"a value from {low:g} to {high:g}",
                remedy="choose one in that range",
            )


def _as_array(given: ArrayLike) -> AnyArray:
    """What a caller gives, also by DLPack, as an array on the host.

    What lies on a GPU is copied by the library that it belongs to, where that follows the
    standard's version of 2023: https://data-apis.org/array-api/2023.12.
    """
    where: Callable[[], tuple[int, int]] | None = getattr(given, "__dlpack_device__", None)
    if where is not None and where()[0] != _HOST:
        return np.from_dlpack(given, device="cpu")  # type: ignore[arg-type]
    if where is None or hasattr(given, "__array__"):
        return np.asarray(given)
    return np.from_dlpack(given)  # type: ignore[arg-type]


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a sampler does unless told otherwise.

    Attributes:
        solver: a solver's name.
        steps: number of steps.
        schedule: an exit schedule's name; see :meth:`Interface.default_schedule`.
        guidance: classifier-free guidance (arXiv 2207.12598); 1 is none.
        guided_channels: number of leading channels that guidance acts on, the others
            keeping the prediction with the condition, as in DiT's public code; None
            for all.
        guidance_interval: smallest and largest time t at which guidance acts (arXiv
            2404.07724); None for all.
        clip: whether solvers clip the data they predict to the state's range, if it has one.
    """

    solver: str = "ddim"
    steps: Annotated[int, Meta(ge=1)] = 50
    schedule: str = "full"
    guidance: float = 1.0
    guided_channels: Annotated[int, Meta(ge=1)] | None = None
    guidance_interval: tuple[float, float] | None = None
    clip: bool = True


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """All that a sampler must know of a network besides its engines.

    Attributes:
        name: of the network.
        exits: depths that predict, ascending.
        state: what is sampled.
        conditions: further inputs, by name.
        process: the forward process.
        schedules: exit schedules, by name.
        sampling: defaults.
        costs: what evaluating each exit costs, in any unit; empty where the depth is it.
        cuts: block boundaries between which spans may be skipped, ascending, each the number of
            blocks before it; empty for none.
        arguments: what the network itself calls an input, by its name here (``x``, ``t``, a
            condition), where the two differ; ``added.size`` is entry ``size`` of ``added``.
        encoders: what makes conditions of prompts, by name.
        decoder: what samples are decoded to; None where they are what is wanted.
    """

    name: PlainName
    exits: tuple[int, ...]
    state: State
    conditions: dict[str, Condition] = {}
    process: Process = Process()
    schedules: dict[str, ExitSchedule] = {}
    sampling: Sampling = Sampling()
    costs: tuple[float, ...] = ()
    cuts: tuple[int, ...] = ()
    arguments: dict[str, str] = {}
    encoders: dict[PlainName, PromptEncoder] = {}
    decoder: SampleDecoder | None = None

    @property
    def spans(self) -> dict[tuple[int, int], float]:
        """Every span that may be skipped, and the share of the deepest exit's cost that it saves.

        A start and a stop; a shallower exit skips those that stop within its depth, and saves of
        its own cost the share of its blocks that they are.
        """
        return {
            (start, stop): (stop - start) / self.exits[-1]
            for start, stop in combinations(self.cuts, 2)
        }

    @property
    def prompted(self) -> frozenset[str]:
        """The conditions that prompts stand for."""
        return frozenset(name for encoder in self.encoders.values() for name in encoder.gives)

    @property
    def decoded_state(self) -> State:
        """What the decoder's engine takes: samples, or tiles of them."""
        decoder, state = self.decoder, self.state
        if decoder is None or not decoder.tile:
            return state
        kept = state.shape[: -decoder.tiled]
        return msgspec.structs.replace(
            state, shape=(*kept, *[decoder.tile] * decoder.tiled), resizable=None
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """What an exit gives: ``prediction``, and ``variance`` where it is learned."""
        learned = self.process.variance == "learned_range"
        return ("prediction", "variance") if learned else ("prediction",)

    def facts(self) -> dict[str, str]:
        """What is sampled, from what, and how by default, for displays."""
        sampling = self.sampling
        return {
            "samples": "x".join(map(str, self.state.shape)),
            "conditions": ", ".join(self.conditions) or "none",
            "by default": f"{sampling.solver}, {sampling.steps} steps, {sampling.schedule}",
            "schedules": ", ".join(self.schedules) or "none",
        }

    def check_conditions(self, names: Iterable[str], what: str = "condition") -> None:
        """Raise ConditionError unless all ``names`` are conditions; ``what`` is for its text."""
        known = sorted(self.conditions)
        for name in names:
            if name not in self.conditions:
                raise ConditionError(
                    found=f"{what} {name!r}",
                    expected=f"one of {known}" if known else "no conditions",
                    remedy="remove or rename it",
                )

    def schedules_for(
        self, solver: object = None, steps: int | None = None
    ) -> dict[str, ExitSchedule]:
        """The schedules that go with a sampling, by name.

        Those that extrapolate were found for the recipe's solver and number of steps, and go with
        these alone.

        Args:
            solver: that samples; None for the recipe's.
            steps: their number; None for the recipe's.
        """
        own = solver in (None, self.sampling.solver) and steps in (None, self.sampling.steps)
        return {
            name: schedule
            for name, schedule in self.schedules.items()
            if own or all(choice.memory is None for choice in schedule.choices)
        }

    def default_schedule(self, solver: object = None, steps: int | None = None) -> str:
        """The name of the schedule that is taken where none is given.

        The recipe's, or full depth if that does not go with the solver and the number of steps;
        see :meth:`schedules_for`.
        """
        name = self.sampling.schedule
        goes = name not in self.schedules or name in self.schedules_for(solver, steps)
        return name if goes else "full"

    def cost(self, choice: Choice) -> float:
        """What a choice costs, relative to evaluating the deepest exit."""
        return choice.cost(self.cost_of_exit)

    def cost_of_exit(self, depth: int) -> float:
        """What evaluating the exit ``depth`` costs, relative to the deepest."""
        costs = self.costs or self.exits
        return costs[self.exits.index(depth)] / costs[-1]

    def share(self, schedule: ExitSchedule) -> float:
        """Mean cost of a schedule over time, relative to the deepest exit."""
        return schedule.mean(self.cost)
