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

import torch
from bench_peers import COMPILED, EAGER, FULL, Case, Given, torch_loop
from bench_runtime import open_samplers
from results import Row

from eecompile import Program, Sampler
from eecompile.arrays import Array
from eecompile.measure.timing import interleaved, percentiles
from eecompile.networks import load_network
from eecompile.programs.choice import Choice, Exit
from eecompile.recipe import load_recipe
from eecompile.tune.probe import rms
from eecompile.tune.published import every_nth, openvino_genai

INNER = "TaylorSeer in layers"
NOT_APPLIED = {
    "PyramidAttentionBroadcast, FasterCache": "they find no layer in it, as they know diffusers' "
    "own attention classes alone; and FasterCache needs guidance",
    "SeaCache": "made for the video inputs of Wan and Cosmos",
    "TextKVCache": "keeps what depends on the text alone, and there is none",
    "DiTTransformer2DModel": "has no convolutions after its head, as the network has, and offers "
    "no caching",
}
"""What of diffusers does not fit the network, and why."""


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
    On a GPU PyTorch computes in FP16 (autocast).
    """
    with open_samplers(engines) as opened:
        planner = next(iter(opened.values()))
        program = planner.program(solver, case.steps, "full")
        given = Given.of(planner.interface, program, case.batch, case.device)
        runs, skipped = _torch_runs(case, given)
        for name, sampler in opened.items():
            runs += _own_runs(name, sampler, program, case.batch)
            runs += _fewer_steps(f"fewer steps, {name}", sampler, solver, case)
        samples: dict[tuple[str, str], Array] = {}
        actions = {run[:2]: partial(_keep, samples, run) for run in runs}
        seconds, failures = interleaved(actions, rounds=rounds)
    for (by, setting), error in failures.items():
        if setting == FULL:
            raise error
        skipped[f"{by}, {setting}"] = f"failed: {error}"
        del seconds[by, setting]
    low, high = planner.interface.state.range or (0.0, 1.0)
    rows = list(_rows(seconds, samples, case.batch, high - low))
    return {"rows": rows, "skipped": skipped}


def _keep(samples: dict[tuple[str, str], Array], run: Run) -> None:
    samples[run.by, run.setting] = run.act()


def _rows(
    seconds: Mapping[tuple[str, str], Sequence[float]],
    samples: Mapping[tuple[str, str], Array],
    batch: int,
    unit: float,
) -> Iterator[Row]:
    full = next(iter(seconds))
    for by, setting in seconds:
        if setting == FULL:  # of this and of what follows
            full = by, setting
        ratios = [a / b for a, b in zip(seconds[by, setting], seconds[full], strict=True)]
        yield {
            "by": by,
            "setting": setting,
            "ms per sample": 1e3 * median(seconds[by, setting]) / batch,
            "share of full depth's time": percentiles(ratios),
            "distance": rms(samples[by, setting] - samples[full]) / unit,
        }


def _own_runs(name: str, sampler: Sampler, program: Program, batch: int) -> Iterator[Run]:
    """Full depth, forecasts at a fixed interval, and OpenVINO GenAI's rule."""
    by, steps, full = f"eecompile, {name}", len(program.steps), Exit(sampler.interface.exits[-1])
    schedules: dict[tuple[str, str], Sequence[Choice]] = {(by, FULL): [full] * steps}
    for interval in (2, 3):
        for order in (1, 2):
            choices = every_nth(steps, full, interval=interval, order=order)
            schedules[by, f"every {interval}, order {order}"] = choices
    for interval in (2, 3, 5):
        choices = openvino_genai(steps, full, interval=interval)
        schedules[f"GenAI's rule, {name}", f"interval {interval}"] = choices
    for (by, setting), choices in schedules.items():
        chosen = {step.moment: each for step, each in zip(program.steps, choices, strict=True)}
        own = program.with_choices(chosen.__getitem__)
        yield Run(by, setting, partial(sampler.sample, batch, solver=own, guidance=1.0))


def _fewer_steps(by: str, sampler: Sampler, solver: str, case: Case) -> Iterator[Run]:
    for count in (case.steps * 2 // 3, case.steps // 2):
        program = sampler.program(solver, count, "full")
        act = partial(sampler.sample, case.batch, solver=program, guidance=1.0)
        yield Run(by, f"{count} steps", act)


def _torch_runs(case: Case, given: Given) -> tuple[list[Run], dict[str, str]]:
    """PyTorch at full depth, and with every cache, as far as the case has peers; what is left out.

    Eager, or compiled.
    """
    network = load_network(load_recipe(case.recipe).network, case.recipe.parent)
    network = network.eval().to(case.device)
    runs, skipped = [], dict(NOT_APPLIED)
    if COMPILED in case.peers:
        mode = None if case.device == "cpu" else "max-autotune"
        whole = torch.compile(network.predict_at, mode=mode)
        runs.append(_run(COMPILED, FULL, Cached(whole), given))
    kinds = {EAGER: (False, EAGER, "eager"), COMPILED: (True, "compiled blocks", "compiled")}
    for compiled, name, kind in (kinds[peer] for peer in kinds if peer in case.peers):
        copied = partial(_copy, network, compiled)
        runs.append(_run(name, FULL, Cached(copied().predict_at), given))
        for package, caches in (("diffusers", _diffusers_caches), ("cache-dit", _cache_dit_caches)):
            try:
                for by, setting, cached in caches(copied, given):
                    if compiled and by == INNER:
                        skipped[f"{by}, {kind}"] = "its hooks would stand within the blocks"
                    else:
                        runs.append(_run(f"{by}, {kind}", setting, cached, given))
            except ImportError as error:
                skipped[package] = f"not installed ({error})"
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


def _diffusers_caches(copied: Callable[[], Any], given: Given) -> Iterator[tuple[str, str, Cached]]:
    """By which of diffusers' hooks, with which setting, and the network."""
    from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

    for threshold in (0.06, 0.1, 0.2):
        config = FirstBlockCacheConfig(threshold)
        yield "FirstBlockCache", f"threshold {threshold}", _hooked(copied(), config)
    taylor = partial(
        TaylorSeerCacheConfig, taylor_factors_dtype=torch.float32, disable_cache_before_step=3
    )
    # What diffusers calls lite: the prediction alone is forecast, and nothing else runs.
    lite = {"skip_predict_identifiers": [r"blocks\.\d+"], "cache_identifiers": ["refine"]}
    inner = {"cache_identifiers": [r"blocks\.\d+\.(attn|mlp)"]}
    for name, modules in (("TaylorSeer", lite), (INNER, inner)):
        for order in (1, 2):
            for interval in (2, 3, 5):
                config = taylor(cache_interval=interval, max_order=order, **modules)
                setting = f"interval {interval}, order {order}"
                yield name, setting, _hooked(copied(), config)
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


def _cache_dit_caches(copied: Callable[[], Any], given: Given) -> Iterator[tuple[str, str, Cached]]:
    """By which calibrator of cache-dit, with which setting, and the network."""
    import cache_dit

    steps = len(given.program.steps)
    config = partial(cache_dit.DBCacheConfig, Fn_compute_blocks=1, num_inference_steps=steps)
    taylor = cache_dit.TaylorSeerCalibratorConfig
    for order in (0, 1, 2):
        calibrator = taylor(taylorseer_order=order) if order else None
        by = f"cache-dit order {order}"
        for threshold in (0.12, 0.24):
            made = config(max_warmup_steps=4, residual_diff_threshold=threshold)
            yield by, f"threshold {threshold}", _adapted(copied(), made, calibrator)
        for policy in ("slow", "medium", "fast") if order else ():
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
