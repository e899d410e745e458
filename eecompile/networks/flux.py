"""Flux of diffusers, on latents as its decoder takes them."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

_Original: Any = diffusers.FluxTransformer2DModel  # diffusers is untyped
_SIDE = 2  # of the squares of latents that are one token


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
        channels, height, width = hidden_states.shape[1:]
        rows, columns = height // _SIDE, width // _SIDE
        tokens = hidden_states.reshape(-1, channels, rows, _SIDE, columns, _SIDE)
        tokens = tokens.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, channels * _SIDE**2)
        grid = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
        prediction = super().forward(
            hidden_states=tokens,
            encoder_hidden_states=encoder_hidden_states,
            img_ids=grid.float(),
            txt_ids=torch.zeros(encoder_hidden_states.shape[1], 3),
            return_dict=False,
            **inputs,
        )[0]
        squares = prediction.reshape(-1, rows, columns, channels, _SIDE, _SIDE)
        made: Tensor = squares.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)
        return made
