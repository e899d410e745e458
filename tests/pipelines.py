"""Tiny pipelines of diffusers with random weights: their encoders, tokenizers and decoders."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ("a", "photo", "of", "the", "red", "cat", "dog", "in", "snow", "under", "blue", "sky")
_LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789.,'"]


def clip_tokenizer() -> Tokenizer:
    """One that marks both ends of a prompt, and pads with the last mark, as CLIP's does."""
    return marking(["<|endoftext|>", "<|startoftext|>"], "<|startoftext|> $A <|endoftext|>")


def t5_tokenizer() -> Tokenizer:
    """One that marks the end of a prompt, and pads with a token of its own, as T5's does."""
    return marking(["<pad>", "</s>"], "$A </s>")


def marking(marks: list[str], form: str) -> Tokenizer:
    """A tokenizer of words and letters, whose prompts are marked as ``form`` says."""
    pieces = [*marks, "<unk>", *(f"{WORD}{word}" for word in WORDS), *_LETTERS, WORD]
    scores = [(piece, -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(marks)
    ids = [(mark, tokenizer.token_to_id(mark)) for mark in [*marks, "<unk>"]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[pair for pair in ids if pair[0] in form]
    )
    return tokenizer


WORD = "\N{LOWER ONE EIGHTH BLOCK}"  # how such tokenizers write the beginning of a word


def wrapped(tokenizer: Tokenizer, length: int, pad: str, end: str) -> Any:
    """The tokenizer as transformers' pipelines call it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token=pad,
        eos_token=end,
        unk_token="<unk>",
    )


def random_weights(module: nn.Module, seed: int = 0, scale: float = 1.0) -> Any:
    """The module, with weights of the usual size; some start at zero otherwise."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            fan = value[0].numel() if value.ndim > 1 else 50
            value.copy_(scale * torch.randn(value.shape, generator=draws) / fan**0.5)
            if "norm" in name and name.endswith("weight"):
                value.add_(1)
    return module.eval()


def clip(width: int = 16, *, projected: bool = False, seed: int = 1, length: int = 77) -> Any:
    """An encoder of CLIP's kind."""
    config = CLIPTextConfig(
        vocab_size=clip_tokenizer().get_vocab_size(),
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return random_weights(kind(config), seed)


def t5(width: int = 16, *, multilingual: bool = False, seed: int = 2) -> Any:
    """An encoder of T5's kind."""
    options = {
        "vocab_size": t5_tokenizer().get_vocab_size(),
        "d_model": width,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
    }
    if multilingual:
        return random_weights(UMT5EncoderModel(UMT5Config(**options)), seed, 0.5)
    return random_weights(T5EncoderModel(T5Config(**options)), seed, 0.5)


def clip_words(length: int = 77) -> Any:
    """CLIP's tokenizer, as a pipeline calls it."""
    return wrapped(clip_tokenizer(), length, "<|endoftext|>", "<|endoftext|>")


def t5_words(length: int = 512) -> Any:
    """T5's tokenizer, as a pipeline calls it."""
    return wrapped(t5_tokenizer(), length, "<pad>", "</s>")


def autoencoder(**options: Any) -> Any:
    """A decoder of latents with four channels to pictures of twice their size."""
    return random_weights(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=4,
            **options,
        ),
        3,
    )


def stable_diffusion() -> Any:
    """Stable Diffusion 1.5's kind."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip(),
        tokenizer=clip_words(),
        unet=random_weights(unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


def pixart() -> Any:
    """PixArt-alpha's kind, at its 512 pixels' form."""
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=16,
        use_additional_conditions=None,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++")
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_words(120),
        text_encoder=t5(),
        vae=autoencoder(),
        transformer=random_weights(transformer),
        scheduler=scheduler,
    )


def sd3() -> Any:
    """Stable Diffusion 3's kind, with its three encoders."""
    transformer = diffusers.SD3Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        pos_embed_max_size=8,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=random_weights(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(projected=True),
        tokenizer=clip_words(),
        text_encoder_2=clip(8, projected=True, seed=4),
        tokenizer_2=clip_words(),
        text_encoder_3=t5(32),
        tokenizer_3=t5_words(),
    )


def wan() -> Any:
    """Wan 2.1's kind, of videos."""
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        qk_norm="rms_norm_across_heads",
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 0.7, 1.1],
    )
    return diffusers.WanPipeline(
        tokenizer=t5_words(),
        text_encoder=t5(multilingual=True),
        transformer=random_weights(transformer),
        vae=random_weights(vae, scale=0.7),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux() -> Any:
    """Flux dev's kind, which is told its guidance, and shifts its times by size."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 4),
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(),
        tokenizer=clip_words(),
        text_encoder_2=t5(),
        tokenizer_2=t5_words(),
        transformer=random_weights(transformer),
    )
