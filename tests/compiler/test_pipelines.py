"""Whole pipelines of diffusers, from prompt to picture, against what is exported of their folders.

Networks, encoders and decoders are tiny, and their weights random.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eecompile import Sampler
from eecompile.cli.app import app
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.schedulers.program import program_from_scheduler
from eecompile.compiler.snapshots.recipe import write_recipe
from eecompile.recipe import load_recipe
from eecompile.runtime.trajectory.noise import normal_noise
from eecompile.store.target import DEFAULT_TARGET
from tests import pipelines
from tests.conftest import Shared

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the libraries' own
PROMPTS = ["a photo of the red cat", "a dog under the blue sky"]
NEGATIVE, STEPS, SEED = "snow", 4, 3
CALLS: dict[str, dict[str, Any]] = {
    "stable_diffusion": {},
    "pixart": {
        "clean_caption": False,
        "use_resolution_binning": False,
        "height": 16,
        "width": 16,
    },
    "sd3": {},
    "wan": {"height": 32, "width": 32, "num_frames": 9},
    "flux": {"height": 16, "width": 16, "guidance_scale": 3.5},
    "stable_diffusion_xl": {},
    "auraflow": {},
    "hunyuan": {"height": 64, "width": 64, "use_resolution_binning": False},
    "sana": {"height": 32, "width": 32, "use_resolution_binning": False},
    "lumina2": {"height": 64, "width": 64, "cfg_normalization": False},
    "ltx": {"height": 64, "width": 64, "num_frames": 17},
    "qwen_image": {"height": 32, "width": 32, "guidance_scale": None, "true_cfg_scale": 1.0},
    "stable_audio": {},
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "stable_diffusion_xl": {"sizes": [16, 16, 0, 0, 16, 16]},
    "hunyuan": {"sizes": [1024, 1024, 64, 64, 0, 0]},
}
"""What is given beside prompts."""
TOKENS = {"flux": 16, "qwen_image": 16, "ltx": 12}
"""Of a sample, by which the times are shifted."""
SMALLER = {
    "wan": ([4, 21, 60, 104], [4, 3, 4, 4]),
    "flux": ([4, 128, 128], [4, 8, 8]),
    "qwen_image": ([4, 128, 128], [4, 8, 8]),
    "ltx": ([8, 21, 16, 22], [8, 3, 2, 2]),
}
"""Shapes of states in recipes that are written for the published size, and smaller ones."""
Exported = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(shared: Shared) -> Exported:
    """A pipeline's folder, its recipe, bundle and engine set; not to be written to."""

    def made(name: str) -> Path:
        def make(place: Path) -> None:
            place.mkdir()
            pipe = getattr(pipelines, name)()
            pipe.save_pretrained(place / "pipe")
            path = place / "recipe.toml"
            command = ["export", str(place / "pipe"), "--recipe", str(path)]
            if name in SMALLER:
                text = write_recipe(str(place / "pipe"), path).read_text()
                published, smaller = (f"\nshape = {shape}\n" for shape in SMALLER[name])
                assert published in text
                text = text.replace(published, smaller)
                if name in TOKENS:
                    shift = math.exp(log_shift(pipe, TOKENS[name]))
                    text = re.sub(r"\nshift = .*", f"\nshift = {shift}", text, count=1)
                path.write_text(text)
                command = ["export", str(path)]
            done = CliRunner().invoke(app, [*command, "-o", str(place / "bundle")])
            assert done.exit_code == 0, done.output
            engine_set_from_bundle(place / "bundle", DEFAULT_TARGET, place / "cpu")

        return shared(f"pipeline-{name}", make)

    return made


def log_shift(pipe: Any, tokens: int) -> float:
    """The logarithm of the shift of a pipeline's times, for samples of so many tokens."""
    config = pipe.scheduler.config
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    return float(config.base_shift + slope * (tokens - config.base_image_seq_len))


def packed(latents: np.ndarray) -> np.ndarray:
    """Squares of latents as tokens; of a video, every latent is one."""
    if latents.ndim == 5:
        return np.ascontiguousarray(latents.reshape(*latents.shape[:2], -1).swapaxes(1, 2))
    n, channels, height, width = latents.shape
    squares = latents.reshape(n, channels, height // 2, 2, width // 2, 2)
    tokens = squares.transpose(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * channels)
    return np.ascontiguousarray(tokens)


def scheduled(pipe: Any, name: str) -> Any:
    """The pipeline's scheduler at the times that the pipeline takes."""
    sigmas = np.linspace(1, 1 / STEPS, STEPS)
    if name in TOKENS:
        pipe.scheduler.set_timesteps(sigmas=sigmas, mu=log_shift(pipe, TOKENS[name]))
    elif name == "lumina2":
        pipe.scheduler.set_timesteps(sigmas=sigmas)
    else:
        pipe.scheduler.set_timesteps(STEPS)
    return pipe.scheduler


def theirs(pipe: Any, name: str, guidance: float, noise: np.ndarray, **more: Any) -> np.ndarray:
    """What the pipeline makes of the prompts: its first output."""
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        prompt=PROMPTS,
        num_inference_steps=STEPS,
        latents=torch.from_numpy(packed(noise) if name in TOKENS else noise.copy()),
        output_type="np",
        **{"guidance_scale": guidance, **CALLS[name], **more},
    )
    return np.asarray(next(iter(made.values())))


@pytest.mark.parametrize("name", CALLS)
def test_a_pipelines_pictures_are_those_of_its_engines(exported: Exported, name: str) -> None:
    folder = exported(name)
    recipe = load_recipe(folder / "recipe.toml")
    pipe = getattr(pipelines, name)()
    noise = normal_noise(SEED, range(len(PROMPTS)), 0, recipe.state.shape)
    guidance = CALLS[name].get("true_cfg_scale", recipe.sampling.guidance)
    negative = [NEGATIVE] * len(PROMPTS)
    right = theirs(pipe, name, guidance, noise, negative_prompt=negative)
    program = program_from_scheduler(scheduled(pipe, name), None, process=recipe.process)
    given = {**CONDITIONS.get(name, {}), "guidance": guidance, "solver": program, "seed": SEED}
    with Sampler.open(folder / "cpu") as sampler:
        found, other = (
            sampler.sample(prompt=texts, negative=NEGATIVE, decode=True, **given)
            for texts in (PROMPTS, PROMPTS[::-1])
        )
    sound = name == "stable_audio"
    scaled = found if sound else np.moveaxis(np.clip(found / 2 + 0.5, 0, 1), 1, -1)
    assert scaled.shape == right.shape
    assert right.std() > 0.03
    assert np.abs(found - other).max() > 0.01  # prompts matter
    assert np.abs(scaled - right).max() <= 1e-3 * np.abs(right).max()


def test_a_sound_is_guided_away_from_no_prompt_and_no_seconds(exported: Exported) -> None:
    folder, name = exported("stable_audio"), "stable_audio"
    recipe = load_recipe(folder / "recipe.toml")
    pipe = pipelines.stable_audio()
    noise = normal_noise(SEED, range(len(PROMPTS)), 0, recipe.state.shape)
    seconds = {"audio_start_in_s": 1.0, "audio_end_in_s": 3.0}
    right = theirs(pipe, name, 7.0, noise, **seconds)
    program = program_from_scheduler(scheduled(pipe, name), None, process=recipe.process)
    with Sampler.open(folder / "cpu") as sampler:
        found = sampler.sample(
            prompt=PROMPTS, start=1.0, end=3.0, seed=SEED, solver=program, decode=True
        )
    rate = int(sampler.interface.decoder.rate) if sampler.interface.decoder else 0
    cut = found[:, :, rate : 3 * rate]  # the pipeline cuts what it was not asked for
    assert cut.shape == right.shape
    assert np.abs(cut - right).max() <= 1e-3 * np.abs(right).max()
