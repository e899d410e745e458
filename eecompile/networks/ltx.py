"""LTX-Video of diffusers (arXiv 2501.00103), on latents as its decoder takes them."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import Tensor

_Transformer: Any = diffusers.LTXVideoTransformer3DModel  # diffusers is untyped
_Autoencoder: Any = diffusers.AutoencoderKLLTXVideo


class LTX(_Transformer):  # type: ignore[misc]
    """The same weights, options and results, for videos in place of lists of tokens.

    Args:
        rope_interpolation_scale: seconds that a frame of latents lasts, and pixels on the sides of
            one of their places.
        options: of the original, whose patches must be of one latent.
    """

    def __init__(self, rope_interpolation_scale: list[float], **options: Any) -> None:
        super().__init__(**options)
        self.scale = rope_interpolation_scale

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
    ) -> Tensor:
        """The prediction, shaped as ``hidden_states``.

        Args:
            hidden_states: noisy latents, float32 [B, channels, frames, H, W].
            timestep: float32 [B], from 1000 (noise) to 0.
            encoder_hidden_states: embeddings of the text, [B, tokens, width].
            encoder_attention_mask: [B, tokens]: 1 for tokens, 0 for padding.
        """
        channels, frames, height, width = hidden_states.shape[1:]
        prediction = super().forward(
            hidden_states=hidden_states.flatten(2).transpose(1, 2),
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=self.scale,
            return_dict=False,
        )[0]
        made: Tensor = prediction.transpose(1, 2).reshape(-1, channels, frames, height, width)
        return made


class LTXDecoder(_Autoencoder):  # type: ignore[misc]
    """The same weights, with the mean and the deviation of latents that lie among them."""

    def decode(self, z: Tensor) -> Tensor:
        """Frames [B, 3, frames, H, W] of latents as they are sampled, [B, channels, ...]."""
        mean, deviation = (
            each.reshape(-1, 1, 1, 1) for each in (self.latents_mean, self.latents_std)
        )
        latents = z * deviation / self.config.scaling_factor + mean
        frames: Tensor = super().decode(latents, return_dict=False)[0]
        return frames
