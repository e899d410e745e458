"""Qwen-Image of diffusers (arXiv 2508.02324), on latents of pictures."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import Tensor

from eecompile.networks.tokens import squares_from_tokens, tokens_from_squares

_Transformer: Any = diffusers.QwenImageTransformer2DModel  # diffusers is untyped
_Autoencoder: Any = diffusers.AutoencoderKLQwenImage


class QwenImage(_Transformer):  # type: ignore[misc]
    """The same weights, options and results, for pictures in place of lists of tokens."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
    ) -> Tensor:
        """The prediction, shaped as ``hidden_states``.

        Args:
            hidden_states: noisy latents, float32 [B, channels, H, W].
            timestep: float32 [B], from 1 (noise) to 0.
            encoder_hidden_states: embeddings of the text, [B, tokens, width].
            encoder_hidden_states_mask: int64 or bool [B, tokens]: 1 for tokens, 0 for padding.
        """
        height, width = hidden_states.shape[2:]
        prediction = super().forward(
            hidden_states=tokens_from_squares(hidden_states),
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            encoder_hidden_states_mask=encoder_hidden_states_mask.bool(),
            img_shapes=[[(1, height // 2, width // 2)]],
            return_dict=False,
        )[0]
        return squares_from_tokens(prediction, height, width)


class QwenImageDecoder(_Autoencoder):  # type: ignore[misc]
    """The same weights; a picture is a video of one frame, and is taken and given without it."""

    def decode(self, z: Tensor) -> Tensor:
        """Pictures [B, 3, 8 * H, 8 * W] of latents [B, channels, H, W]."""
        (frames,) = super().decode(z[:, :, None], return_dict=False)
        picture: Tensor = frames[:, :, 0]
        return picture
