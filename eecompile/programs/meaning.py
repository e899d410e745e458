"""What an interface must say beyond its types: depths, shapes and figures within bounds."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from eecompile.errors import EecompileError
from eecompile.programs.companions import companion_problems
from eecompile.programs.interface import Interface
from eecompile.programs.solvers import solver_named

DEEPEST = 10_000
LARGEST = 2**31 - 1  # numbers in one sample: what ONNX runtimes can index
TAKEN = frozenset(
    ("x", "t", "self", "n", "solver", "steps", "schedule", "seed", "guidance", "nulls", "shape")
    + ("guidance_interval", "first", "prompt", "negative", "decode")
)
"""Names that no condition can have: the graphs' inputs, and arguments of ``Sampler.steps``."""
_OUTPUT = re.compile(r"(prediction|variance)_\d+\Z")


def is_condition_name(name: str) -> bool:
    """Whether an input of the graphs, and a keyword of ``Sampler.sample``, can have this name."""
    usable = name.isidentifier() and not keyword.iskeyword(name) and name not in TAKEN
    return usable and not _OUTPUT.match(name)


def interface_problems(interface: Interface) -> Iterator[str]:
    """What cannot be in an interface, in a few words each."""
    exits, cuts, costs = interface.exits, interface.cuts, interface.costs
    sampling, state = interface.sampling, interface.state
    if not exits or not ascend(exits, 1, DEEPEST):
        yield f"exits {list(exits)}"
        return
    if not ascend(cuts, 0, exits[-1]):
        yield f"cuts {list(cuts)} of exits {list(exits)}"
    if costs and (len(costs) != len(exits) or not ascend((*costs, math.inf), 0.0, math.inf)):
        yield f"costs {list(costs)} of exits {list(exits)}"
    if costs and not costs[0] > 0:
        yield f"a cost of {costs[0]}"
    for name, spec in interface.conditions.items():
        if not is_condition_name(name):
            yield f"a condition named {name!r}"
        if math.prod(spec.shape) > LARGEST:
            yield f"condition {name!r} of shape {list(spec.shape)}"
    free = state.resizable
    longest = [free.max if free and i in free.axes else n for i, n in enumerate(state.shape)]
    encoders, decoder = interface.encoders, interface.decoder
    if math.prod(longest) > LARGEST or not math.isfinite(sum(state.range or ())):
        yield f"samples of shape {longest} in the range {state.range}"
    if interface.process.variance == "learned_range" and not state.shape:
        yield "a learned variance of samples without channels"
    if sampling.guided_channels is not None and sampling.guided_channels > (*state.shape, 0)[0]:
        yield f"guidance on {sampling.guided_channels} channels of {list(state.shape)}"
    if not abs(sampling.guidance) < LARGEST:
        yield f"guidance {sampling.guidance}"
    low, high = sampling.guidance_interval or (0.0, 0.0)
    if not 0 <= low <= high <= interface.process.timesteps:
        yield f"the guidance interval {[low, high]}"
    yield from companion_problems(encoders, decoder, interface.conditions, state.shortest)
    yield from _unknown_choices(interface)


def _unknown_choices(interface: Interface) -> Iterator[str]:
    """Schedules that need what the network has not, and unknown defaults."""
    schedules, sampling = interface.schedules, interface.sampling
    if {"full", sampling.schedule} - set(schedules):
        yield f"schedules {sorted(schedules)} without 'full' or {sampling.schedule!r}"
    try:
        for schedule in schedules.values():
            schedule.check(interface.exits, interface.cuts)
        solver_named(sampling.solver)
    except EecompileError as error:
        yield error.found


def ascend(values: Sequence[float], low: float, high: float) -> bool:
    """Whether values ascend, all of them from ``low`` to ``high``."""
    inside = all(low <= value <= high for value in values)
    return inside and all(first < second for first, second in pairwise(values))
