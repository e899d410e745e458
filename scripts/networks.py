"""The networks of diffusers, tiny and with random weights: exported, built and sampled.

Each is a recipe under tests/networks/tiny. Its samples are compared with those of the library's own
module and scheduler, from the same noise.
"""

from __future__ import annotations

import importlib
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from results import ROOT, Row
from safetensors.torch import load_file, save_file

from eecompile import Sampler
from eecompile.compiler import bundle_from_recipe, engine_set_from_bundle, program_from_scheduler
from eecompile.compiler.verify import random_inputs
from eecompile.networks.call import Call, constants_from_recipe
from eecompile.programs.process import Process
from eecompile.recipe import ExportRecipe, load_recipe
from eecompile.runtime.trajectory.noise import normal_noise
from eecompile.store import load_target

TINY = ROOT / "tests" / "networks" / "tiny"
NAMES = sorted(path.stem for path in TINY.glob("*.toml"))
STEPS, SAMPLES, SEED = 4, 2, 3
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def network_rows(names: Sequence[str] | None = None) -> Iterator[Row]:
    """A row a network; errors are relative to the largest value, seconds are the processor's."""
    for name in names or NAMES:
        with TemporaryDirectory() as work:
            yield network_row(name, Path(work))


def network_row(name: str, work: Path) -> Row:
    """Export, build and sample a network in the folder ``work``."""
    path = random_recipe(name, work)
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries', and of arguments that are left out
        bundle = bundle_from_recipe(path, work / "bundle")
    exported = time.process_time()
    target = load_target(ROOT / "engines" / "cpu-chained.toml")
    engines = engine_set_from_bundle(work / "bundle", target, work / "engines").manifest
    found, expected = samples(path, work / "engines")
    return {
        "network": name,
        "class": found_class(load_recipe(path)).__name__,
        "exits": list(bundle.interface.exits),
        "cuts": list(bundle.interface.cuts),
        "export_error": max(exit_.relative_error for exit_ in bundle.exits),
        "span_error": max((span.relative_error or 0.0 for span in engines.spans), default=None),
        "sample_error": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "export_seconds": exported - began,
        "seconds": time.process_time() - began,
    }


def random_recipe(name: str, work: Path) -> Path:
    """The recipe in ``work``, and its checkpoint beside it."""
    path = work / "recipe.toml"
    shutil.copy(TINY / f"{name}.toml", path)
    recipe = load_recipe(path)
    state = found_class(recipe)(**recipe.network.options).state_dict()
    draws = torch.Generator().manual_seed(0)
    for value in state.values():
        if value.is_floating_point():  # some start at zero
            fan = value[0].numel() if value.ndim > 1 else 50
            value.copy_(torch.randn(value.shape, generator=draws) / fan**0.5)
    weights = {key: value.contiguous() for key, value in state.items()}
    save_file(weights, work / str(recipe.network.checkpoint))
    return path


def found_class(recipe: ExportRecipe) -> Any:
    """The library's own class, also where the recipe names an adapter of it."""
    made = _named(str(recipe.network.factory))
    return next(kind for kind in made.__mro__ if kind.__module__.startswith("diffusers."))


def samples(path: Path, engines: Path) -> tuple[Any, Any]:
    """Samples of an engine set, and of the library's module and scheduler from the same noise."""
    recipe = load_recipe(path)
    scheduler = _scheduler(recipe.process)
    program = program_from_scheduler(scheduler, None, process=recipe.process)
    with Sampler.open(engines) as sampler:
        point = random_inputs(sampler.interface, SAMPLES, 1, seed=SEED)
        conditions = {
            name: _padded(point[name]) if name.endswith("mask") else point[name]
            for name in recipe.conditions
        }
        found = sampler.sample(SAMPLES, seed=SEED, solver=program, **conditions)
    module = found_class(recipe)(**recipe.network.options).eval()
    module.load_state_dict(load_file(path.parent / str(recipe.network.checkpoint)))
    network = recipe.network
    constants = constants_from_recipe(network.constants, _named)
    call = Call(network.arguments, constants, network.dtypes)
    given = {name: torch.from_numpy(value) for name, value in conditions.items()}
    state = torch.from_numpy(normal_noise(SEED, range(SAMPLES), 0, recipe.state.shape))
    for t in scheduler.timesteps:
        network_t = torch.full((SAMPLES,), float(t) * recipe.process.time_scale)
        with torch.no_grad():
            output = module(**call(x=state, t=network_t, **given)).sample
        if recipe.process.variance == "learned_range":
            output = output.chunk(2, dim=1)[0]
        state = scheduler.step(output, t, state).prev_sample
    return found, state.numpy()


def _padded(mask: Any) -> Any:
    """A mask as tokenizers give it: some tokens, and padding after them."""
    mask = -np.sort(-mask, axis=-1)
    mask[..., 0] = 1
    return mask


def _scheduler(process: Process) -> Any:
    if process.family == "flow":
        scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=process.shift)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS))
        return scheduler
    scheduler = DDIMScheduler(
        beta_schedule=_BETAS[process.betas],
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        prediction_type=process.prediction,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(STEPS)
    return scheduler


def _named(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
