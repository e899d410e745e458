"""Recipes of published pipelines are what export writes of them, and fit the library's networks."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from torch import nn

from eecompile.compiler.export import interface_from_recipe
from eecompile.errors import UsageError
from eecompile.networks.call import Call, constants_from_recipe
from eecompile.networks.load import factory_named, made
from eecompile.recipe import load_recipe
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
EXPORT = ROOT / "export"
NAMES = sorted(path.stem for path in (ROOT / "scripts" / "published").glob("*.json"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("published")


@cache
def network(path: str) -> nn.Module:
    """A recipe's network, without memory for its weights."""
    with torch.device("meta"):
        return made(load_recipe(EXPORT / path).network, EXPORT)


def weights(*modules: nn.Module) -> dict[str, torch.Size]:
    return {key: each.shape for module in modules for key, each in module.state_dict().items()}


def blocks(module: nn.Module, names: str | tuple[str, ...]) -> Iterator[nn.Module]:
    for name in (names,) if isinstance(names, str) else names:
        found = module.get_submodule(name)
        yield from found if isinstance(found, nn.ModuleList) else [found]


def test_they_are_written_from_the_published_configurations(script: Any) -> None:
    written = dict(script.recipes())
    assert len(written) == len(NAMES)
    for name, text in written.items():
        assert (EXPORT / f"{name}.toml").read_text() == text, "run scripts/published.py"
    assert all(each["sources"] for each in script.published().values())


@pytest.mark.parametrize("name", NAMES)
def test_their_networks_have_the_weights_of_the_librarys_own(script: Any, name: str) -> None:
    files = script.published()[name]["files"]
    config = files.get("transformer/config.json") or files["unet/config.json"]
    with torch.device("meta"):
        theirs = [getattr(diffusers, config["_class_name"]).from_config(config)]
        if "projection_model/config.json" in files:
            own = files["projection_model/config.json"]
            theirs.append(StableAudioProjectionModel.from_config(own))
    assert weights(network(f"{script.recipe_name(name)}.toml")) == weights(*theirs)


@pytest.mark.parametrize("name", NAMES)
def test_their_networks_predict_at_their_shapes(script: Any, name: str) -> None:
    path = f"{script.recipe_name(name)}.toml"
    recipe = load_recipe(EXPORT / path)
    assert recipe.network.blocks
    assert len(list(blocks(network(path), recipe.network.blocks))) == recipe.network.exits[-1]
    find = {name: factory_named(name, EXPORT) for name in [CALLED]}
    call = Call(
        recipe.network.arguments,
        constants_from_recipe(recipe.network.constants, find.__getitem__),
        recipe.network.dtypes,
    )
    shape = recipe.state.shape
    with torch.device("meta"), torch.no_grad():
        given = {
            name: torch.empty(2, *each.shape, dtype=getattr(torch, each.dtype))
            for name, each in interface_from_recipe(recipe).conditions.items()
        }
        returned = network(path)(**call(x=torch.empty(2, *shape), t=torch.ones(2), **given))
    found = returned if isinstance(returned, torch.Tensor) else returned[0]
    channels = shape[0] * (2 if recipe.process.variance == "learned_range" else 1)
    assert found.shape == (2, channels, *shape[1:])


CALLED = "diffusers.models.embeddings:get_2d_rotary_pos_embed"
"""What makes constants of these recipes."""


def changed(script: Any, monkeypatch: pytest.MonkeyPatch, name: str, file: str, **keys: Any) -> str:
    """The recipe of a pipeline of which one file has other keys, or without it."""
    each = script.published()[name]
    each["files"][file] |= keys
    if not keys:
        del each["files"][file]
        del each["files"]["model_index.json"][file.split("/")[0]]
    monkeypatch.setattr(script, "published", lambda: {name: each})
    ((_, text),) = script.recipes()
    return str(text)


def test_a_decoder_that_takes_a_time_is_left_out_and_named(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "[decoder]" in (EXPORT / "ltx-video.toml").read_text()
    text = changed(script, monkeypatch, "LTX-Video", "vae/config.json", timestep_conditioning=True)
    assert "[decoder]" not in text
    assert "# No decoder: the pipeline's takes a time and noise" in text
    assert "vae (AutoencoderKLLTXVideo)" in text


@pytest.mark.parametrize(
    ("name", "file", "keys", "words"),
    [
        ("stable-audio-open-1.0", "projection_model/config.json", {}, "without the projection"),
        ("Qwen-Image", "transformer/config.json", {"zero_cond_t": True}, "that of Qwen-Image"),
        ("LTX-Video", "transformer/config.json", {"patch_size": 2}, "patches of several latents"),
    ],
)
def test_what_a_recipe_cannot_say_is_refused(
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    file: str,
    keys: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(UsageError, match=words):
        changed(script, monkeypatch, name, file, **keys)


def test_sampling_is_the_pipelines_own() -> None:
    found = {}
    for name in ("flux.1-schnell", "flux.1-dev", "sana-1600m-1024px-diffusers"):
        recipe = load_recipe(EXPORT / f"{name}.toml")
        found[name] = (recipe.sampling.steps, recipe.sampling.guidance, recipe.process.shift)
    assert found["flux.1-schnell"] == (4, 1.0, 1.0)
    assert found["flux.1-dev"] == (28, 1.0, pytest.approx(math.exp(1.15)))
    assert found["sana-1600m-1024px-diffusers"] == (20, 4.5, 3.0)
    sound = load_recipe(EXPORT / "stable-audio-open-1.0.toml")
    assert (sound.process.family, sound.process.c_noise) == ("edm", "atan")
    assert sound.conditions["end"].default == pytest.approx(1024 * 2048 / 44100)
    picture = load_recipe(EXPORT / "stable-diffusion-xl-base-1.0.toml")
    assert picture.network.options["upcast_attention"] == {"null": True}
    assert load_recipe(EXPORT / "hunyuandit-diffusers.toml").process.variance == "learned_range"
