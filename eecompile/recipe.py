"""Recipes: typed, frozen forms of the TOML under export/ and engines/.

Unknown keys are errors; nothing is inherited, registered or executed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from eecompile.decoding import PlainName
from eecompile.errors import RecipeError, UsageError
from eecompile.programs.choice import Exit, choice_of
from eecompile.programs.companions import companion_problems
from eecompile.programs.interface import Condition, Sampling, State
from eecompile.programs.meaning import DEEPEST, LARGEST, TAKEN, is_condition_name
from eecompile.programs.process import Process
from eecompile.programs.schedule import ExitSchedule
from eecompile.programs.solvers import solver_named
from eecompile.store.companions import CompanionRecipe, DecoderRecipe, EncoderRecipe
from eecompile.store.shipped import named_file, packaged
from eecompile.store.target import Tolerance
from eecompile.store.toml import read_toml

Word = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9._-]*\Z", max_length=100)]

_ARGUMENT = re.compile(r"[^\W\d]\w*(\.\w+)*")
_SPANS = 4  # of equal length, by default

Dtype = Literal["bool", "int32", "int64", "float32", "float64"]
NULL, TENSOR, CALL = "null", "tensor", "call"
"""Keys of tables that stand for None, a tensor, and what a function returns."""
_FORMS: dict[str, tuple[str, ...]] = {
    NULL: (),
    TENSOR: ("dtype",),
    CALL: ("arguments", "options"),
}


class NetworkRecipe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the network comes from: a factory and a checkpoint, or ONNX files.

    Attributes:
        exits: depths to export, ascending; the last is the full network. With ``files``
            any ascending numbers, one a file.
        factory: ``package.module:callable``. Without ``blocks`` it is called with
            ``exits`` and ``options``, and returns a
            :class:`eecompile.networks.base.MultiExitNetwork`. Modules beside the recipe
            are found.
        blocks: name of the module list that is cut, such as ``transformer_blocks``, or several,
            of lists or single modules, in the order in which they run; the factory is then
            called with ``options`` only and may return any torch module.
        options: keyword arguments of the factory; ``{ null = true }`` is None.
        checkpoint: safetensors, the ``.index.json`` of its shards, a file of torch.save, or a
            folder that ``save_pretrained`` wrote; relative to the recipe, or ``package:file``, a
            file of a Python package.
        more_checkpoints: likewise, of further parts of the network, whose weights have other names.
        checkpoint_key: entry of the checkpoint that holds the weights; by default
            ``ema`` where there is one, else ``model`` or ``state_dict``. Or, with a dot at
            its end, the prefix of their names, which is otherwise found.
        arguments: the network's name for an input, by ours (``x``, ``t``, or a
            condition); ``added.size`` is entry ``size`` of the dictionary ``added``, and
            ``table.0`` the first of the tuple ``table``.
        constants: further arguments, the same at every call, by the network's name: numbers,
            strings, booleans, lists and tables; ``{ null = true }`` is None, ``{ tensor = [..],
            dtype = ".." }`` a tensor, and ``{ call = "package.module:function", arguments = [..],
            options = {..} }`` what a function returns.
        dtypes: of inputs that the network takes in another than the recipe states, such as
            ``bool`` for a mask, or ``int64`` for ``t``; whole numbers are rounded to.
        files: one ONNX file an exit instead of a factory, relative to the recipe.
        costs: what evaluating each exit costs, in any unit; by default its depth.
        cuts: block boundaries between which spans of blocks may be skipped, ascending, each
            the number of blocks before it; () for none. By default 0, every exit, and quarters
            of the depth that are not near one.
    """

    exits: tuple[int, ...]
    factory: str | None = None
    blocks: str | tuple[str, ...] | None = None
    options: dict[str, Any] = {}
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    more_checkpoints: tuple[str, ...] = ()
    arguments: dict[str, str] = {}
    constants: dict[str, Any] = {}
    dtypes: dict[str, Dtype] = {}
    files: tuple[str, ...] = ()
    costs: tuple[float, ...] = ()
    cuts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        made = (self.factory, self.blocks, self.checkpoint, self.checkpoint_key)
        called = self.options or self.constants or self.dtypes
        ready = bool(self.files) and not any(made) and not called
        if not ready and (self.files or not (self.factory and self.checkpoint)):
            raise RecipeError(
                found="network with " + (", ".join(self._given()) or "no source"),
                expected="factory and checkpoint, or files",
                remedy="name a factory and its checkpoint, or one ONNX file an exit",
            )
        for name, values in (("files", self.files), ("costs", self.costs)):
            if values and len(values) != len(self.exits):
                raise RecipeError(
                    found=f"{len(values)} network.{name} for {len(self.exits)} exits",
                    expected="one an exit",
                    remedy=f"list as many {name} as exits",
                )
        if any(not 0 < first < second for first, second in pairwise((*self.costs, math.inf))):
            raise RecipeError(
                found=f"network.costs = {list(self.costs)}",
                expected="positive numbers that ascend, as the exits do",
                remedy="order the exits by cost",
            )

    @property
    def cuts_or_default(self) -> tuple[int, ...]:
        """``cuts``, or the default ones where it is None; those of files are none."""
        if self.cuts is not None or self.files:
            return self.cuts or ()
        depth = self.exits[-1]
        even = (round(quarter * depth / _SPANS) for quarter in range(_SPANS))
        near = depth / _SPANS / 2
        apart = {cut for cut in even if all(abs(cut - exit_) >= near for exit_ in self.exits)}
        return tuple(sorted({0, *apart, *self.exits}))

    def _given(self) -> list[str]:
        made = ("factory", "blocks", "checkpoint", "checkpoint_key")
        names = (*made, "options", "constants", "dtypes", "files")
        return [name for name in names if getattr(self, name)]


class ScheduleTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An exit schedule with explicit thresholds, as fractions of T."""

    depths: tuple[int | str, ...]
    thresholds: tuple[float, ...]


class ExportRecipe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is deployed.

    Attributes:
        name: of the network; names the default output folder.
        network: its factory, checkpoint and exits.
        state: shape and range of what is sampled.
        conditions: the network's further inputs, by name.
        process: the forward process.
        schedules: exit schedules by name: a depth (or a choice's text, such as
            ``again``) for each equal slice of time, or depths with thresholds.
        sampling: what a sampler does unless told otherwise.
        tolerance: of each exit's graph against the torch network, or the ONNX files.
        calibration: samples of the data, float32 .npy [N, *shape], relative to the recipe;
            lower precisions are chosen by the values that they lead to. None takes noise.
        encoders: what makes conditions of prompts, by name.
        decoder: what samples are decoded by; None where they are what is wanted.
    """

    name: PlainName
    network: NetworkRecipe
    state: State
    conditions: dict[str, Condition] = {}
    process: Process = Process()
    schedules: dict[Word, tuple[int | str, ...] | ScheduleTable] = {}
    sampling: Sampling = Sampling()
    tolerance: Tolerance = Tolerance(absolute=1e-6, relative=2e-4)
    calibration: str | None = None
    encoders: dict[PlainName, EncoderRecipe] = {}
    decoder: DecoderRecipe | None = None

    def exit_schedules(self) -> dict[str, ExitSchedule]:
        """The schedules by name, with ``full`` added, each checked against exits and cuts."""
        exits, cuts = self.network.exits, self.network.cuts_or_default
        made = {"full": ExitSchedule.constant(exits[-1])}
        made |= {name: schedule_from_toml(table) for name, table in self.schedules.items()}
        return {name: schedule.check(exits, cuts) for name, schedule in made.items()}


def load_recipe(
    path: Path, *, exits: Sequence[int] | None = None, checkpoint: Path | None = None
) -> ExportRecipe:
    """Read an export recipe.

    Args:
        path: the recipe, or the name of one that ships.
        exits: instead of the recipe's. Schedules that name other depths are left out;
            where one of them is the default, ``full`` takes its place.
        checkpoint: instead of the recipe's.

    Raises:
        RecipeError: the file is missing, is no TOML, or is malformed.
    """
    path = named_file("export", path)
    recipe = read_toml(path, ExportRecipe, example="export/fashion-dit.toml")
    recipe = _overridden(recipe, exits, checkpoint)
    exits = recipe.network.exits
    ascending = list(exits) == sorted(set(exits))
    if not exits or not ascending or exits[0] < 1 or exits[-1] > DEEPEST:
        raise RecipeError(
            found=f"exits {list(exits)} for {path}",
            expected=f"at least one depth from 1 to {DEEPEST}, ascending",
            remedy="list the depths that the network was trained to predict from",
        )
    _check_cuts(recipe, path)
    _check_names(recipe, path)
    _check_arguments(recipe, path)
    for name, value in recipe.network.constants.items():
        _check_constant(f"network.constants.{name}", value, path)
    _check_companions(recipe, path)
    _check_fit(recipe, path)
    sampling = recipe.sampling
    try:
        solver_named(sampling.solver)(recipe.process, sampling.steps, lambda time: Exit(exits[-1]))
    except UsageError as error:
        raise RecipeError(
            found=f"{error.found}, of sampling.solver or sampling.steps in {path}",
            expected=error.expected,
            remedy=error.remedy,
        ) from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RecipeError(
            found=f"sampling.solver = {sampling.solver!r}, which makes no program ({error})",
            expected="a solver, and options that it takes",
            remedy="docs/solvers.md lists both",
        ) from error
    low, high = sampling.guidance_interval or (0.0, 0.0)
    if not low <= high:
        raise RecipeError(
            found=f"sampling.guidance_interval = {[low, high]} in {path}",
            expected="two ascending times within [0, T]",
            remedy="give the smallest and the largest t at which guidance is to act",
        )
    default = sampling.schedule
    if default not in recipe.exit_schedules():
        raise RecipeError(
            found=f"sampling.schedule = {default!r} in {path}",
            expected=f"one of {sorted(recipe.exit_schedules())}",
            remedy="name a schedule of the recipe's [schedules]",
        )
    if recipe.network.checkpoint is None:
        return recipe
    place, *more = (
        packaged(checkpoint, path.parent)
        for checkpoint in (recipe.network.checkpoint, *recipe.network.more_checkpoints)
    )
    network = msgspec.structs.replace(
        recipe.network, checkpoint=place, more_checkpoints=tuple(more)
    )
    return msgspec.structs.replace(recipe, network=network)


def _overridden(
    recipe: ExportRecipe, exits: Sequence[int] | None, checkpoint: Path | None
) -> ExportRecipe:
    """The recipe with other exits, or another checkpoint."""
    network = recipe.network
    if (exits or checkpoint) and network.files:
        raise RecipeError(
            found="other exits or another checkpoint for a recipe with network.files",
            expected="the recipe's own files",
            remedy="write a recipe with the files to export",
        )
    if checkpoint is not None:
        network = msgspec.structs.replace(network, checkpoint=str(checkpoint.absolute()))
    if exits is None:
        return msgspec.structs.replace(recipe, network=network)
    costs = dict(zip(network.exits, network.costs, strict=True)) if network.costs else {}
    kept = tuple(costs[depth] for depth in exits if depth in costs)
    network = msgspec.structs.replace(
        network, exits=tuple(exits), costs=kept if len(kept) == len(exits) else ()
    )
    kept_cuts = set(network.cuts_or_default)
    schedules = {}
    for name, table in recipe.schedules.items():
        schedule = schedule_from_toml(table)
        cuts = {cut for choice in schedule.choices for cut in choice.cuts}
        if set(schedule.exits) <= set(exits) and cuts <= kept_cuts:
            schedules[name] = table
    sampling = recipe.sampling
    if sampling.schedule not in schedules:
        sampling = msgspec.structs.replace(sampling, schedule="full")
    return msgspec.structs.replace(recipe, network=network, schedules=schedules, sampling=sampling)


def schedule_from_toml(table: tuple[int | str, ...] | ScheduleTable) -> ExitSchedule:
    """The exit schedule that a recipe's entry describes."""
    if isinstance(table, ScheduleTable):
        return ExitSchedule(tuple(map(choice_of, table.depths)), table.thresholds)
    return ExitSchedule.from_slices(table)


def _check_cuts(recipe: ExportRecipe, path: Path) -> None:
    """Pass when cuts ascend within the network, whose blocks and sizes are known."""
    network = recipe.network
    cuts = network.cuts or ()
    schedules = map(schedule_from_toml, recipe.schedules.values())
    spans = any(choice.cuts for schedule in schedules for choice in schedule.choices)
    if (cuts or spans) and recipe.state.resizable:
        raise RecipeError(
            found=f"{'network.cuts' if cuts else 'a schedule with spans'} beside "
            f"state.resizable in {path}",
            expected="samples of one shape, for spans: what blocks hand on has no other length "
            "that is known beforehand",
            remedy="remove state.resizable, or cuts and spans",
        )
    if (cuts or spans) and network.files:
        raise RecipeError(
            found=f"{'network.cuts' if cuts else 'a schedule with spans'} beside "
            f"network.files in {path}",
            expected="cuts of a network that a factory makes: the blocks of files are not known",
            remedy="remove them, or export the network from its factory",
        )
    bounds = (-1, *cuts, network.exits[-1] + 1)
    if any(not low < high for low, high in pairwise(bounds)):
        raise RecipeError(
            found=f"network.cuts = {list(cuts)} in {path}",
            expected=f"ascending numbers of blocks from 0 to {network.exits[-1]}, the deepest exit",
            remedy="name boundaries between blocks, or leave network.cuts out",
        )


def _check_names(recipe: ExportRecipe, path: Path) -> None:
    # A condition's name is an input of the graph and a keyword of Sampler.sample.
    for name in recipe.conditions:
        if not is_condition_name(name):
            raise RecipeError(
                found=f"a condition named {name!r} in {path}",
                expected=f"a Python name other than {sorted(TAKEN)} and the outputs' names",
                remedy="rename it, in the network's forward too",
            )


def _check_fit(recipe: ExportRecipe, path: Path) -> None:
    """Pass when the parts of a recipe fit one another."""
    shape, guided = recipe.state.shape, recipe.sampling.guided_channels
    if guided is not None and (not shape or guided > shape[0]):
        raise RecipeError(
            found=f"sampling.guided_channels = {guided} in {path}",
            expected=f"at most the first length of state.shape = {list(shape)}",
            remedy="fix either",
        )
    if recipe.process.variance == "learned_range" and not shape:
        raise RecipeError(
            found=f"process.variance = 'learned_range' with an empty state.shape in {path}",
            expected="an axis of channels, along which prediction and variance follow one another",
            remedy="fix either",
        )
    for what, lengths in [
        ("state.shape", shape),
        *((f"conditions.{name}.shape", spec.shape) for name, spec in recipe.conditions.items()),
    ]:
        if math.prod(lengths) > LARGEST:
            raise RecipeError(
                found=f"{what} = {list(lengths)} in {path}",
                expected=f"at most {LARGEST} numbers in a sample",
                remedy="fix the shape",
            )
    if "full" in recipe.schedules:
        raise RecipeError(
            found=f"a schedule named 'full' in {path}",
            expected="another name: 'full' is the deepest exit at every timestep",
            remedy="rename it",
        )


def _check_arguments(recipe: ExportRecipe, path: Path) -> None:
    """Pass when inputs and constants have distinct places among the network's arguments."""
    network, inputs = recipe.network, {"x", "t", *recipe.conditions}
    tables: dict[str, tuple[Mapping[str, str], set[str]]] = {
        "arguments": (network.arguments, inputs),
        "dtypes": (network.dtypes, inputs),
    }
    for key, (table, allowed) in tables.items():
        if set(table) - allowed:
            raise RecipeError(
                found=f"network.{key} for {sorted(table)} in {path}",
                expected=f"some of {sorted(allowed)}",
                remedy="its keys are our names of the inputs; what is no input is stated in "
                "[network.constants]",
            )
    theirs = list(network.arguments.values())
    odd = [name for name in theirs if not _ARGUMENT.fullmatch(name)]
    if len(set(theirs)) < len(theirs) or (odd and not network.files):
        raise RecipeError(
            found=f"network.arguments with values {theirs} in {path}",
            expected="distinct names of arguments, or entries such as added.size and table.0",
            remedy="name the arguments of the network's forward",
        )
    taken = {network.arguments.get(name, name) for name in inputs}
    twice = sorted(taken & set(network.constants))
    if twice:
        raise RecipeError(
            found=f"network.constants for {twice}, which are inputs, in {path}",
            expected="each argument of the network once",
            remedy="remove the constant, or the condition",
        )


def _check_companions(recipe: ExportRecipe, path: Path) -> None:
    """Pass when encoders give conditions that there are, within their shapes."""
    encoders = {name: each.encoder for name, each in recipe.encoders.items()}
    decoder = recipe.decoder.decoder if recipe.decoder else None
    shortest = recipe.state.shortest
    for problem in companion_problems(encoders, decoder, recipe.conditions, shortest):
        raise RecipeError(
            found=f"{problem}, in {path}",
            expected=f"encoders of the conditions {sorted(recipe.conditions)}, each within its "
            "shape, and a decoder of an ascending range, whose tiles are no longer than samples",
            remedy="fix [encoders] or [decoder]; docs/networks.md shows both",
        )
    if recipe.decoder and (recipe.decoder.kind == "text") != bool(recipe.decoder.tokenizer):
        raise RecipeError(
            found=f"decoder.kind = {recipe.decoder.kind!r} and decoder.tokenizer = "
            f"{recipe.decoder.tokenizer!r}, in {path}",
            expected="a tokenizer for text, and for nothing else",
            remedy="fix either",
        )
    if recipe.decoder is not None and decoder is not None and decoder.tile:
        axes = recipe.decoder.axes
        if axes and axes[-decoder.tiled :] != tuple(range(len(axes)))[-decoder.tiled :]:
            raise RecipeError(
                found=f"decoder.tile with decoder.axes = {list(axes)}, in {path}",
                expected="tiles of the last axes, which stay the last",
                remedy="leave decoder.tile out",
            )
    made: dict[str, CompanionRecipe] = {f"encoders.{n}": e for n, e in recipe.encoders.items()}
    if recipe.decoder is not None:
        made["decoder"] = recipe.decoder
    for name, companion in made.items():
        for key, value in companion.constants.items():
            _check_constant(f"{name}.constants.{key}", value, path)


def _check_constant(place: str, value: Any, path: Path) -> None:
    """Pass when a constant, stated at that place of the recipe, has one of the known forms."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            _check_constant(f"{place}[{index}]", entry, path)
        return
    if not isinstance(value, dict):
        if isinstance(value, str | int | float):
            return
        raise _no_constant(place, f"a {type(value).__name__}", path)
    forms = [form for form in _FORMS if form in value]
    for form in forms:
        if set(value) - {form, *_FORMS[form]} or len(forms) > 1:
            raise _no_constant(place, f"a table with the keys {sorted(value)}", path)
    if NULL in value and value[NULL] is not True:
        raise _no_constant(place, f"null = {value[NULL]!r}", path)
    if TENSOR in value:
        if value.get("dtype") not in get_args(Dtype):
            raise _no_constant(place, f"a tensor of dtype {value.get('dtype')!r}", path)
        if not _numbers(value[TENSOR]):
            raise _no_constant(place, "a tensor of something else than numbers", path)
    given, options = value.get("arguments", []), value.get("options", {})
    if CALL in value and not (
        isinstance(value[CALL], str) and isinstance(given, list) and isinstance(options, dict)
    ):
        raise _no_constant(place, f"call = {value[CALL]!r}", path)
    if not forms or CALL in value:
        for key, entry in {"arguments": given, **options}.items() if forms else value.items():
            _check_constant(f"{place}.{key}", entry, path)


def _numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_numbers, value))
    return isinstance(value, int | float)


def _no_constant(place: str, found: str, path: Path) -> RecipeError:
    dtypes = ", ".join(get_args(Dtype))
    return RecipeError(
        found=f"{place} with {found} in {path}",
        expected="a number, a string, a boolean, a list, a table, { null = true }, { tensor = "
        f"[numbers], dtype = one of {dtypes} }}, or {{ call = 'package.module:function', "
        "arguments = [..], options = {..} }",
        remedy="state it in one of these forms",
    )
