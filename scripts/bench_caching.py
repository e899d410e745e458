"""Caching around the torch network, and forecasts: time against distance to full depth."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_peers import EAGER, Case, Given, torch_loop
from bench_runtime import open_samplers
from results import Row

from eecompile import Program, Sampler
from eecompile.arrays import Array
from eecompile.measure.timing import interleaved, percentiles
from eecompile.networks import load_network
from eecompile.programs.choice import Choice, Exit
from eecompile.recipe import load_recipe
from eecompile.tune.published import every_nth, openvino_genai

FULL = "full depth"
NOT_APPLIED = {
    "PyramidAttentionBroadcast, FasterCache": "they find no layer: they know diffusers' own "
    "attention classes alone, and FasterCache needs guidance; diffusers' DiTTransformer2DModel "
    "has other heads than the network, and takes no caching itself",
    "SeaCache": "made for the video inputs of Wan and Cosmos",
    "TextKVCache": "keeps what depends on the text alone, and there is none",
}
"""Hooks of diffusers that do not fit a DiT, and why."""


class Cached(NamedTuple):
    """A torch network with a cache: ``predict`` as the loops call it, ``reset`` before a run."""

    predict: Callable[..., torch.Tensor]
    reset: Callable[[], object] = lambda: None


class Run(NamedTuple):
    """One sampling: by what, with which setting; ``act`` gives the samples."""

    by: str
    setting: str
    act: Callable[[], Array]


def measured(case: Case, solver: str, engines: Mapping[str, Path], rounds: int) -> Row:
    """Time and distance of every peer and engine set, with every setting.

    Distances are to full depth by the same peer or engine set, from the same noise, in units of
    the data's range. In a round everything runs once, in turn, and each round begins with another.
    """
    with open_samplers(engines) as opened:
        planner = next(iter(opened.values()))
        program = planner.program(solver, case.steps, "full")
        given = Given.of(planner.interface, program, case.batch, case.device)
        runs, skipped = _torch_runs(case, given)
        for name, sampler in opened.items():
            runs += _own_runs(f"eecompile, {name}", sampler, program, case.batch)
        samples = {(run.by, run.setting): run.act() for run in runs}
        actions = {(run.by, run.setting): run.act for run in runs}
        seconds = interleaved(actions, rounds=rounds, warm=True).checked().seconds
    low, high = planner.interface.state.range or (0.0, 1.0)
    return {
        "solver": program.solver,
        "steps": case.steps,
        "rows": list(_rows(seconds, samples, case.steps, high - low)),
        "skipped": skipped,
    }


def _rows(
    seconds: Mapping[tuple[str, str], Sequence[float]],
    samples: Mapping[tuple[str, str], Array],
    steps: int,
    unit: float,
) -> Iterator[Row]:
    full: tuple[str, str] | None = None
    for by, setting in seconds:
        if setting == FULL:
            full = by, setting
        assert full is not None, "full depth comes first"
        ratios = [a / b for a, b in zip(seconds[by, setting], seconds[full], strict=True)]
        difference = np.float64(samples[by, setting]) - samples[full]
        yield {
            "by": by,
            "setting": setting,
            "ms a step": 1e3 * median(seconds[by, setting]) / steps,
            "share of full depth's time": percentiles(ratios),
            "distance": float(np.sqrt(np.mean(difference**2))) / unit,
        }


def _own_runs(by: str, sampler: Sampler, program: Program, batch: int) -> Iterator[Run]:
    """Full depth, forecasts at a fixed interval, and OpenVINO GenAI's rule."""
    steps = len(program.steps)
    full = Exit(sampler.interface.exits[-1])
    schedules: dict[str, Sequence[Choice]] = {FULL: [full] * steps}
    for interval in (2, 3):
        for order in (1, 2):
            name = f"every {interval}, order {order}"
            schedules[name] = every_nth(steps, full, interval=interval, order=order)
    for interval in (2, 3, 5):
        name = f"OpenVINO GenAI's rule, interval {interval}"
        schedules[name] = openvino_genai(steps, full, interval=interval)
    for name, choices in schedules.items():
        moments = dict(zip((step.moment for step in program.steps), choices, strict=True))
        own = program.with_choices(moments.__getitem__)
        yield Run(by, name, partial(sampler.sample, batch, solver=own, guidance=1.0))


def _torch_runs(case: Case, given: Given) -> tuple[list[Run], dict[str, str]]:
    """PyTorch eager and with compiled blocks: at full depth, and with every cache; what is not."""
    network = load_network(load_recipe(case.recipe).network, case.recipe.parent)
    network = network.eval().to(case.device)
    runs, skipped = [], {}
    for compiled in (False, True):
        name = "torch.compile" if compiled else EAGER
        plain = _copy(network, compiled)
        runs.append(_run(name, FULL, Cached(plain.predict_at), given))
        for caches in (_diffusers_caches, _cache_dit_caches):
            try:
                for by, setting, cached in caches(partial(_copy, network, compiled), given):
                    runs.append(_run(f"{name}, {by}", setting, cached, given))
            except ImportError as error:
                skipped[caches.__doc__.split(":")[0]] = f"not installed ({error})"
    return runs, skipped


def _run(by: str, setting: str, cached: Cached, given: Given) -> Run:
    loop = torch_loop(cached.predict, given)
    depths = [given.interface.exits[-1]] * len(given.program.steps)

    def act() -> Array:
        cached.reset()
        return loop(depths)

    return Run(by, setting, act)


def _copy(network: Any, compiled: bool) -> Any:
    """The network, to put hooks around; each block compiled, since caches decide between them."""
    made = deepcopy(network)
    for block in made.blocks if compiled else ():
        block.forward = torch.compile(block.forward)
    return made


def _diffusers_caches(
    copied: Callable[[], Any], given: Given
) -> Iterator[tuple[str, str, Cached]]:
    """diffusers' hooks: by what, setting, and network."""
    from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

    for threshold in (0.03, 0.1, 0.3):
        config = FirstBlockCacheConfig(threshold)
        yield "FirstBlockCache", f"threshold {threshold}", _hooked(copied(), config)
    taylor = partial(
        TaylorSeerCacheConfig, taylor_factors_dtype=torch.float32, disable_cache_before_step=3
    )
    # What diffusers calls lite: the prediction alone is forecast, and nothing else runs.
    lite = {"skip_predict_identifiers": [r"blocks\.\d+"], "cache_identifiers": ["refine"]}
    inner = {"cache_identifiers": [r"blocks\.\d+\.(attn|mlp)"]}
    for name, modules in (("prediction", lite), ("attention and MLPs", inner)):
        for order in (1, 2):
            for interval in (2, 3, 5):
                config = taylor(cache_interval=interval, max_order=order, **modules)
                setting = f"interval {interval}, order {order}"
                yield f"TaylorSeer, {name}", setting, _hooked(copied(), config)
    steps = len(given.program.steps)
    printed = io.StringIO()
    with redirect_stdout(printed):  # the ratios are printed, to be copied
        config = MagCacheConfig(calibrate=True, num_inference_steps=steps)
        _run("", "", _hooked(copied(), config), given).act()
    ratios = ast.literal_eval(printed.getvalue().strip().splitlines()[-1])
    for threshold in (0.06, 0.2, 0.6):
        config = MagCacheConfig(threshold, num_inference_steps=steps, mag_ratios=ratios)
        yield "MagCache", f"threshold {threshold}", _hooked(copied(), config)


def _hooked(network: Any, config: Any) -> Cached:
    """A network with diffusers' hooks, called as its pipelines do."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
    from diffusers.models.cache_utils import CacheMixin

    block = TransformerBlockMetadata(
        return_hidden_states_index=0,
        return_encoder_hidden_states_index=None,
        _cached_parameter_indices={"hidden_states": 0},  # which the DiT calls x
    )
    TransformerBlockRegistry.register(type(network.blocks[0]), block)
    network.__class__ = type("Hooked", (type(network), CacheMixin), {})
    network.enable_cache(config)

    def predict(*values: Any, **conditions: Any) -> torch.Tensor:
        with network.cache_context("cond"):
            return network.predict_at(*values, **conditions)

    return Cached(predict, HookRegistry.check_if_exists_or_initialize(network).reset_stateful_hooks)


def _cache_dit_caches(
    copied: Callable[[], Any], given: Given
) -> Iterator[tuple[str, str, Cached]]:
    """cache-dit: by what, setting, and network."""
    import cache_dit

    steps = len(given.program.steps)
    config = partial(cache_dit.DBCacheConfig, Fn_compute_blocks=1, num_inference_steps=steps)
    taylor = cache_dit.TaylorSeerCalibratorConfig
    for order in (0, 1, 2):
        calibrator = taylor(taylorseer_order=order) if order else None
        by = f"cache-dit, order {order}"
        for threshold in (0.08, 0.24):
            made = config(max_warmup_steps=4, residual_diff_threshold=threshold)
            yield by, f"threshold {threshold}", _adapted(copied(), made, calibrator)
        for policy in ("slow", "medium", "ultra") if order else ():
            mask = cache_dit.steps_mask(total_steps=steps, mask_policy=policy)
            made = config(steps_computation_mask=mask, steps_computation_policy="static")
            yield by, f"mask {policy}", _adapted(copied(), made, calibrator)


def _adapted(network: Any, config: Any, calibrator: Any) -> Cached:
    """A network with cache-dit's blocks around its own."""
    import cache_dit

    network.forward = partial(network.predict_at, network.exits[-1])
    adapter = cache_dit.BlockAdapter(
        transformer=network,
        blocks=network.blocks,
        forward_pattern=cache_dit.ForwardPattern.Pattern_3,
    )
    configs = {"cache_config": config, "calibrator_config": calibrator}
    cache_dit.enable_cache(adapter, **configs)
    return Cached(
        lambda depth, *values, **conditions: network(*values, **conditions),
        lambda: cache_dit.refresh_context(network, **configs),
    )
