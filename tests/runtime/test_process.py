from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDPMScheduler

from eecompile.errors import RecipeError
from eecompile.runtime.process import Process

NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("timesteps", [50, 1000])
def test_betas_are_those_of_diffusers(betas: str, timesteps: int) -> None:
    process = Process(timesteps=timesteps, betas=betas)  # type: ignore[arg-type]
    scheduler = DDPMScheduler(timesteps, beta_schedule=NAMES[betas])
    np.testing.assert_allclose(process.beta_table(), scheduler.betas, rtol=2e-5)
    np.testing.assert_allclose(process.alpha_bar(), scheduler.alphas_cumprod, rtol=2e-3)


def test_betas_out_of_range_are_refused() -> None:
    for start, end in ((0.0, 0.02), (0.5, 0.1), (0.1, 1.0)):
        with pytest.raises(RecipeError, match="beta_start <= beta_end"):
            Process(beta_start=start, beta_end=end)
