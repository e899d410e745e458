"""Schedules of others, as choices by step: they need no search, only the number of steps.

A *full* step evaluates the network; at the others its prediction is extrapolated from the
evaluations before (:class:`eecompile.programs.choice.Forecast`). The originals extrapolate in the
step's index, these in half the log-SNR; and some keep hidden states instead, which is said below.

Not here, because there is no rule to tell: schedules that are decided while sampling, by a
threshold (first-block caching, TeaCache, EasyCache), and those that were searched for one network.
BudCache (arXiv 2606.13496) is of the latter kind: for a given number of evaluations, simulated
annealing and then hill climbing over all masks, by the distance of the final samples, with the
last residual reused in between. That is :func:`eecompile.tune.tune` with order 0 alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from eecompile.errors import UsageError
from eecompile.programs.choice import Choice, Forecast

_CACHE_DIT = {
    "slow": ([8, 3, 3, 2, 1, 1], [1, 2, 2, 2, 3]),
    "medium": ([6, 2, 2, 2, 2, 1], [1, 3, 3, 3, 3]),
    "fast": ([6, 1, 1, 1, 1, 1], [1, 3, 4, 5, 4]),
    "ultra": ([4, 1, 1, 1, 1], [2, 5, 6, 7]),
}
"""Full steps and forecast ones, taken in turn: 28 in all."""
_CACHE_DIT_STEPS, _FEWEST = 28, 16


def published_schedules(steps: int, full: Choice) -> Mapping[str, tuple[Choice, ...]]:
    """Those that there are for so many steps, with their default settings, by name.

    Args:
        steps: evaluations of the program, 1 or more.
        full: what full steps evaluate.
    """
    found = {"OpenVINO GenAI": openvino_genai(steps, full)}
    if steps >= _FEWEST:
        found |= {f"cache-dit {name}": cache_dit(steps, full, policy=name) for name in _CACHE_DIT}
    return {name: choices for name, choices in found.items() if set(choices) != {full}}


def every_nth(steps: int, full: Choice, *, interval: int = 2, order: int = 1) -> tuple[Choice, ...]:
    """One step of each ``interval`` is full, from the first on, and as many as the order needs.

    With order 0 that is FORA's rule (arXiv 2407.01425), otherwise TaylorSeer's (arXiv 2503.06923),
    both of which keep what attention and MLPs add to the hidden state.
    """
    return _choices((step <= order or step % interval == 0 for step in range(steps)), full, order)


def openvino_genai(
    steps: int, full: Choice, *, interval: int = 3, before: int = 6, after: int = -2
) -> tuple[Choice, ...]:
    """TaylorSeer Lite of OpenVINO GenAI: order 1, of the prediction, at a fixed interval.

    The first steps are full, then every ``interval``-th, then the last. Source:
    ``TaylorSeerCacheConfig`` of github.com/openvinotoolkit/openvino.genai, by default on for Flux
    and Stable Diffusion 3 (pull request 3709).

    Args:
        steps: evaluations of the program.
        full: what full steps evaluate.
        interval: ``cache_interval``, 2 or more.
        before: ``disable_cache_before_step``: so many steps at the beginning are full, and 2 at
            least.
        after: ``disable_cache_after_step``: from that step on all are full; a negative one counts
            from the end.
    """
    warm, stop = max(before, 2), after + steps if after < 0 else after
    return _choices(
        (step < warm or step >= stop or (step - warm + 1) % interval == 0 for step in range(steps)),
        full,
        1,
    )


def cache_dit(
    steps: int, full: Choice, *, policy: str = "medium", order: int = 1
) -> tuple[Choice, ...]:
    """The masks of cache-dit: ``slow``, ``medium``, ``fast`` or ``ultra``.

    Source: ``steps_mask`` of cache-dit 1.5.3 (github.com/vipshop/cache-dit). It runs the first
    blocks at every step and forecasts what the others add, by TaylorSeer (orders 1 and 2) or by
    reuse. For fewer steps it has masks made for distilled networks, which are not here.

    Args:
        steps: evaluations of the program, 16 or more.
        full: what full steps evaluate.
        policy: the name of the mask.
        order: of the forecasts.

    Raises:
        UsageError: there are fewer steps.
    """
    if steps < _FEWEST:
        raise UsageError(
            found=f"{steps} steps",
            expected=f"{_FEWEST} or more for a mask of cache-dit",
            remedy="take more steps, or another schedule",
        )
    runs = [list(lengths) for lengths in _CACHE_DIT[policy]]
    _lengthen(runs, steps)
    _shorten(runs, steps)
    mask = [kind for kind, length in _in_turn(runs) for _ in range(length)]
    return _choices([*mask[: steps - 1], True], full, order)


def _lengthen(runs: Sequence[list[int]], steps: int) -> None:
    """Add to runs in turn, in proportion to their lengths, until there are enough steps."""
    grown = [[max(int(length * (steps / _CACHE_DIT_STEPS * 0.5)), 1) for length in r] for r in runs]
    full, forecast = runs
    while True:
        for place in range(len(forecast)):
            for lengths, more in zip(runs, grown, strict=True):
                if sum(full) + sum(forecast) >= steps:
                    return
                lengths[place] += more[place]
        if sum(full) + sum(forecast) >= steps:
            return
        full[-1] += 1


def _shorten(runs: Sequence[list[int]], steps: int) -> None:
    """Take one from the last run of each kind in turn, forecasts first."""
    full, forecast = runs
    while sum(full) + sum(forecast) > steps:
        for lengths in (forecast, full):
            if lengths and sum(full) + sum(forecast) > steps:
                lengths[-1] -= 1
                if not lengths[-1]:
                    lengths.pop()


def _in_turn(runs: Sequence[list[int]]) -> Iterator[tuple[bool, int]]:
    """Whether steps are full, and how many."""
    full, forecast = runs
    for place in range(max(len(full), len(forecast))):
        yield True, full[place] if place < len(full) else 0
        yield False, forecast[place] if place < len(forecast) else 0


def magcache(
    steps: int,
    full: Choice,
    *,
    ratios: Sequence[float],
    threshold: float = 0.06,
    longest: int = 3,
    before: float = 0.2,
) -> tuple[Choice, ...]:
    """MagCache (arXiv 2506.09045): steps are left out while the ratios' product stays near 1.

    It reuses what all blocks together add to the hidden state; here the prediction is.

    Args:
        steps: evaluations of the program.
        full: what full steps evaluate.
        ratios: for each step, the mean length of that residual over the last step's, as measured
            at full depth; of another number of steps, the nearest are taken.
        threshold: of the summed deviations from 1 since the last full step.
        longest: so many steps are left out in a row at most.
        before: that share of the steps, at the beginning, is full.
    """
    scale = (len(ratios) - 1) / max(steps - 1, 1)
    product, error, skipped, mask = 1.0, 0.0, 0, []
    for step in range(steps):
        evaluated = step == 0 or step < int(before * steps + 0.5)
        if step >= int(before * steps + 0.5):
            product *= ratios[round(step * scale)]
            error += abs(1 - product)
            skipped += 1
            evaluated |= error > threshold or skipped > longest
            if evaluated:
                product, error, skipped = 1.0, 0.0, 0
        mask.append(evaluated)
    return _choices(mask, full, 0)


def _choices(mask: Iterator[bool] | Sequence[bool], full: Choice, order: int) -> tuple[Choice, ...]:
    return tuple(full if evaluated else Forecast(order) for evaluated in mask)
