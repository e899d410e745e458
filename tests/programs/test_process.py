from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from diffusers import DDPMScheduler
from hypothesis import given

from eecompile.errors import RecipeError
from eecompile.programs.process import DATA, Family, Prediction, Process

NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
FIRST: dict[Family, Prediction] = {"diffusion": "epsilon", "flow": "flow", "edm": "edm"}


def process_of(family: Family, **figures: Any) -> Process:
    return Process(family=family, prediction=FIRST[family], **figures)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("timesteps", [50, 1000])
def test_betas_are_those_of_diffusers(betas: str, timesteps: int) -> None:
    process = Process(timesteps=timesteps, betas=betas)  # type: ignore[arg-type]
    scheduler = DDPMScheduler(timesteps, beta_schedule=NAMES[betas])
    np.testing.assert_allclose(process.beta_table(), scheduler.betas, rtol=2e-5)
    np.testing.assert_allclose(process.alpha_bar(), scheduler.alphas_cumprod, rtol=2e-3)


@given(
    family=st.sampled_from(["diffusion", "flow", "edm"]),
    betas=st.sampled_from(["linear", "scaled_linear", "cosine", "continuous"]),
    time=st.floats(0, 1000),
)
def test_a_moment_is_found_by_its_ratio(family: Family, betas: Any, time: float) -> None:
    process = process_of(family, betas=betas)
    point = process.at(time)
    again = process.at_ratio(point.ratio)
    assert again == pytest.approx(point, rel=1e-6, abs=1e-6)
    if point.sigma and point.alpha:
        assert point.half_log_snr == pytest.approx(-math.log(point.ratio))


@given(time=st.floats(0, 999), step=st.floats(1e-3, 100))
@pytest.mark.parametrize("family", ["diffusion", "flow", "edm"])
def test_noise_grows_with_time(family: Family, time: float, step: float) -> None:
    process = process_of(family)
    before, after = process.at(time), process.at(time + step)
    assert after.ratio > before.ratio or after == process.last == before


def test_families_mix_data_and_noise_as_they_say() -> None:
    diffusion, flow, edm = (process_of(family) for family in ("diffusion", "flow", "edm"))
    bars = diffusion.alpha_bar()
    for time in (0, 17, 999):
        point = diffusion.at(float(time))
        assert point.alpha == math.sqrt(bars[time])
        assert point.alpha**2 + point.sigma**2 == pytest.approx(1, rel=1e-12)
    between = diffusion.at(16.5)
    assert between.alpha**2 + between.sigma**2 == pytest.approx(1, rel=1e-12)
    assert between.ratio**2 == pytest.approx(diffusion.at(16.0).ratio * diffusion.at(17.0).ratio)
    assert flow.at(250.0) == (250.0, 250.0, 0.75, 0.25)
    assert edm.at(0.0) == pytest.approx((0.0, math.log(0.002) / 4, 1.0, 0.002))
    assert edm.at(500.0).sigma == pytest.approx(math.sqrt(0.002 * 80))


def test_moments_are_clamped() -> None:
    diffusion, flow, edm = (process_of(family) for family in ("diffusion", "flow", "edm"))
    assert diffusion.last == diffusion.at(999.0)
    assert diffusion.at_ratio(math.inf) == pytest.approx(diffusion.last, rel=1e-12)
    assert diffusion.at_ratio(0.0).time == diffusion.at(-1.0).time == 0
    assert flow.last == (1000.0, 1000.0, 0.0, 1.0) == flow.at_ratio(math.inf)
    assert flow.last.ratio == math.inf
    assert flow.last.half_log_snr == -math.inf
    assert edm.last.sigma == pytest.approx(80)
    assert edm.at_ratio(1e9).sigma == 80
    assert DATA.half_log_snr == math.inf


def test_a_flow_that_predicts_the_noise_ends_before_pure_noise() -> None:
    process = Process(family="flow", prediction="epsilon")
    assert process.last == process.at(1000.0) == process.at_ratio(math.inf)
    assert process.last.time == 999.0
    assert process.last.alpha == pytest.approx(0.001)


def test_the_network_takes_its_own_time() -> None:
    assert process_of("flow", time_scale=1e-3).at(250.0).timestep == 0.25
    assert process_of("diffusion", time_scale=2.0).at(250.0).timestep == 500
    assert process_of("diffusion", time_scale=2.0).at_ratio(1.0).timestep > 100
    assert process_of("edm", time_scale=2.0).last.timestep == pytest.approx(math.log(80) / 4)
    counted = process_of("diffusion", time_offset=1.0)
    assert counted.last.timestep == 1000
    assert counted.at_ratio(1.0).timestep == counted.at_ratio(1.0).time + 1


def test_a_continuous_diffusion_is_the_sde() -> None:
    process = Process(betas="continuous")
    for share in (1e-4, 0.3, 1.0):  # arXiv 2011.13456, appendix C
        point = process.at(999 * share)
        assert point.alpha == pytest.approx(math.exp(-19.9 * share**2 / 4 - 0.05 * share))
        assert point.alpha**2 + point.sigma**2 == pytest.approx(1)
        assert process.rate(point.time) * 999 == pytest.approx(0.1 + 19.9 * share)
    assert process.at(0.0).time == pytest.approx(0.0999)
    assert process.at_ratio(math.inf) == process.last
    bars = process.alpha_bar()
    assert bars.shape == (1000,)
    assert bars[300] == pytest.approx(process.at(300.0).alpha ** 2)


def test_initial_noise_has_the_scale_of_the_start() -> None:
    for family, scale in (("diffusion", 1.0), ("flow", 1.0), ("edm", 80.0)):
        process = process_of(family)  # type: ignore[arg-type]
        assert process.initial(process.last) == pytest.approx(scale)
    assert process_of("flow").initial(process_of("flow").at(500.0)) == 0.5


def test_betas_out_of_range_are_refused() -> None:
    for start, end in ((0.0, 0.02), (0.5, 0.1), (0.1, 1.0)):
        with pytest.raises(RecipeError, match="beta_start <= beta_end"):
            Process(beta_start=start, beta_end=end)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"timesteps": 0}, "timesteps = 0"),
        ({"shift": 0.0}, "shift 0"),
        ({"time_scale": 0.0}, "time_scale 0"),
        ({"time_offset": math.nan}, "time_offset nan"),
        ({"sigma_data": math.inf}, "sigma_data inf"),
        ({"sigma_min": 80.0}, "sigmas from 80 to 80"),
        ({"sigma_max": math.nan}, "to nan"),
        ({"prediction": "flow"}, "diffusion that predicts flow"),
        ({"family": "flow"}, None),
        ({"family": "flow", "prediction": "v_prediction"}, "flow that predicts v_prediction"),
        ({"family": "edm", "prediction": "flow"}, "edm that predicts flow"),
        ({"family": "edm", "prediction": "edm", "variance": "fixed_large"}, "variance"),
        ({"beta_start": 1e-17}, "leaves 1 of the data's variance"),
        ({"beta_start": 0.5, "beta_end": 0.9}, "at the last"),
    ],
)
def test_figures_that_do_not_fit_are_refused(figures: Any, words: str | None) -> None:
    if words is None:
        assert Process(**figures).prediction == "epsilon"
        return
    with pytest.raises(RecipeError, match=words):
        Process(**figures)
