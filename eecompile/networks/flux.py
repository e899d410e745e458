"""Flux of diffusers, on latents as its decoder takes them."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

from eecompile.networks.tokens import squares_from_tokens, tokens_from_squares

_Original: Any = diffusers.FluxTransformer2DModel  # diffusers is untyped


class Flux(_Original):  # type: ignore[misc]
    """The same weights, options and results, for pictures in place of lists of tokens.

    The pipeline makes tokens of squares of latents, and gives each its row and column; here the
    network does.
    """

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, **inputs: Any
    ) -> Tensor:
        """The prediction, shaped as ``hidden_states``.

        Args:
            hidden_states: noisy latents, float32 [B, channels, H, W].
            encoder_hidden_states: embeddings of the text, [B, tokens, width].
            inputs: ``timestep``, ``pooled_projections``, and perhaps ``guidance``, [B, ...].
        """
        height, width = hidden_states.shape[2:]
        places = (torch.arange(1), torch.arange(height // 2), torch.arange(width // 2))
        prediction = super().forward(
            hidden_states=tokens_from_squares(hidden_states),
            encoder_hidden_states=encoder_hidden_states,
            img_ids=torch.cartesian_prod(*places).float(),
            txt_ids=torch.zeros(encoder_hidden_states.shape[1], 3),
            return_dict=False,
            **inputs,
        )[0]
        return squares_from_tokens(prediction, height, width)
