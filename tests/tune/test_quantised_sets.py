"""Schedules over engine sets of two precisions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eecompile.programs.choice import Exit, Forecast
from eecompile.runtime.sampler import Sampler
from eecompile.tune.report import TuningSettings
from eecompile.tune.tuning import tune

INT8 = "4@cpu-int8-ort"


@pytest.fixture(scope="module")
def both(small_sets: dict[str, Path], int8_set: Path) -> Iterator[Sampler]:
    with Sampler.open(small_sets["per_exit"], int8_set) as sampler:
        yield sampler


def test_a_schedule_names_the_steps_that_are_quantised(both: Sampler) -> None:
    """Fewer of them are nearer."""
    plain = both.sample(4, steps=8, schedule="full")
    far = []
    for choices in ([INT8], [INT8, "4"], ["4", "4", "4", INT8]):
        found = both.sample(4, steps=8, schedule=choices)
        far.append(float(np.sqrt(np.square(found - plain).mean())))
    assert far[0] > max(far[1:]) > 0


def test_tuning_takes_them_beside_exits_and_forecasts(both: Sampler) -> None:
    settings = TuningSettings(
        solver="ddim", steps=8, budgets=(0.6,), batch=2, seeds=2, held_out=2, minutes=0.0
    )
    front = tune(both, settings)
    assert front.engines == ("cpu", "cpu-int8-ort")
    timed = {each.choice.text for each in front.latencies}
    assert {"4", INT8, "1", "1@cpu-int8-ort"} <= timed
    assert INT8 in front.error_terms
    (found,) = [point for point in front.points if point.kind == "found"]
    assert found.distance > 0
    alone = {point.name: point for point in front.points if point.kind == "alone"}
    assert "forecasts alone 0.6" in alone
    for name, one in alone.items():
        kinds = {type(choice) for choice in one.choices}
        assert kinds <= ({Exit, Forecast} if name.startswith("forecasts") else {Exit})
    if precision := alone.get("engine sets alone 0.6"):  # where the processor is fast enough
        assert {choice.text for choice in precision.choices} == {"4", INT8}
