"""Tiny pipelines of diffusers with random weights: their encoders, tokenizers and decoders."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
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


def stable_diffusion_xl() -> Any:
    """Stable Diffusion XL's kind, with its two encoders and its sizes."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=24,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
        use_linear_projection=True,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025, force_upcast=False),
        text_encoder=clip(),
        tokenizer=clip_words(),
        text_encoder_2=clip(8, projected=True, seed=4),
        tokenizer_2=clip_words(),
        unet=random_weights(unet),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
    )


def auraflow() -> Any:
    """AuraFlow's kind, whose two lists of blocks are one after the other."""
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=t5_words(256),
        text_encoder=t5(multilingual=True),
        vae=autoencoder(),
        transformer=random_weights(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def hunyuan() -> Any:
    """HunyuanDiT's kind, with its two encoders, its sizes and its style."""
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        activation_fn="gelu-approximate",
        sample_size=8,
        hidden_size=16,
        num_layers=4,
        mlp_ratio=2.0,
        learn_sigma=True,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=77,
        text_len_t5=256,
    )
    config = BertConfig(
        vocab_size=clip_tokenizer().get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=77,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    return diffusers.HunyuanDiTPipeline(
        vae=autoencoder(),
        text_encoder=random_weights(BertModel(config), 5),
        tokenizer=clip_words(),
        text_encoder_2=t5(),
        tokenizer_2=t5_words(256),
        transformer=random_weights(transformer),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.03,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def gemma(width: int = 16) -> Any:
    """An encoder of Gemma 2's kind."""
    config = Gemma2Config(
        vocab_size=gemma_tokenizer().get_vocab_size(),
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=16,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    return random_weights(Gemma2Model(config), 6)


def gemma_tokenizer() -> Tokenizer:
    """One that marks the beginning of a prompt, as Gemma's does."""
    return marking(["<pad>", "<eos>", "<bos>"], "<bos> $A")


def gemma_words(length: int = 300) -> Any:
    """Gemma's tokenizer, as a pipeline calls it."""
    return wrapped(gemma_tokenizer(), length, "<pad>", "<eos>")


def sana() -> Any:
    """Sana's kind, whose prompts follow an instruction."""
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        attention_head_dim=8,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return diffusers.SanaPipeline(
        tokenizer=gemma_words(),
        text_encoder=gemma(),
        vae=random_weights(vae, 3),
        transformer=random_weights(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
    )


def lumina2() -> Any:
    """Lumina 2's kind, whose prompts follow an instruction, and whose time ends at the data."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 16, 16),
        cap_feat_dim=16,
    )
    return diffusers.Lumina2Pipeline(
        transformer=random_weights(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=gemma(),
        tokenizer=gemma_words(256),
    )


def ltx() -> Any:
    """LTX-Video's kind."""
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=16,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        patch_size=4,
        patch_size_t=1,
        timestep_conditioning=False,
        encoder_causal=True,
        decoder_causal=False,
    )
    random_weights(vae, 3)
    vae.latents_mean.copy_(torch.linspace(-0.3, 0.4, 8))
    vae.latents_std.copy_(torch.linspace(0.6, 1.4, 8))
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
        vae=vae,
        text_encoder=t5(),
        tokenizer=t5_words(128),
        transformer=random_weights(transformer),
    )


def qwen_image() -> Any:
    """Qwen-Image's kind, whose prompts are put into a conversation."""
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 2.0, 0.7, 1.1],
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": qwen_tokenizer().get_vocab_size(),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1e6,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
    )
    pipe = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=random_weights(vae, 3, 0.7),
        text_encoder=random_weights(Qwen2_5_VLForConditionalGeneration(config), 7),
        tokenizer=wrapped(qwen_tokenizer(), 1024, "<|endoftext|>", "<|im_end|>"),
        transformer=random_weights(transformer),
    )
    before = pipe.prompt_template_encode.partition("{}")[0]
    pipe.prompt_template_encode_start_idx = len(qwen_tokenizer().encode(before).ids)
    return pipe


def qwen_tokenizer() -> Tokenizer:
    """One that marks nothing itself, as Qwen's does."""
    return marking(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "$A")


def stable_audio() -> Any:
    """Stable Audio Open's kind, of waveforms, which is told seconds."""
    transformer = diffusers.StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=24,
        cross_attention_input_dim=12,
    )
    projection = StableAudioProjectionModel(
        text_encoder_dim=16, conditioning_dim=12, min_value=0, max_value=32
    )
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    return diffusers.StableAudioPipeline(
        vae=random_weights(vae, 3),
        text_encoder=t5(),
        projection_model=random_weights(projection, 8),
        tokenizer=t5_words(128),
        transformer=random_weights(transformer),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            sigma_min=0.3,
            sigma_max=500,
            solver_order=2,
            prediction_type="v_prediction",
            sigma_data=1.0,
            sigma_schedule="exponential",
        ),
    )
