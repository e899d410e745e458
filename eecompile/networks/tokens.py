"""Latents as lists of tokens, as some transformers take them, and back."""

from __future__ import annotations

from torch import Tensor

_SIDE = 2  # of the squares of latents that are one token


def tokens_from_squares(latents: Tensor) -> Tensor:
    """A token for each square of two by two: [B, H / 2 * W / 2, 4 * channels].

    Args:
        latents: [B, channels, H, W].
    """
    channels, height, width = latents.shape[1:]
    rows, columns = height // _SIDE, width // _SIDE
    squares = latents.reshape(-1, channels, rows, _SIDE, columns, _SIDE)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, channels * _SIDE**2)


def squares_from_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents [B, channels, H, W] of the tokens that :func:`tokens_from_squares` makes."""
    squares = tokens.reshape(
        -1, height // _SIDE, width // _SIDE, tokens.shape[-1] // _SIDE**2, 2, 2
    )
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(-1, squares.shape[3], height, width)
