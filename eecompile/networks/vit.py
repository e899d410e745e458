"""Parts of vision transformers, with the parameter names that public checkpoints have."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class PatchEmbed(nn.Module):
    """A token for each square patch: float32 [B, channels, H, W] to [B, tokens, width]."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens, row by row."""
        return cast(Tensor, self.proj(x)).flatten(2).transpose(1, 2)


def unpatched(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Pixels [B, channels, H, W] from tokens [B, rows * columns, patch * patch * channels]."""
    patches = tokens.reshape(-1, rows, columns, patch, patch, tokens.shape[-1] // patch**2)
    pixels = patches.permute(0, 5, 1, 3, 2, 4)
    return pixels.reshape(-1, pixels.shape[1], rows * patch, columns * patch)


class Attention(nn.Module):
    """Self-attention over tokens, float32 [B, tokens, width]; ``heads`` divides ``width``."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """As many tokens, mixed."""
        tokens, width = x.shape[1], x.shape[2]
        split = (-1, tokens, self.heads, width // self.heads)
        query, key, value = (
            part.reshape(split).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        mixed = scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(-1, tokens, width)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, exact or by tanh."""

    def __init__(self, width: int, hidden: int, *, tanh: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self._approximate = "tanh" if tanh else "none"

    def forward(self, x: Tensor) -> Tensor:
        """Token by token."""
        return cast(Tensor, self.fc2(gelu(self.fc1(x), approximate=self._approximate)))
