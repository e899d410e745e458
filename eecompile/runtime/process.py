"""The forward process: how a trained network's noise grows with the timestep.

State at timestep t: ``x_t = sqrt(alpha_bar[t]) * data + sqrt(1 - alpha_bar[t]) * noise``
(Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, equation 4).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from eecompile.errors import RecipeError

__all__ = ["Betas", "Prediction", "Process", "Variance"]

Betas = Literal["linear", "scaled_linear", "cosine"]
Prediction = Literal["epsilon", "sample", "v_prediction"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]
_SMALLEST = 1e-15  # share of variance with which float64 still computes


class Process(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A variance-preserving process in discrete time.

    Attributes:
        timesteps: T, the number of timesteps; t runs over 0 (nearly data) to T - 1.
        betas: ``linear`` (arXiv 2006.11239), ``scaled_linear`` (linear in its square
            root; latent diffusion), or ``cosine`` (arXiv 2102.09672, equation 17).
        beta_start: first beta of the linear kinds.
        beta_end: last beta of the linear kinds.
        prediction: what the network predicts: ``epsilon`` (the noise), ``sample`` (the
            data) or ``v_prediction`` (arXiv 2202.00512, appendix D).
        variance: variance of DDPM's reverse step: the lower (``fixed_small``) or the
            upper bound (``fixed_large``) of arXiv 2006.11239, section 3.2, or what the
            network chooses between them (``learned_range``; arXiv 2102.09672, equation
            15). Such a network gives twice its input's channels: the prediction, then
            the choice, from -1 (lower) to 1 (upper).

    Raises:
        RecipeError: a figure is out of its range.
    """

    timesteps: int = 1000
    betas: Betas = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction: Prediction = "epsilon"
    variance: Variance = "fixed_small"

    def __post_init__(self) -> None:
        if not 1 <= self.timesteps <= 100_000:
            raise RecipeError(
                found=f"process.timesteps = {self.timesteps}",
                expected="1 to 100,000",
                remedy="give the number of timesteps that the network was trained with",
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise RecipeError(
                found=f"process betas from {self.beta_start} to {self.beta_end}",
                expected="0 < beta_start <= beta_end < 1",
                remedy="give the betas that the network was trained with",
            )

        bars = self.alpha_bar()
        if 1 - bars[0] < _SMALLEST or bars[-1] < _SMALLEST**2:
            raise RecipeError(
                found=f"a process that leaves {bars[0]:g} of the data's variance at the first "
                f"timestep and {bars[-1]:g} at the last",
                expected="some noise at the first, and some data at the last",
                remedy="mend process.timesteps or the betas",
            )

    def beta_table(self) -> NDArray[np.float64]:
        """Variance that each timestep adds, float64 [T]."""
        count = self.timesteps
        if self.betas == "linear":
            return np.linspace(self.beta_start, self.beta_end, count)
        if self.betas == "scaled_linear":
            root = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), count)
            return np.square(root)
        bars = [
            math.cos((edge / count + 0.008) / 1.008 * math.pi / 2) ** 2 for edge in range(count + 1)
        ]
        betas = [min(1 - after / before, 0.999) for before, after in pairwise(bars)]
        return np.array(betas, np.float64)

    def alpha_bar(self) -> NDArray[np.float64]:
        """Share of the data's variance left at each timestep, float64 [T]."""
        return np.cumprod(1 - self.beta_table(), dtype=np.float64)
