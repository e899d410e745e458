"""The schedules of others are those that their own code makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eecompile.errors import UsageError
from eecompile.programs.choice import Choice, Exit, Forecast
from eecompile.tune.published import (
    cache_dit,
    every_nth,
    magcache,
    openvino_genai,
    published_schedules,
)

FULL = Exit(12)
RATIOS = [1.0, 1.21, 1.12, 1.08, 1.06, 1.04, 1.03, 1.04, 1.02, 1.0, 0.98, 0.99, 0.96, 0.93, 0.89]


def mask(choices: tuple[Choice, ...], forecast: Forecast | None = None) -> str:
    """1 for full steps; the others must all be the same forecast."""
    others = {choice for choice in choices if choice != FULL}
    assert len(others) <= 1
    assert forecast is None or others == {forecast}
    return "".join("1" if choice == FULL else "0" for choice in choices)


# As their tests of TaylorSeerState::should_compute say: step, settings, whether it is computed.
@pytest.mark.parametrize(
    ("step", "interval", "before", "after", "steps", "computed"),
    [
        (0, 3, 6, -2, 50, True),
        (5, 3, 6, -2, 50, True),
        (6, 3, 6, -2, 50, False),
        (8, 3, 6, -2, 50, True),
        (12, 5, 6, -2, 50, False),
        (46, 3, 6, -2, 50, False),
        (48, 3, 6, -2, 50, True),
        (49, 3, 6, -2, 50, True),
        (25, 3, 6, 48, 50, False),
        (48, 3, 6, 48, 50, True),
        (1, 3, 0, -2, 10, True),
        (2, 3, 0, -2, 10, False),
        (4, 3, 0, -2, 10, True),
        (7, 3, 2, -2, 10, True),
    ],
)
def test_openvino_genai_computes_the_steps_that_its_tests_say(
    step: int, interval: int, before: int, after: int, steps: int, computed: bool
) -> None:
    choices = openvino_genai(steps, FULL, interval=interval, before=before, after=after)
    assert choices[step] == (FULL if computed else Forecast(1))


# Made by steps_mask of cache-dit 1.5.3; from 16 to 200 steps, all of its masks are these.
@pytest.mark.parametrize(
    ("steps", "policy", "expected"),
    [
        (16, "slow", "1111111101110011"),
        (16, "medium", "1111110110001001"),
        (19, "slow", "1111111101110011101"),
        (20, "fast", "11111101000000000001"),
        (28, "slow", "1111111101110011100110010001"),
        (28, "ultra", "1111001000001000000100000001"),
        (33, "fast", "111111111001100010000100000100001"),
        (50, "medium", "11111111111111110011100000111000001110000011100001"),
        (50, "ultra", "11111110001100000000011000000000001100000000000001"),
    ],
)
def test_cache_dits_masks_are_its_own(steps: int, policy: str, expected: str) -> None:
    assert mask(cache_dit(steps, FULL, policy=policy, order=2), Forecast(2)) == expected


def test_cache_dit_has_masks_from_16_steps_on() -> None:
    with pytest.raises(UsageError, match="15 steps"):
        cache_dit(15, FULL)


class Block(torch.nn.Module):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return hidden_states + 1


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


@pytest.mark.parametrize(
    ("steps", "threshold", "longest", "before"),
    [
        (15, 0.055, 3, 0.2),
        (15, 0.6, 2, 0.2),
        (30, 0.1, 3, 0.1),
        (8, 0.3, 5, 0.5),
        (12, 9.0, 4, 0.0),
    ],
)
def test_magcache_leaves_out_the_steps_that_diffusers_does(
    steps: int, threshold: float, longest: int, before: float
) -> None:
    hooks: Any = pytest.importorskip("diffusers.hooks")
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    TransformerBlockRegistry.register(Block, TransformerBlockMetadata(0, None))
    network = Network()
    config = hooks.MagCacheConfig(threshold, longest, before, steps, RATIOS)
    hooks.apply_mag_cache(network, config)
    theirs = []
    for _ in range(steps):
        earlier = network.blocks[1].runs
        network(torch.ones(1, 2, 2))
        theirs.append("1" if network.blocks[1].runs > earlier else "0")
    ours = magcache(steps, FULL, ratios=RATIOS, threshold=threshold, longest=longest, before=before)
    assert mask(ours, Forecast(0)) == "".join(theirs)


def test_at_a_fixed_interval_the_first_steps_are_what_the_order_needs() -> None:
    assert mask(every_nth(7, FULL, order=0), Forecast(0)) == "1010101"
    assert mask(every_nth(7, FULL, order=2), Forecast(2)) == "1110101"
    assert mask(every_nth(7, FULL, interval=3), Forecast(1)) == "1101001"


@pytest.mark.parametrize("steps", [1, 2, 8, 9, 15, 16, 20, 28, 50, 250])
def test_every_schedule_by_name_can_be_sampled(steps: int) -> None:
    found = published_schedules(steps, FULL)
    assert len(found) == (0 if steps <= 8 else 1 if steps < 16 else 5)
    for choices in found.values():
        assert len(choices) == steps
        assert choices[0] == FULL
        assert any(choice != FULL for choice in choices)
        assert all(choice.order < index for index, choice in enumerate(choices) if index)
