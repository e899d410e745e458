"""Time grids, against diffusers' and by what they promise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import diffusers
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from eecompile.errors import UsageError
from eecompile.programs.grids import GRIDS, points
from eecompile.programs.process import Family, Prediction, Process

FIRST: dict[Family, Prediction] = {"diffusion": "epsilon", "flow": "flow", "edm": "edm"}


@given(
    family=st.sampled_from(["diffusion", "flow", "edm"]),
    betas=st.sampled_from(["linear", "scaled_linear", "cosine", "continuous"]),
    total=st.sampled_from([1, 2, 10, 999, 1000]),
    share=st.floats(0, 1),
    grid=st.sampled_from(GRIDS),
    shift=st.sampled_from([0.3, 1.0, 12.0]),
    noise=st.booleans(),
)
def test_moments_descend_within_the_process(
    family: Family, betas: Any, total: int, share: float, grid: Any, shift: float, noise: bool
) -> None:
    prediction: Prediction = "epsilon" if noise else FIRST[family]
    process = Process(
        family=family, betas=betas, timesteps=total, shift=shift, prediction=prediction
    )
    steps = max(1, round(share * total))
    found = points(process, steps, grid)
    assert len(found) == steps
    assert all(after.time < before.time for before, after in pairwise(found))
    assert all(after.ratio < before.ratio for before, after in pairwise(found))
    assert 0 <= found[-1].time <= found[0].time <= process.last.time
    assert all(point.sigma > 0 for point in found)
    assert all(point.alpha > 0 for point in found[1:])
    if noise:
        assert found[0].alpha > 0


def test_every_timestep_is_visited_once_where_all_are_asked_for() -> None:
    process = Process(timesteps=10)
    for grid in ("uniform", "linspace", "quadratic"):
        assert [point.time for point in points(process, 10, grid)] == list(range(10))[::-1]


@pytest.mark.parametrize("family", ["diffusion", "flow", "edm"])
@pytest.mark.parametrize("grid", GRIDS)
def test_grids_end_where_they_should(family: Family, grid: Any) -> None:
    process = Process(family=family, prediction=FIRST[family])
    for steps in (2, 7, 1000):
        found = points(process, steps, grid)
        span = process.last.time
        if grid in ("karras", "logsnr") and family == "flow":
            assert found[0].time == pytest.approx(999.0)
        elif grid != "leading":
            assert found[0] == process.last
        least = 1.0 if family == "flow" else 0.0
        if grid not in ("trailing", "uniform") and (grid != "quadratic" or family == "diffusion"):
            assert found[-1].time == pytest.approx(least, abs=1e-9)
        elif grid in ("trailing", "uniform"):
            assert found[-1].time == pytest.approx(span / steps, abs=1)


def test_grids_of_a_continuous_diffusion_are_not_of_whole_timesteps() -> None:
    process = Process(betas="continuous")
    found = [point.time for point in points(process, 11, "linspace")]
    np.testing.assert_allclose(found, np.linspace(1, 1e-3, 11) * 999)
    assert points(process, 5, "logsnr")[-1] == process.at(0.0)
    assert points(process, 5, "logsnr")[-1].time == pytest.approx(0.0999)


@pytest.mark.parametrize("steps", [1, 10, 30, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_times_are_those_of_diffusers(spacing: Any, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    if (spacing, steps) == ("linspace", 1):
        pytest.skip("diffusers takes t = 0 alone")
    assert [point.time for point in points(Process(), steps, spacing)] == list(scheduler.timesteps)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [2, 10, 20, 33])
def test_uniform_times_are_those_of_diffusers_multistep_solvers(steps: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(steps)
    found = [point.time for point in points(Process(), steps, "uniform")]
    assert found == scheduler.timesteps.tolist()


def test_quadratic_times_grow_with_the_square() -> None:
    found = [point.time for point in points(Process(), 11, "quadratic")]
    np.testing.assert_allclose(found, [999 * (i / 10) ** 2 for i in reversed(range(11))], atol=0.5)


def test_karras_and_logsnr_are_even() -> None:
    for process in (Process(), Process(family="edm", prediction="edm")):
        karras = np.array([point.ratio for point in points(process, 9, "karras")]) ** (1 / 7)
        np.testing.assert_allclose(np.diff(karras), np.diff(karras)[0], rtol=1e-9)
        even = [point.half_log_snr for point in points(process, 9, "logsnr")]
        np.testing.assert_allclose(np.diff(even), np.diff(even)[0], rtol=1e-9)


def test_a_flow_is_shifted() -> None:
    process = Process(family="flow", prediction="flow", shift=3.0)
    found = [point.sigma for point in points(process, 4, "trailing")]
    assert found == pytest.approx([1.0, 2.25 / 2.5, 1.5 / 2, 0.75 / 1.5])
    given = points(process, 2, [900.0, 100.0])
    assert [point.time for point in given] == [900.0, 100.0]


@pytest.mark.parametrize(
    ("family", "times", "words"),
    [
        ("diffusion", [10.0], "1 times for 2 steps"),
        ("diffusion", [10.0, 10.0], "not descending within 0 to 999"),
        ("diffusion", [999.5, 999.0], "within 0 to 999"),
        ("diffusion", [10.0, -1.0], "within 0 to 999"),
        ("diffusion", [10.0, math.nan], "within 0 to 999"),
        ("flow", [10.0, 0.0], "not descending within 0.001 to 1000"),
        ("edm", [1000.5, 0.0], "within 0 to 1000"),
    ],
)
def test_times_that_do_not_descend_are_refused(
    family: Family, times: list[float], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        points(Process(family=family, prediction=FIRST[family]), 2, times)


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("grid", [*GRIDS, "given"])
def test_steps_out_of_range_are_refused(steps: int, grid: Any) -> None:
    with pytest.raises(UsageError, match=f"{steps} steps; expected 1 to 1000"):
        points(Process(), steps, [1.0] if grid == "given" else grid)


def test_an_unknown_grid_is_refused() -> None:
    with pytest.raises(UsageError, match=r"time grid 'wide'; expected one of .*'karras'"):
        points(Process(), 10, "wide")  # type: ignore[arg-type]
