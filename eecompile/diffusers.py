"""Engines within a pipeline of diffusers: its loop and its scheduler, without its network.

::

    pipe = DiTPipeline.from_pretrained(...)
    with eecompile.diffusers.use_engines(pipe, "out/dit/cpu", schedule="half"):
        images = pipe([207, 360]).images
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eecompile.arrays import Array
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.snapshots.recipe import write_recipe
from eecompile.errors import UsageError
from eecompile.programs.forecasts import extrapolation
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.sampler import Sampler
from eecompile.store.manifest import BundleManifest

_NETWORKS = ("transformer", "unet")  # of a pipeline, by their names in it
_KEPT = 3  # predictions: what a forecast of the highest order takes


class _Made(NamedTuple):
    """A prediction that was evaluated, and the variable of forecasts there."""

    place: float
    outputs: Sequence[Array]


class EngineNetwork(nn.Module):
    """Stands for the network of a pipeline: called as it is, it evaluates engines.

    What runs at a call is what the schedule says for the call's timestep. A forecast is made from
    the predictions that were evaluated before it in the same sampling; a call that comes out of
    order (its time is not below the last one's, or the batch is another) begins a sampling anew,
    and evaluates. Where a pipeline calls several times at one timestep, as for guidance, each of
    these calls has predictions of its own.

    Args:
        replaced: the pipeline's network, whose configuration and names of arguments go on.
        sampler: the engines.
        schedule: as :meth:`eecompile.Sampler.schedule` takes it.
        ignored: arguments that the engines do not take and that may be given nevertheless.

    Raises:
        UsageError: the network has other arguments than the engines, or the schedule skips spans
            of blocks.
    """

    def __init__(
        self,
        replaced: nn.Module,
        sampler: Sampler,
        schedule: ExitSchedule | int | str | Sequence[int] | None = None,
        ignored: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.config = getattr(replaced, "config", None)
        self.dtype = getattr(replaced, "dtype", torch.float32)
        self.device = getattr(replaced, "device", torch.device("cpu"))
        self.sampler = sampler
        self.schedule = sampler.schedule(schedule)
        self._signature = inspect.signature(type(replaced).forward)
        self._ignored = frozenset(ignored) | {"return_dict"}
        self._check(type(replaced).__name__)
        self._histories: list[list[_Made]] = []
        self._last: tuple[float, tuple[int, ...]] | None = None
        self._calls = 0  # at the last timestep

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the replaced network would return, by its own arguments.

        Raises:
            UsageError: an argument that the engines do not have, or one that they need is missing.
        """
        try:
            given = self._signature.bind_partial(self, *args, **kwargs).arguments
        except TypeError as error:
            raise UsageError(
                found=f"a call that the network would not take ({error})",
                expected=f"its arguments, {self._signature}",
                remedy="call as the network is called that the engines were made of",
            ) from error
        x, t, conditions = self._inputs(given)
        rows = _array(x)
        times = np.broadcast_to(_array(t), (len(rows),)).copy()
        arrays = {
            # As nulls, since a batch holds the rows of guidance, too.
            name: spec.nulls(name, range(len(rows)), _given(conditions[name], spec.dtype))
            for name, spec in self.sampler.interface.conditions.items()
        }
        outputs = self._step(rows, times, arrays)
        found = torch.from_numpy(np.concatenate(outputs, axis=1)).to(x.device, x.dtype)
        if given.get("return_dict", True):
            from diffusers.models.modeling_outputs import Transformer2DModelOutput

            return Transformer2DModelOutput(sample=found)
        return (found,)

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Calls of a pipeline that tells its branches of guidance apart; they are anyway."""
        yield

    def _check(self, kind: str) -> None:
        known = set(self._signature.parameters)
        interface = self.sampler.interface
        names = [interface.arguments.get(name, name) for name in ("x", "t", *interface.conditions)]
        missing = [name for name in names if name.partition(".")[0] not in known]
        if missing:
            raise UsageError(
                found=f"engines of {interface.name}, which take {', '.join(missing)}",
                expected=f"arguments of {kind}: {', '.join(sorted(known - {'self'}))}",
                remedy="take the engines of the pipeline's own network",
            )
        skips = [each.text for each in self.schedule.choices if each.evaluates and each.memory]
        if skips:
            raise UsageError(
                found=f"a schedule that skips spans of blocks ({skips[0]})",
                expected="exits and forecasts, which go without the sampler's own loop",
                remedy="choose another schedule, or sample with eecompile.Sampler",
            )

    def _inputs(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The state, the timestep, and the conditions, by the engines' names."""
        left: Any = dict(given)
        found: dict[str, Tensor] = {}
        interface = self.sampler.interface
        for name in ("x", "t", *interface.conditions):
            own = interface.arguments.get(name, name)
            value, left = _taken(left, own.split("."))
            if value is None:
                raise UsageError(
                    found=f"a call without {own}",
                    expected=f"it, as the engines of {interface.name} take it",
                    remedy="call as the network is called that the engines were made of",
                )
            found[name] = torch.as_tensor(value)
        more = [name for name, value in left.items() if name != "self" and _is_given(value)]
        if unknown := sorted(set(more) - self._ignored):
            raise UsageError(
                found=f"a call with {', '.join(unknown)}",
                expected=f"what the engines of {interface.name} take",
                remedy="export with it as a condition, or name it in 'ignored' if it changes "
                "nothing",
            )
        return found.pop("x"), found.pop("t"), found

    def _step(self, x: Array, times: Array, conditions: dict[str, Any]) -> Sequence[Array]:
        """The outputs at one call, evaluated or forecast."""
        process = self.sampler.interface.process
        point = process.at(process.time_of(float(times[0])))
        place = point.half_log_snr if process.family == "diffusion" else point.sigma
        self._begin(point.time, x.shape)
        history = self._histories[self._calls - 1]
        choice = self.schedule.choice_at(point.time, process.timesteps)
        if not choice.evaluates and history and (times == times[0]).all():
            return _forecast(history, choice.order, place)
        exits = self.sampler.interface.exits
        depth = choice.blocks if choice.evaluates else exits[-1]
        engine = self.sampler.engine.member(choice.engine)
        outputs = _evaluated(engine, depth, x, times, conditions)
        history.append(_Made(place, outputs))
        del history[:-_KEPT]
        return outputs

    def _begin(self, time: float, shape: tuple[int, ...]) -> None:
        """Counts the calls at one timestep; a new sampling forgets what was predicted."""
        last, self._last = self._last, (time, shape)
        if last is not None and last == (time, shape):
            self._calls += 1
        else:
            if last is None or last[1] != shape or time > last[0]:
                self._histories = []
            self._calls = 1
        while len(self._histories) < self._calls:
            self._histories.append([])


@contextmanager
def use_engines(
    pipe: Any,
    engines: str | PathLike[str] | Sampler,
    *more: str | PathLike[str],
    schedule: ExitSchedule | int | str | Sequence[int] | None = None,
    ignored: Iterable[str] = (),
    threads: int | None = None,
) -> Iterator[EngineNetwork]:
    """Within the block, a pipeline of diffusers evaluates engines instead of its network.

    Everything else stays the pipeline's: its scheduler, guidance, encoders and decoder. Without
    ``with``, :class:`EngineNetwork` can take the network's place for good.

    Args:
        pipe: a pipeline with a ``transformer`` or a ``unet``.
        engines: an engine set of that network, or a sampler that has it open.
        more: further engine sets of the network, for schedules that name them.
        schedule: what runs at each timestep; see :meth:`eecompile.Sampler.schedule`; None takes
            the recipe's, or full depth where that forecasts and was found for other steps.
        ignored: arguments that the pipeline gives and that the engines may go without.
        threads: of an evaluation, as :meth:`eecompile.Sampler.open` takes them.

    Yields:
        What stands for the network.

    Raises:
        UsageError: there is no network in the pipeline, or it is not that of the engines.
    """
    name = _name_of_network(pipe)
    replaced = getattr(pipe, name)
    opened = None if isinstance(engines, Sampler) else Sampler.open(engines, *more, threads=threads)
    sampler = engines if isinstance(engines, Sampler) else opened
    assert sampler is not None
    try:
        if schedule is None:
            schedule = sampler.interface.default_schedule("of the pipeline")
        setattr(pipe, name, EngineNetwork(replaced, sampler, schedule, ignored))
        yield getattr(pipe, name)
    finally:
        setattr(pipe, name, replaced)
        if opened is not None:
            opened.close()


def export_pipeline(
    pipe: Any,
    folder: str | PathLike[str],
    *,
    exits: Sequence[int] | None = None,
    force: bool = False,
) -> BundleManifest:
    """Export the network of a pipeline of diffusers as it is in memory.

    A folder of the same name within ``folder`` gets the network and the scheduler, as
    ``save_pretrained`` writes them; ``folder/recipe.toml`` is the recipe, to change and export
    again, and ``folder/bundle`` the bundle.

    Args:
        pipe: a pipeline with a ``transformer`` or a ``unet``.
        folder: where these are written; its name becomes the network's.
        exits: depths, ascending; None for full depth alone.
        force: replace another recipe or another network's bundle that is there.

    Returns:
        The bundle's manifest.

    Raises:
        UsageError: there is no network in the pipeline, or engines are in its place; or its class
            has no recipe that can be written.
        EecompileError: the network cannot be exported; see
            :func:`eecompile.compiler.bundle_from_recipe`.
    """
    name = _name_of_network(pipe)
    network = getattr(pipe, name)
    if isinstance(network, EngineNetwork):
        raise UsageError(
            found="a pipeline whose network is engines",
            expected="its own network",
            remedy="export before engines take its place, or after the block of use_engines",
        )
    place = Path(folder)
    saved = place / place.absolute().name  # by which the recipe calls the network
    for part in (name, "scheduler"):
        getattr(pipe, part).save_pretrained(saved / part)
    recipe = write_recipe(str(saved), place / "recipe.toml", force=force)
    return bundle_from_recipe(recipe, place / "bundle", exits=exits, force=force)


def _name_of_network(pipe: Any) -> str:
    name = next((each for each in _NETWORKS if getattr(pipe, each, None) is not None), None)
    if name is None:
        raise UsageError(
            found=f"a {type(pipe).__name__} without a transformer or a unet",
            expected="a pipeline of diffusers that has either",
            remedy="pass the pipeline itself",
        )
    return name


def _evaluated(
    engine: Any, depth: int, x: Array, times: Array, conditions: Mapping[str, Any]
) -> Sequence[Array]:
    """What an engine gives, in parts that it takes."""
    size = engine.max_batch
    parts = [
        engine.evaluate(
            depth,
            np.ascontiguousarray(x[start : start + size]),
            times[start : start + size],
            {name: each[start : start + size] for name, each in conditions.items()},
        )
        for start in range(0, len(x), size)
    ]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _forecast(history: Sequence[_Made], order: int, place: float) -> Sequence[Array]:
    """The prediction extrapolated; a learned variance is the last one."""
    places = [made.place for made in history]
    weights = extrapolation(places, reversed(range(len(places))), order, place)
    prediction = sum(np.float32(weight) * history[index].outputs[0] for index, weight in weights)
    return [np.asarray(prediction, np.float32), *history[-1].outputs[1:]]


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().float().numpy(), np.float32)


def _given(tensor: Tensor, dtype: str) -> Any:
    """A condition on the host; masks of 0 and 1 come as floats, too."""
    given = tensor.detach().cpu()
    whole = given.to(torch.int64) if dtype == "int64" else given.float()
    return (whole if torch.equal(whole.to(given.dtype), given) else given.float()).numpy()


def _taken(held: Any, path: Sequence[str]) -> tuple[Any, Any]:
    """What lies at a path of keys and indices, None if nothing; and the rest, without it."""
    if not path:
        return held, None
    key: Any = path[0]
    if isinstance(held, tuple | list) and key.isdecimal():
        held, key = dict(enumerate(held)), int(key)
    if not isinstance(held, Mapping):
        return None, held
    value, rest = _taken(held.get(key), path[1:])
    return value, {**held, key: rest}


def _is_given(value: Any) -> bool:
    """Whether an argument says something: None, and dictionaries of nothing, do not."""
    if isinstance(value, Mapping):
        return any(_is_given(each) for each in value.values())
    return value is not None and not (isinstance(value, tuple | list) and not value)
