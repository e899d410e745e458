"""Mochi 1 of diffusers, with an attention that torch.export can trace."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_Original: Any = diffusers.MochiTransformer3DModel  # diffusers is untyped


class Mochi(_Original):  # type: ignore[misc]
    """The same weights, options and results, for masks of which the padding comes last.

    The original picks each sample's tokens, which makes lengths of data; here attention leaves
    padding out.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for block in self.transformer_blocks:
            block.attn1.processor = _attention


def _attention(
    attn: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    attention_mask: Tensor,
    image_rotary_emb: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Joint attention of a video's and a text's tokens, each [B, tokens, width]."""

    def heads(value: Tensor, norm: Any = None) -> Tensor:
        value = value.reshape(*value.shape[:2], attn.heads, -1)
        return value if norm is None else norm(value)

    video, text, count = hidden_states, encoder_hidden_states, hidden_states.shape[1]
    query = _turned(heads(attn.to_q(video), attn.norm_q), *image_rotary_emb)
    key = _turned(heads(attn.to_k(video), attn.norm_k), *image_rotary_emb)
    query = torch.cat([query, heads(attn.add_q_proj(text), attn.norm_added_q)], dim=1)
    key = torch.cat([key, heads(attn.add_k_proj(text), attn.norm_added_k)], dim=1)
    value = torch.cat([heads(attn.to_v(video)), heads(attn.add_v_proj(text))], dim=1)
    counts = attention_mask.bool()
    mask = torch.cat([(counts[:, :1] | True).expand(-1, count), counts], dim=1)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
    mixed = mixed.transpose(1, 2).flatten(2, 3)
    video, text = mixed[:, :count], mixed[:, count:] * counts[..., None]
    video = attn.to_out[1](attn.to_out[0](video))
    return video, attn.to_add_out(text) if hasattr(attn, "to_add_out") else text


def _turned(value: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Pairs of features, [B, tokens, heads, width], turned by the angles of their place."""
    even, odd = value[..., 0::2], value[..., 1::2]
    pairs = [even * cosine - odd * sine, even * sine + odd * cosine]
    return torch.stack(pairs, dim=-1).flatten(-2)
