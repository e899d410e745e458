"""U-ViT, a transformer with long skip connections, that predicts from several depths.

The network of Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models"
(arXiv 2209.12152), with the parameter names of its public code (baofff/U-ViT), whose
checkpoints load unchanged. Exits as in ASE (arXiv 2408.05927): the encoder and the
middle block always run; a decoder block beyond the exit loses its attention and its
MLP, and keeps the linear layer that takes the long skip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eecompile.errors import RecipeError
from eecompile.networks.base import check_exits
from eecompile.networks.vit import Attention, Mlp, PatchEmbed, unpatched


def _timestep_features(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the timestep, float32 [B, width]; cosines first."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32) / half
    angles = t[:, None] * exponent.exp()[None]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, *, skip: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """Take in the long skip; a block beyond the exit does only this."""
        assert self.skip_linear is not None
        return cast(Tensor, self.skip_linear(torch.cat([x, skip], dim=-1)))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class UViT(nn.Module):
    """A multi-exit U-ViT, unconditional or conditional on a class.

    A depth counts the blocks whose attention and MLP run: the ``depth // 2`` of the
    encoder, the middle one, and those of the decoder up to the exit. The full network
    has ``depth + 1``.

    Args:
        exits: depths that predict, ascending, from ``depth // 2 + 1`` (no decoder
            block) to ``depth + 1``, which is the last.
        depth: blocks of encoder and decoder together; even.
        size: side of the square input; a multiple of ``patch``.
        channels: of the input and of the prediction.
        patch: side of a patch.
        width: features of a token.
        heads: attention heads; divides ``width``.
        mlp_ratio: hidden features of an MLP over ``width``.
        qkv_bias: whether the attention's first linear layer has a bias.
        mlp_time_embed: whether two linear layers process the timestep's features.
        classes: rows of the table of labels, "no class" included; 0 for none.
        conv: whether a 3x3 convolution ends the network.

    Raises:
        RecipeError: an exit is out of range or unsorted, or a figure does not divide another.
    """

    def __init__(
        self,
        *,
        exits: Sequence[int],
        depth: int,
        size: int,
        channels: int,
        patch: int,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        mlp_time_embed: bool = False,
        classes: int = 0,
        conv: bool = True,
    ) -> None:
        super().__init__()
        if size % patch or width % heads or depth % 2:
            raise RecipeError(
                found=f"size {size}, patch {patch}, width {width}, heads {heads}, depth {depth}",
                expected="patch divides size, heads divide width, and an even depth",
                remedy="give the options that the network was trained with",
            )
        self.exits = check_exits(exits, depth + 1, first=depth // 2 + 1)
        self.width, self.patch, self.side = width, patch, size // patch
        self.extras = 2 if classes else 1
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.time_embed = (
            nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
            if mlp_time_embed
            else nn.Identity()
        )
        if classes:
            self.label_emb = nn.Embedding(classes, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + self.side**2, width))
        shape = (width, heads, mlp_ratio, qkv_bias)
        self.in_blocks = nn.ModuleList(_Block(*shape) for _ in range(depth // 2))
        self.mid_block = _Block(*shape)
        self.out_blocks = nn.ModuleList(_Block(*shape, skip=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch**2 * channels)
        self.final_layer = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks in the order in which they run."""
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        """Predict from every exit.

        Args:
            x: noisy input, float32 [B, channels, size, size].
            t: timestep, float32 [B].
            label: class, int64 [B]; None for an unconditional network.

        Returns:
            One prediction per exit, shallowest first, each shaped as ``x``.
        """
        tokens = self._embed(x, t, label)
        skips = []
        for block in self.in_blocks:
            tokens = block(tokens)
            skips.append(tokens)
        tokens = self.mid_block(tokens)
        predictions = []
        for index in range(len(self.out_blocks) + 1):
            if len(self.in_blocks) + 1 + index in self.exits:
                predictions.append(self._predict(tokens, skips, index))
            if index < len(self.out_blocks):
                block = cast(_Block, self.out_blocks[index])
                tokens = block(block.join(tokens, skips[-1 - index]))
        return tuple(predictions)

    def _embed(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        extras = [self.time_embed(_timestep_features(t, self.width))]
        if label is not None:
            extras.insert(0, self.label_emb(label))
        tokens = torch.cat([*(extra[:, None] for extra in extras), self.patch_embed(x)], dim=1)
        return tokens + self.pos_embed

    def _predict(self, tokens: Tensor, skips: list[Tensor], done: int) -> Tensor:
        """The prediction when ``done`` decoder blocks have run; the others only join skips."""
        for index in range(done, len(self.out_blocks)):
            tokens = cast(_Block, self.out_blocks[index]).join(tokens, skips[-1 - index])
        patches = self.decoder_pred(self.norm(tokens))[:, self.extras :]
        return cast(Tensor, self.final_layer(unpatched(patches, self.side, self.side, self.patch)))
