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
}
TOKENS = 16  # of Flux at that size, which shifts its times
SHIFT = 0.5 + (1.15 - 0.5) * (TOKENS - 256) / (4096 - 256)
SMALLER = {
    "wan": [(r"shape = \[4, 21, 60, 104\]", "shape = [4, 3, 4, 4]")],
    "flux": [
        (r"shape = \[4, 128, 128\]", "shape = [4, 8, 8]"),
        (r"shift = 3\.158\d*", f"shift = {math.exp(SHIFT)}"),
    ],
}
"""Changes to recipes that are written for the published size."""
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
                for old, new in SMALLER[name]:
                    text, count = re.subn(old, new, text)
                    assert count == 1, old
                path.write_text(text)
                command = ["export", str(path)]
            done = CliRunner().invoke(app, [*command, "-o", str(place / "bundle")])
            assert done.exit_code == 0, done.output
            engine_set_from_bundle(place / "bundle", DEFAULT_TARGET, place / "cpu")

        return shared(f"pipeline-{name}", make)

    return made


def packed(latents: np.ndarray) -> np.ndarray:
    """Squares of latents as Flux's tokens."""
    n, channels, height, width = latents.shape
    squares = latents.reshape(n, channels, height // 2, 2, width // 2, 2)
    tokens = squares.transpose(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * channels)
    return np.ascontiguousarray(tokens)


def scheduled(pipe: Any, name: str) -> Any:
    """The pipeline's scheduler at the times that the pipeline takes."""
    if name == "flux":
        pipe.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS), mu=SHIFT)
    else:
        pipe.scheduler.set_timesteps(STEPS)
    return pipe.scheduler


@pytest.mark.parametrize("name", CALLS)
def test_a_pipelines_pictures_are_those_of_its_engines(exported: Exported, name: str) -> None:
    folder = exported(name)
    recipe = load_recipe(folder / "recipe.toml")
    pipe = getattr(pipelines, name)()
    pipe.set_progress_bar_config(disable=True)
    noise = normal_noise(SEED, range(len(PROMPTS)), 0, recipe.state.shape)
    call = {"guidance_scale": recipe.sampling.guidance, **CALLS[name]}
    made = pipe(
        prompt=PROMPTS,
        negative_prompt=[NEGATIVE] * len(PROMPTS),
        num_inference_steps=STEPS,
        latents=torch.from_numpy(packed(noise) if name == "flux" else noise.copy()),
        output_type="np",
        **call,
    )
    right = np.asarray(made.frames if "frames" in made else made.images)
    program = program_from_scheduler(scheduled(pipe, name), None, process=recipe.process)
    with Sampler.open(folder / "cpu") as sampler:
        found, other = (
            sampler.sample(prompt=texts, negative=NEGATIVE, seed=SEED, solver=program, decode=True)
            for texts in (PROMPTS, PROMPTS[::-1])
        )
    scaled = np.moveaxis(np.clip(found / 2 + 0.5, 0, 1), 1, -1)
    assert scaled.shape == right.shape
    assert right.std() > 0.03
    assert np.abs(found - other).max() > 0.01  # prompts matter
    assert np.abs(scaled - right).max() <= 1e-3 * np.abs(right).max()
