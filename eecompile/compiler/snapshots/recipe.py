"""A recipe, written for a snapshot folder."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from eecompile.compiler.schedulers.config import (
    process_from_scheduler,
    read_scheduler,
    scheduler_from_config,
)
from eecompile.compiler.snapshots.companions import Tables, companion_tables
from eecompile.compiler.snapshots.families import FAMILIES, Family
from eecompile.compiler.snapshots.folder import (
    Snapshot,
    class_defaults,
    folder_of,
    read_config,
    read_snapshot,
)
from eecompile.errors import UsageError
from eecompile.programs.process import Process
from eecompile.recipe import NULL
from eecompile.store.files import written

_COSINE = "CosineDPMSolverMultistepScheduler"
"""Stable Audio's, which diffusers has only where torchsde is, of which its noise is made."""
_SOLVERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "EDMDPMSolverMultistepScheduler": "dpmpp-2m:grid=logsnr",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "HeunDiscreteScheduler": "heun",
    "LCMScheduler": "lcm",
    "PNDMScheduler": "pndm",
    "UniPCMultistepScheduler": "unipc",
    "CogVideoXDDIMScheduler": "ddim",
    _COSINE: "dpmpp-2m-sde:grid=logsnr",
}
"""The native solver that is nearest to a scheduler; flows take flow-euler, others ddim."""
_STEPS = 50
_PLAIN = re.compile(r"[^.]+\.(safetensors|bin)(\.index\.json)?")  # weights without a variant


def write_recipe(
    text: str, path: Path | None, variant: str | None = None, *, force: bool = False
) -> Path:
    """Write a recipe for a snapshot; where it lies.

    Args:
        text: a folder, or ``hub:ORG/NAME``.
        path: of the recipe; None takes the name of the snapshot, in the working directory.
        variant: of the weights, such as ``fp16``.
        force: replace another file at ``path``.

    Raises:
        EecompileError: the snapshot has no recipe that can be written, or there is another
            file at ``path``.
    """
    snapshot = read_snapshot(folder_of(text), variant)
    place = path or Path(f"{_name(snapshot.folder)}.toml")
    made = recipe_from_snapshot(snapshot, place)
    if place.exists() and not force and place.read_bytes() != made.encode():
        raise UsageError(
            found=f"another file at {place}",
            expected="a place for the recipe, or the recipe as it would be written",
            remedy=f"export the one that is there (eecompile export {place}), choose another "
            "place with --recipe, or replace it with --force",
        )
    with written(place) as partial:
        partial.write_text(made)
    return place


def recipe_from_snapshot(snapshot: Snapshot, path: Path) -> str:
    """The text of a recipe for a snapshot's network, to be written to ``path``.

    The options are the network's config, the process its scheduler's; the inputs are those of
    the class of network. Encoders and decoders that are known become companions; others are named
    in a comment.

    Raises:
        UsageError: the class of network or of scheduler has no recipe that can be written.
    """
    kind = str(snapshot.config.get("_class_name"))
    if kind not in FAMILIES:
        raise UsageError(
            found=f"a network of class {kind} in {snapshot.network}",
            expected=f"one of {', '.join(sorted(FAMILIES))}",
            remedy="write a recipe with network.factory = 'diffusers:"
            f"{kind}'; docs/how-to/own-network.md shows how",
        )
    options = _options(kind, snapshot.config)
    config = class_defaults(kind) | snapshot.config
    family = FAMILIES[kind](config | _beside(snapshot))
    name = _name(snapshot.folder)

    def place(target: Path) -> str:
        return Path(os.path.relpath(target.absolute(), path.absolute().parent)).as_posix()

    process = _process(snapshot, family, config)
    companions = companion_tables(snapshot, kind, place)
    for condition, null in companions.nulls.items():
        family.conditions[condition]["null"] = null
    sampling: dict[str, Any] = {
        "solver": _solver(snapshot),
        "steps": companions.steps or _steps(snapshot),
    }
    if companions.guidance is not None:
        sampling["guidance"] = companions.guidance
    tables: dict[str, Mapping[str, Any]] = {
        "": {"name": name},
        "network": {
            "factory": family.factory or f"diffusers:{kind}",
            "blocks": family.blocks,
            **_weights(snapshot, family, place),
            "exits": [family.depth],
            **({} if family.cuts is None else {"cuts": family.cuts}),
        },
        "network.arguments": family.arguments,
        "network.constants": family.constants,
        "network.options": family.options | options,
        "process": process,
        "state": {"shape": family.shape},
        **{f"conditions.{key}": table for key, table in family.conditions.items()},
        **companions.tables,
        "sampling": sampling,
    }
    remarks = _remarks(snapshot, family, companions)
    return "\n".join([*remarks, *(_table(*each) for each in tables.items() if each[1])]) + "\n"


def _beside(snapshot: Snapshot) -> dict[str, Any]:
    """The configurations of the companions, by their folders."""
    paths = {name: snapshot.folder / name / "config.json" for name in snapshot.companions}
    return {name: read_config(path) for name, path in paths.items() if path.is_file()}


def _weights(snapshot: Snapshot, family: Family, place: Callable[[Path], str]) -> dict[str, Any]:
    """The folder of the weights; or their file, of a variant."""
    plain = snapshot.variant is None and _PLAIN.fullmatch(snapshot.checkpoint.name)
    found: dict[str, Any] = {
        "checkpoint": place(snapshot.network if plain else snapshot.checkpoint)
    }
    if family.parts:
        found["more_checkpoints"] = [place(snapshot.folder / part) for part in family.parts]
    return found


def _steps(snapshot: Snapshot) -> int:
    """What the pipeline takes unless it is told otherwise."""
    index = snapshot.folder / "model_index.json"
    name = read_config(index).get("_class_name") if index.is_file() else None
    kind = getattr(importlib.import_module("diffusers"), str(name), None)
    named = inspect.signature(kind.__call__).parameters if isinstance(kind, type) else {}
    steps = named["num_inference_steps"].default if "num_inference_steps" in named else None
    return steps if isinstance(steps, int) else _STEPS


def _options(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that made the network, without those that are None by themselves."""
    defaults = class_defaults(kind)
    found = {key: value for key, value in config.items() if key in defaults}
    return {
        key: {NULL: True} if value is None else value
        for key, value in found.items()
        if value is not None or defaults[key] is not None
    }


def _name(folder: Path) -> str:
    """A plain name for a folder; in the Hugging Face cache the repository's."""
    cached = next((p.name for p in folder.absolute().parents if p.name.startswith("models--")), "")
    whole = cached.rpartition("--")[2] or folder.absolute().name
    return re.sub(r"[^a-z0-9.-]+", "-", whole.lower()).strip("-.") or "network"


def _process(snapshot: Snapshot, family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe must say of the process, beside the defaults."""
    if snapshot.scheduler is None:
        raise UsageError(
            found=f"no scheduler/scheduler_config.json in {snapshot.folder}",
            expected="the scheduler of the network's pipeline, which says the process",
            remedy="copy it there, or write a recipe with [process]",
        )
    process = _of_scheduler(snapshot, family.tokens)
    if process is None:
        raise UsageError(
            found=f"{_scheduler(snapshot).get('_class_name')} in {snapshot.scheduler}, whose "
            "process is not known",
            expected="a scheduler whose betas, sigmas and prediction a recipe can state",
            remedy="write a recipe with the network's [process]",
        )
    inner, outer = config.get("in_channels"), config.get("out_channels")
    learned = config.get("learn_sigma") or (inner and outer == 2 * inner)
    if learned and process.family in ("diffusion", "flow"):
        process = msgspec.structs.replace(process, variance="learned_range")
    said = msgspec.to_builtins(msgspec.structs.replace(process, **family.process))
    usual = msgspec.to_builtins(Process())
    kept = ("family", "timesteps", "prediction", *(["betas"] * (process.family == "diffusion")))
    return {key: value for key, value in said.items() if key in kept or value != usual[key]}


def _scheduler(snapshot: Snapshot) -> dict[str, Any]:
    """The configuration of the scheduler; {} where there is none."""
    return {} if snapshot.scheduler is None else read_scheduler(snapshot.scheduler)


def _of_scheduler(snapshot: Snapshot, tokens: int) -> Process | None:
    """The process of the scheduler, for samples of so many tokens; None where it is not known."""
    assert snapshot.scheduler
    config = _scheduler(snapshot)
    if config.get("_class_name") == _COSINE:
        return Process(
            family="edm",
            prediction="v_prediction" if config["prediction_type"] == "v_prediction" else "edm",
            c_noise="atan",
            sigma_min=float(config["sigma_min"]),
            sigma_max=float(config["sigma_max"]),
            sigma_data=float(config["sigma_data"]),
        )
    scheduler = _unshifted(scheduler_from_config(snapshot.scheduler), tokens)
    process = process_from_scheduler(scheduler)
    if process is None:
        with suppress(Exception):  # tables of some schedulers are set only then
            scheduler.set_timesteps(_STEPS)
        process = process_from_scheduler(scheduler)
    return process


def _unshifted(scheduler: Any, tokens: int) -> Any:
    """The scheduler with the shift that it has for samples of so many tokens."""
    config = scheduler.config
    if not tokens or not config.get("use_dynamic_shifting"):
        return scheduler
    few, many, low, high = (
        config[f"{which}_{what}"]
        for what in ("image_seq_len", "shift")
        for which in ("base", "max")
    )
    shift = low + (high - low) * (tokens - few) / (many - few)
    exponential = config.get("time_shift_type", "exponential") == "exponential"
    return type(scheduler).from_config(
        config, use_dynamic_shifting=False, shift=math.exp(shift) if exponential else shift
    )


def _solver(snapshot: Snapshot) -> str:
    kind = str(_scheduler(snapshot).get("_class_name"))
    return "flow-euler" if kind.startswith("FlowMatch") else _SOLVERS.get(kind, "ddim")


def _remarks(snapshot: Snapshot, family: Family, companions: Tables) -> list[str]:
    lines = [
        f"Written by eecompile export from {snapshot.folder.name}: look at it, and export it.",
        "Sampled with a native solver; a program of the folder's own scheduler:",
        "eecompile program scheduler/scheduler_config.json --for BUNDLE -o program.json",
        *family.notes,
        *companions.notes,
    ]
    if _scheduler(snapshot).get("shift_terminal"):
        lines.append("sampling.solver: its times are not the scheduler's, which has shift_terminal")
    known = {*companions.parts, *family.parts}
    others = {name: kind for name, kind in snapshot.companions.items() if name not in known}
    if others:
        named = ", ".join(f"{name} ({kind})" for name, kind in others.items())
        lines.append(f"Beside it, and not exported: {named}")
    return [f"# {line}" for line in lines]


def _table(name: str, content: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in content.items()]
    return "\n".join([*([f"\n[{name}]"] if name else []), *lines])


def _value(value: Any) -> str:
    """A value of JSON as TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("-inf" if value < 0 else "inf")
    return json.dumps(value)
