"""The forward process: how a trained network's noise grows with time.

State at time t: ``x = alpha(t) * data + sigma(t) * noise``, for three families:

- ``diffusion``: ``alpha^2 = alpha_bar[t]``, ``sigma^2 = 1 - alpha_bar[t]`` in T discrete
  timesteps (Ho et al., arXiv 2006.11239, equation 4); between them, the logarithm of
  sigma / alpha is interpolated (alpha itself, where it falls to 0). Or, with betas
  ``continuous``, in continuous time (Song et al., arXiv 2011.13456, appendix C).
- ``flow``: ``alpha = 1 - t / T``, ``sigma = t / T`` (rectified flow; Liu et al., arXiv
  2209.03003, equation 1).
- ``edm``: ``alpha = 1``, sigma from ``sigma_min`` at t = 0 to ``sigma_max`` at T,
  geometrically (Karras et al., arXiv 2206.00364); the network takes ``ln(sigma) / 4``, or
  what ``c_noise`` says.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from eecompile.arrays import Floats
from eecompile.errors import RecipeError

Family = Literal["diffusion", "flow", "edm"]
Betas = Literal["linear", "scaled_linear", "cosine", "continuous"]
Prediction = Literal["epsilon", "sample", "v_prediction", "flow", "flow_to_data", "edm"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]
_SMALLEST = 1e-15  # share of variance with which float64 still computes
_NEARLY = 0.999  # share of T
_HUGE = 1e100  # sigma / alpha of which the square is still a float
_EARLIEST = 1e-4  # share of a continuous diffusion's time at which there is some noise
NOISIEST = 2.0**12
"""Sigma / alpha that stands for noise alone where a ratio must be finite, as in diffusers."""


class Point(NamedTuple):
    """A moment of a process.

    Attributes:
        time: t within [0, T), by which exit schedules go.
        timestep: t as the network takes it.
        alpha: scale of the data in the state.
        sigma: scale of the noise in the state.
    """

    time: float
    timestep: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """``sigma / alpha``: the noise beside data of scale 1; infinite where there is none."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_log_snr(self) -> float:
        """``ln(alpha / sigma)``, lambda in the DPM-Solver papers; infinite at either end."""
        if not self.sigma:
            return math.inf
        return math.log(self.alpha) - math.log(self.sigma) if self.alpha else -math.inf


DATA = Point(0.0, 0.0, 1.0, 0.0)
"""Where a trajectory ends: data without noise. The network is never evaluated there."""


class Process(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How noise was mixed with the data that the network was trained on.

    Attributes:
        family: ``diffusion``, ``flow`` or ``edm``; see this module.
        timesteps: T; t runs over 0 (nearly data) to T - 1 (diffusion) or T.
        betas: of diffusion: ``linear`` (arXiv 2006.11239), ``scaled_linear`` (linear in
            its square root; latent diffusion), ``cosine`` (arXiv 2102.09672, equation
            17), or ``continuous``: the variance-preserving SDE of arXiv 2011.13456,
            appendix C, with rates from T * beta_start to T * beta_end over its time from
            0 to 1, which is t / (T - 1). It begins at 1e-4, where there is some noise. Or
            the T betas themselves, as a list.
        beta_start: first beta of the linear kinds and of the continuous one.
        beta_end: last beta of these.
        snr_shift: of a table of betas: the signal-to-noise ratio alpha^2 / sigma^2 is
            divided by this (CogVideoX, arXiv 2408.06072; ``snr_shift_scale`` in diffusers).
        zero_terminal_snr: of a table of betas: alpha is then shifted and scaled so that
            nothing of the data is left at the last timestep (arXiv 2305.08891, algorithm 1;
            ``rescale_betas_zero_snr`` in diffusers). Not for ``epsilon``.
        prediction: what the network predicts: ``epsilon`` (the noise), ``sample`` (the
            data), ``v_prediction`` (arXiv 2202.00512, appendix D), ``flow`` (noise minus
            data), ``flow_to_data`` (data minus noise; Lumina) or ``edm`` (the preconditioned
            network of arXiv 2206.00364, table 1). With family edm, ``v_prediction`` is
            table 1 with the network's output negated (Stable Audio).
        variance: variance of DDPM's reverse step: the lower (``fixed_small``) or the
            upper bound (``fixed_large``) of arXiv 2006.11239, section 3.2, or what the
            network chooses between them (``learned_range``; arXiv 2102.09672, equation
            15). Such a network gives twice its input's channels: the prediction, then
            the choice, from -1 (lower) to 1 (upper). A flow's choice is not read.
        shift: of flow: its time grids are shifted towards noise by this factor (arXiv
            2403.03206, equation 23).
        sigma_min: of edm: smallest sigma.
        sigma_max: of edm: largest sigma.
        sigma_data: of edm's predictions ``edm`` and ``v_prediction``: standard deviation
            of the data.
        c_noise: of edm: what the network takes for sigma: ``log``, ``ln(sigma) / 4`` (table
            1), or ``atan``, ``2 atan(sigma) / pi`` (Stable Audio).
        time_scale: the network takes t times this: 1 / T where it takes 0 to 1, and -1 / T,
            with a time_offset of 1, where its time runs from noise at 0 to data at 1. Not
            for edm.
        time_offset: the network takes this more: 1 where it counts a diffusion's timesteps
            from 1. Not for edm.

    Raises:
        RecipeError: a figure is out of its range, or figures do not fit together.
    """

    family: Family = "diffusion"
    timesteps: int = 1000
    betas: Betas | tuple[float, ...] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    snr_shift: float = 1.0
    zero_terminal_snr: bool = False
    prediction: Prediction = "epsilon"
    variance: Variance = "fixed_small"
    shift: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    c_noise: Literal["log", "atan"] = "log"
    time_scale: float = 1.0
    time_offset: float = 0.0

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
        positive = (self.shift, self.sigma_min, self.sigma_data, self.snr_shift)
        finite = all(0 < value < math.inf for value in positive)
        finite = finite and math.isfinite(self.time_offset)
        finite = finite and math.isfinite(self.time_scale) and self.time_scale != 0
        if not finite or not self.sigma_min < self.sigma_max < math.inf:
            raise RecipeError(
                found=f"a process with shift {self.shift:g}, sigmas from {self.sigma_min:g} to "
                f"{self.sigma_max:g}, sigma_data {self.sigma_data:g}, snr_shift "
                f"{self.snr_shift:g}, time_scale {self.time_scale:g}, time_offset "
                f"{self.time_offset:g}",
                expected="positive numbers, a time_scale that is not 0, a finite time_offset, and "
                "sigma_min below sigma_max",
                remedy="give those that the network was trained with",
            )
        self._check_family()

    def _check_family(self) -> None:
        known: dict[Family, tuple[Prediction, ...]] = {
            "diffusion": ("epsilon", "sample", "v_prediction"),
            "flow": ("flow", "flow_to_data", "epsilon", "sample"),
            "edm": ("edm", "v_prediction", "epsilon", "sample"),
        }
        if self.prediction not in known[self.family]:
            raise RecipeError(
                found=f"a process of family {self.family} that predicts {self.prediction}",
                expected=f"one of {list(known[self.family])}",
                remedy="fix process.family or process.prediction",
            )
        if self.family != "diffusion":
            unread = self.family == "flow" and self.variance == "learned_range"
            if self.variance != "fixed_small" and not unread:
                raise RecipeError(
                    found=f"process.variance = {self.variance!r} with family {self.family}",
                    expected="a process of family diffusion, whose reverse steps it describes",
                    remedy="remove variance",
                )
            self._check_unchanged(f"family {self.family}")
            return
        self._check_table()
        bars = self.alpha_bar()
        if 1 - bars[0] < _SMALLEST or bars[-1] < _SMALLEST**2 * (not self.zero_terminal_snr):
            raise RecipeError(
                found=f"a process that leaves {bars[0]:g} of the data's variance at the first "
                f"timestep and {bars[-1]:g} at the last",
                expected="some noise at the first, and some data at the last",
                remedy="fix process.timesteps or the betas",
            )

    def _check_unchanged(self, what: str) -> None:
        """Pass when nothing changes a table of betas where there is none."""
        if self.snr_shift != 1 or self.zero_terminal_snr:
            name = "zero_terminal_snr" if self.zero_terminal_snr else "snr_shift"
            raise RecipeError(
                found=f"process.{name} with {what}",
                expected="a diffusion with a table of betas, which it changes",
                remedy=f"remove {name}" + ", or use shift" * (self.family == "flow"),
            )

    def _check_table(self) -> None:
        """Pass when the betas are a table of T that can be changed as is asked."""
        if self.betas == "continuous":
            self._check_unchanged("betas 'continuous'")
        if isinstance(self.betas, tuple):
            within = all(0 < beta < 1 for beta in self.betas)
            if len(self.betas) != self.timesteps or not within:
                raise RecipeError(
                    found=f"{len(self.betas)} process.betas for {self.timesteps} timesteps"
                    + ("" if within else ", some of them not between 0 and 1"),
                    expected="one for each timestep, between 0 and 1",
                    remedy="list those that the network was trained with, or name them",
                )
        if self.zero_terminal_snr and (self.prediction == "epsilon" or self.timesteps < 2):
            raise RecipeError(
                found="process.zero_terminal_snr with "
                + ("prediction epsilon" if self.timesteps > 1 else "one timestep"),
                expected="v_prediction or sample, and several timesteps: where all is noise, the "
                "noise does not tell what the data is",
                remedy="fix process.prediction, or remove zero_terminal_snr",
            )

    def beta_table(self) -> Floats:
        """Variance that each timestep of a diffusion adds, float64 [T]."""
        bars = self.alpha_bar()
        added: Floats = 1 - bars / np.concatenate([np.ones(1), bars[:-1]])
        return added

    def _betas(self) -> Floats:
        """The betas as they are named, before anything changes them."""
        count = self.timesteps
        if isinstance(self.betas, tuple):
            return np.array(self.betas, np.float64)
        if self.betas == "continuous":
            spent = self._spent(np.arange(count) / max(count - 1, 1))
            return -np.expm1(-np.diff(spent, prepend=0.0))
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

    def alpha_bar(self) -> Floats:
        """Share of the data's variance left at each timestep of a diffusion, float64 [T]."""
        bars = np.cumprod(1 - self._betas(), dtype=np.float64)
        if self.snr_shift != 1:
            bars = bars / (self.snr_shift + (1 - self.snr_shift) * bars)
        if self.zero_terminal_snr:
            roots = np.sqrt(bars)
            bars = np.square((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1])))
        return bars

    def _spent(self, share: Floats) -> Floats:
        """The integral of a continuous diffusion's rate up to ``share`` of its time."""
        share = np.maximum(share, _EARLIEST)
        slope = self.beta_end - self.beta_start
        return self.timesteps * (self.beta_start + slope * share / 2) * share

    def rate(self, time: float) -> float:
        """The rate of a continuous diffusion, d(-ln(alpha^2)) / dt."""
        span = max(self.timesteps - 1, 1)
        slope = self.beta_end - self.beta_start
        return self.timesteps * (self.beta_start + slope * time / span) / span

    def _noise_stamp(self, sigma: float) -> float:
        """What edm's network takes for ``sigma``."""
        return math.log(sigma) / 4 if self.c_noise == "log" else 2 * math.atan(sigma) / math.pi

    def sigma_at(self, stamp: float) -> float:
        """The sigma that edm's network takes as ``stamp``."""
        return math.exp(4 * stamp) if self.c_noise == "log" else math.tan(stamp * math.pi / 2)

    def _stamp(self, time: float) -> float:
        """What the network takes for ``time``; not for edm."""
        return time * self.time_scale + self.time_offset

    def time_of(self, timestep: float) -> float:
        """The time t of which the network takes ``timestep``: the inverse of :meth:`at`'s."""
        if self.family == "edm":
            return self.at_ratio(math.exp(4 * timestep)).time
        return (timestep - self.time_offset) / self.time_scale

    def at(self, time: float) -> Point:
        """The moment ``time``, clamped to the process's own range.

        A flow whose network predicts the noise ends just before T: at T the state has no
        data in it, and noise alone does not tell what that is.
        """
        if self.family == "flow":
            whole = 1.0 if self.prediction != "epsilon" else _NEARLY
            time = min(max(time, 0.0), whole * self.timesteps)
            sigma = time / self.timesteps
            return Point(time, self._stamp(time), 1 - sigma, sigma)
        if self.family == "edm":
            time = min(max(time, 0.0), float(self.timesteps))
            span = math.log(self.sigma_max / self.sigma_min)
            sigma = self.sigma_min * math.exp(span * time / self.timesteps)
            return Point(time, self._noise_stamp(sigma), 1.0, sigma)
        end = self.timesteps - 1.0
        if self.betas == "continuous":
            time = min(max(time, _EARLIEST * end), end)
            spent = float(self._spent(np.array(time / max(end, 1.0))))
            alpha, sigma = math.exp(-spent / 2), math.sqrt(-math.expm1(-spent))
            return Point(time, self._stamp(time), alpha, sigma)
        time = min(max(time, 0.0), end)
        bars, logs = _tables(self)
        if time == int(time):
            bar = float(bars[int(time)])
            alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        elif self.zero_terminal_snr and time > end - 1:
            alpha = (end - time) * math.sqrt(bars[-2])
            sigma = math.sqrt(1 - alpha**2)
        else:
            alpha, sigma = _of_ratio(math.exp(float(np.interp(time, np.arange(len(logs)), logs))))
        return Point(time, self._stamp(time), alpha, sigma)

    def at_ratio(self, ratio: float) -> Point:
        """The moment at which ``sigma / alpha`` is ``ratio``, clamped to the process's range."""
        if self.family == "flow":
            return self.at(self.timesteps * (1.0 if math.isinf(ratio) else ratio / (1 + ratio)))
        if self.family == "edm":
            ratio = min(max(ratio, self.sigma_min), self.sigma_max)
            span = math.log(self.sigma_max / self.sigma_min)
            time = self.timesteps * math.log(ratio / self.sigma_min) / span
            return Point(time, self._noise_stamp(ratio), 1.0, ratio)
        if self.betas == "continuous":
            spent = math.log1p(ratio**2) / self.timesteps if ratio < _HUGE else math.inf
            root = math.sqrt(self.beta_start**2 + 2 * (self.beta_end - self.beta_start) * spent)
            share = 2 * spent / (self.beta_start + root) if spent < math.inf else 1.0
            return self.at(share * (self.timesteps - 1))
        bars, logs = _tables(self)
        if self.zero_terminal_snr and ratio > math.exp(logs[-2]):
            alpha = 1 / math.hypot(1, ratio)
            return self.at(self.timesteps - 1 - alpha / math.sqrt(bars[-2]))
        log = min(max(math.log(ratio) if ratio > 0 else -math.inf, logs[0]), logs[-1])
        time = float(np.interp(log, logs, np.arange(len(logs))))
        return Point(time, self._stamp(time), *_of_ratio(math.exp(log)))

    @property
    def last(self) -> Point:
        """The moment with the most noise, where sampling starts."""
        return self.at(float(self.timesteps))

    def input_scale(self, point: Point) -> float:
        """What the network's input is of the state (arXiv 2206.00364, table 1)."""
        scaled = self.family == "edm" and self.prediction in ("edm", "v_prediction")
        return 1 / math.hypot(point.sigma, self.sigma_data) if scaled else 1.0

    def initial(self, point: Point) -> float:
        """Scale of the noise with which a trajectory from ``point`` starts."""
        return 1.0 if self.family == "diffusion" else point.sigma


def _of_ratio(ratio: float) -> tuple[float, float]:
    """Alpha and sigma of a diffusion, by ``sigma / alpha``."""
    alpha = 1 / math.hypot(1, ratio)
    return alpha, alpha * ratio


@cache
def _tables(process: Process) -> tuple[Floats, Floats]:
    """A diffusion's ``alpha_bar``, and ``ln(sigma / alpha)``, at each timestep."""
    bars = process.alpha_bar()
    with np.errstate(divide="ignore"):  # nothing of the data may be left
        return bars, 0.5 * (np.log1p(-bars) - np.log(bars))
