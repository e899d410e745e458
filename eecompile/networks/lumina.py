"""Lumina of diffusers, with forward passes that torch.export can trace for any batch size.

Lumina-Next (arXiv 2406.18583) and Lumina-Image 2.0 (arXiv 2503.21758).
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

_Next: Any = diffusers.LuminaNextDiT2DModel  # diffusers is untyped
_Image2: Any = diffusers.Lumina2Transformer2DModel


class LuminaNext(_Next):  # type: ignore[misc]
    """The same weights, options and results, for captions of at least one token.

    The original lists the size of each picture, which makes the batch size a length of a list; it
    reads the first. Where a mask leaves out all of a caption, it predicts NaN.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.patch_embedder.forward = self._embedded

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_mask: Tensor,
        image_rotary_emb: Tensor,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The original's; a caption's first token always counts."""
        mask = torch.cat([torch.ones_like(encoder_mask[:, :1]), encoder_mask[:, 1:]], dim=1)
        more = cross_attention_kwargs or {}
        return super().forward(
            hidden_states, timestep, encoder_hidden_states, mask, image_rotary_emb, more
        )

    def _embedded(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Any, Tensor]:
        """Tokens [B, L, width], a full mask [B, L], one size, and their rotary table."""
        side, (batch, channels, height, width) = self.patch_size, x.shape
        rows, columns = height // side, width // side
        patches = x.reshape(-1, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        tokens = self.patch_embedder.proj(patches.flatten(3)).flatten(1, 2)
        mask = torch.ones(batch, rows * columns, dtype=torch.int32)
        return tokens, mask, [(height, width)], table[:rows, :columns].flatten(0, 1)[None]


class Lumina2(_Image2):  # type: ignore[misc]
    """The same weights and options; what it computes is the same, whatever a caption's length.

    The original joins each sample's caption, without its padding, and image, which makes lengths
    of data. Here captions keep their padding, which attention leaves out.
    """

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
    ) -> Tensor:
        """The prediction, float32 [B, C, H, W].

        Args:
            hidden_states: latents, float32 [B, C, H, W].
            timestep: float32 [B], from 0 (noise) to 1.
            encoder_hidden_states: embeddings of the caption, float32 [B, N, D].
            encoder_attention_mask: int64 or bool [B, N]: 1 for tokens, then 0 for padding.
        """
        side, (_, channels, height, width) = self.config.patch_size, hidden_states.shape
        rows, columns, tokens = height // side, width // side, encoder_hidden_states.shape[1]
        time, text = self.time_caption_embed(hidden_states, timestep, encoder_hidden_states)
        mask = encoder_attention_mask.bool()
        text_table, image_table = self._tables(mask, rows, columns)
        patches = hidden_states.reshape(-1, channels, rows, side, columns, side)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        image = self.x_embedder(patches)
        for layer in self.context_refiner:
            text = layer(text, mask, text_table)
        for layer in self.noise_refiner:
            image = layer(image, None, image_table, time)
        joint = torch.cat([text, image], dim=1)
        table = torch.cat([text_table, image_table], dim=1)
        # Of the mask alone: what changes with the latents would have to cross spans of blocks.
        everywhere = torch.cat([mask, (mask[:, :1] | True).expand(-1, rows * columns)], dim=1)
        for layer in self.layers:
            joint = layer(joint, everywhere, table, time)
        out = self.norm_out(joint, time)[:, tokens:]
        out = out.reshape(-1, rows, columns, side, side, self.out_channels)
        picture: Tensor = out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return picture

    def _tables(self, mask: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Rotary tables of caption and image, complex64 [B, tokens, features].

        A token of the caption stands at (its index, 0, 0); a patch at (length of the caption,
        row, column).
        """
        first, *others = (
            torch.view_as_real(table.to(torch.complex64)) for table in self.rope_embedder.freqs_cis
        )
        tokens, ones = mask.shape[1], torch.ones_like(mask, dtype=torch.float32)
        text = torch.cat([first[:tokens], *(o[:1].expand(tokens, -1, -1) for o in others)], dim=1)
        down = others[0][:rows].repeat_interleave(columns, dim=0)
        along = others[1][:columns].repeat(rows, 1, 1)
        inner = torch.cat([down, along], dim=1)
        length = first[mask.sum(dim=1)][:, None].expand(-1, rows * columns, -1, -1)
        batch = ones[:, :1, None, None]
        image = torch.cat([length, inner * batch], dim=2)
        return torch.view_as_complex(text * batch), torch.view_as_complex(image)
