"""Engines within pipelines of diffusers, against the same pipelines with their own networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
)
from safetensors.torch import load_file

from eecompile import Sampler
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.diffusers import EngineNetwork, _taken, export_pipeline, use_engines
from eecompile.errors import UsageError
from eecompile.recipe import load_recipe
from tests.programs.interpreter import run

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
Sets = Callable[[str], Path]
STEPS = 8


@pytest.fixture(scope="module")
def decoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=8
    ).eval()


def transformer(kind: Any, folder: Path) -> Any:
    """The network of a small recipe, as diffusers' own module."""
    network = kind(**load_recipe(folder / "recipe.toml").network.options)
    network.load_state_dict(load_file(folder / "w.safetensors"))
    return network.eval()


@pytest.fixture(scope="module")
def dit(network_sets: Sets, decoder: AutoencoderKL) -> tuple[DiTPipeline, Path]:
    folder = network_sets("dit of diffusers")
    network = transformer(DiTTransformer2DModel, folder)
    pipe = DiTPipeline(network, decoder, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe, folder


def pictures(pipe: Any, guidance: float = 1.0) -> np.ndarray:
    return pipe(
        [1, 2, 3],
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=STEPS,
        output_type="np",
    ).images


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_pipeline_makes_the_same_pictures(dit: tuple[DiTPipeline, Path], guidance: float) -> None:
    pipe, folder = dit
    own, expected = pipe.transformer, pictures(pipe, guidance)
    with use_engines(pipe, folder / "per_exit") as network:
        assert pipe.transformer is network
        assert np.abs(pictures(pipe, guidance) - expected).max() < 1e-5
        again = pictures(pipe, guidance)
        assert np.abs(again - expected).max() < 1e-5  # a second sampling begins anew
    assert pipe.transformer is own


def test_a_choice_comes_from_the_timestep(
    dit: tuple[DiTPipeline, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, folder = dit
    with Sampler.open(folder / "per_exit") as sampler:
        ran: list[int] = []
        evaluate = sampler.engine.evaluate
        monkeypatch.setattr(
            sampler.engine,
            "evaluate",
            lambda depth, *rest: ran.append(depth) or evaluate(depth, *rest),
        )
        with use_engines(pipe, sampler, schedule=[5, 2]):  # t = 0 first
            pictures(pipe)
        assert ran == [2] * (STEPS // 2) + [5] * (STEPS // 2)
        ran.clear()
        with use_engines(pipe, sampler, schedule=["again", "forecast1", 5, 2]) as engines:
            pictures(pipe)
            assert ran == [2, 2, 5, 5]
            # Out of order: there is nothing to forecast from.
            engines(torch.zeros((1, 4, 8, 8)), torch.tensor([400]), torch.tensor([3]))
            assert ran == [2, 2, 5, 5, 5]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_forecasts_are_those_of_the_sampler(dit: tuple[DiTPipeline, Path], guidance: float) -> None:
    """The oracle: the sampler's own loop, with the scheduler's timesteps."""
    from eecompile.compiler.schedulers.program import program_from_scheduler

    pipe, folder = dit
    choices = ["forecast2", 5, "forecast1", 5, "again", 5, 5, 5]
    network = pipe.transformer
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 7])
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    with use_engines(pipe, folder / "per_exit", schedule=choices) as engines, torch.no_grad():
        state = x
        for t in scheduler.timesteps:
            twice = torch.cat([state, state]) if guidance != 1 else state
            both = torch.cat([labels, torch.full((2,), 1000)]) if guidance != 1 else labels
            found = engines(twice, timestep=t.expand(len(twice)), class_labels=both).sample
            prediction, _ = found.chunk(2, dim=1)
            if guidance != 1:
                with_, without = prediction.chunk(2)
                prediction = without + guidance * (with_ - without)
            state = scheduler.step(prediction, t, state).prev_sample
        sampler = engines.sampler
        program = program_from_scheduler(
            DDIMScheduler(clip_sample=False), STEPS, process=sampler.interface.process
        )
        program = program.with_choices(
            lambda time: engines.schedule.choice_at(time, sampler.interface.process.timesteps)
        )
        expected = sampled(sampler, program, x, labels, guidance)
    assert network is pipe.transformer
    scale = np.abs(expected).max()
    assert np.abs(state.numpy() - expected).max() < 1e-4 * scale


def sampled(sampler: Sampler, program: Any, x: torch.Tensor, labels: Any, guidance: float) -> Any:
    """A program from given noise, by the tests' own interpreter of programs."""
    engine = sampler.engine

    def network(depth: int, state: Any, t: float) -> Any:
        def predicted(label: Any) -> Any:
            times = np.full(2, t, np.float32)
            given = {"label": label.numpy()}
            return np.float64(engine.evaluate(depth, np.float32(state), times, given)[0])

        with_ = predicted(labels)
        if guidance == 1:
            return with_
        without = predicted(torch.full((2,), 1000))
        return without + guidance * (with_ - without)

    return run(program, network, lambda index: np.float64(x.numpy()) / program.initial)


@pytest.mark.parametrize("given", [{"hidden_states": 0}, {"cross_attention_kwargs": {"a": 1}}])
def test_a_call_with_other_inputs_is_refused(
    dit: tuple[DiTPipeline, Path], given: dict[str, Any]
) -> None:
    pipe, folder = dit
    inputs = {
        "hidden_states": torch.zeros((1, 4, 8, 8)),
        "timestep": torch.tensor([3]),
        "class_labels": torch.tensor([3]),
    }
    for name, value in given.items():
        inputs[name] = value
        if not value:
            del inputs[name]
    told = pytest.raises(UsageError, match=r"hidden_states|cross_attention_kwargs")
    with use_engines(pipe, folder / "per_exit") as engines, told:
        engines(**inputs)


def test_an_unknown_argument_is_refused(dit: tuple[DiTPipeline, Path]) -> None:
    pipe, folder = dit
    told = pytest.raises(UsageError, match="a call that the network would not take")
    with use_engines(pipe, folder / "per_exit") as engines, told:
        engines(torch.zeros((1, 4, 8, 8)), image=3)


def test_the_engines_of_another_network_are_refused(
    dit: tuple[DiTPipeline, Path], engine_sets: dict[str, Path]
) -> None:
    pipe, _ = dit
    told = pytest.raises(UsageError, match="engines of fashion-dit, which take x, t, label")
    with told, use_engines(pipe, engine_sets["per_exit"]):
        raise AssertionError
    with pytest.raises(UsageError, match="without a transformer"), use_engines(object(), "x"):
        raise AssertionError


def test_spans_are_for_the_sampler(dit: tuple[DiTPipeline, Path]) -> None:
    pipe, folder = dit
    told = pytest.raises(UsageError, match="skips spans")
    with told, use_engines(pipe, folder / "chained", schedule=["5/2-3:0", 5]):
        raise AssertionError


def test_pixart_takes_its_text(network_sets: Sets) -> None:
    """As diffusers' PixArtAlphaPipeline calls it; the pipeline itself needs transformers."""
    folder = network_sets("pixart")
    network = transformer(PixArtTransformer2DModel, folder)
    draws = torch.Generator().manual_seed(2)
    x = torch.randn((2, 4, 8, 8), generator=draws)
    given = {
        "encoder_hidden_states": torch.randn((2, 7, 12), generator=draws),
        "encoder_attention_mask": torch.tensor([[1.0] * 7, [1.0] * 3 + [0.0] * 4]),
        "timestep": torch.tensor([500, 500]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }
    with torch.no_grad(), Sampler.open(folder / "per_exit") as sampler:
        (expected,) = network(x, **given)
        (found,) = EngineNetwork(network, sampler, "full")(x, **given)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_arguments_lie_at_any_depth() -> None:
    held = {"rope": (1, {"sin": 2}), "x": 3}
    assert _taken(held, ["rope", "1", "sin"]) == (2, {"rope": {0: 1, 1: {"sin": None}}, "x": 3})
    assert _taken(held, ["rope", "2"])[0] is None
    assert _taken(held, ["x", "y"]) == (None, held)


@pytest.mark.slow
def test_a_pipeline_in_memory_is_exported_and_runs_on_its_engines(
    decoder: AutoencoderKL, network: Callable[[str], Path], tmp_path: Path
) -> None:
    own = transformer(DiTTransformer2DModel, network("dit of diffusers"))
    pipe = DiTPipeline(own, decoder, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    expected = pictures(pipe, 4.0)
    manifest = export_pipeline(pipe, tmp_path / "mine", exits=[2, 5])
    assert manifest.interface.name == "mine"
    assert [each.depth for each in manifest.exits] == [2, 5]
    engine_set_from_bundle(tmp_path / "mine" / "bundle", Path("cpu"), tmp_path / "cpu")
    with use_engines(pipe, tmp_path / "cpu"):
        assert np.abs(pictures(pipe, 4.0) - expected).max() < 1e-5
        with pytest.raises(UsageError, match="a pipeline whose network is engines"):
            export_pipeline(pipe, tmp_path / "other")
    with pytest.raises(UsageError, match="without a transformer or a unet"):
        export_pipeline(object(), tmp_path / "other")


def stable_diffusion(decoder: AutoencoderKL) -> Any:
    """Stable Diffusion 1.5 at a small size, with random weights; prompts come embedded."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    parts = (decoder, None, None, unet.eval(), DDIMScheduler(clip_sample=False), None, None)
    return StableDiffusionPipeline(*parts, requires_safety_checker=False)


def stable_diffusion_3(decoder: AutoencoderKL) -> Any:
    """Stable Diffusion 3 at a small size, with random weights; prompts come embedded."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        pos_embed_max_size=8,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(network.eval(), scheduler, decoder, *[None] * 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "tokens", "pooled"), [(stable_diffusion, 77, False), (stable_diffusion_3, 333, True)]
)
def test_pipelines_with_text_make_the_same_pictures(
    make: Callable[[Any], Any], tokens: int, pooled: bool, decoder: AutoencoderKL, tmp_path: Path
) -> None:
    """Guidance, a negative prompt, and several pictures of a prompt, as the pipeline does them."""
    pytest.importorskip("transformers")
    pipe = make(decoder)
    pipe.set_progress_bar_config(disable=True)
    draws = torch.Generator().manual_seed(3)
    given = {"prompt_embeds": (2, tokens, 16), "negative_prompt_embeds": (2, tokens, 16)}
    if pooled:
        given |= {"pooled_prompt_embeds": (2, 12), "negative_pooled_prompt_embeds": (2, 12)}
    each = 1 if pooled else 2  # Stable Diffusion 3 does not repeat what comes embedded
    embedded = {name: torch.randn(shape, generator=draws) for name, shape in given.items()}

    def made() -> np.ndarray:
        return pipe(
            **embedded,
            guidance_scale=3.0,
            num_images_per_prompt=each,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(0),
            height=8,
            width=8,
            output_type="latent",
        ).images

    expected = made()
    assert expected.shape == (2 * each, 4, 8, 8)
    export_pipeline(pipe, tmp_path / "mine")
    built = engine_set_from_bundle(tmp_path / "mine" / "bundle", Path("cpu"), tmp_path / "cpu")
    with use_engines(pipe, tmp_path / "cpu", schedule="full"):
        assert (made() - expected).abs().max() < 1e-4 * expected.abs().max()
    whole = built.manifest.interface.exits[-1]
    with use_engines(pipe, tmp_path / "cpu", schedule=["again", whole, whole, whole]):
        assert not torch.allclose(made(), expected)  # the last step forecasts
