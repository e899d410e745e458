"""Weights in FP8, as numbers: what was stored, times the scales beside it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from math import ceil

import torch
from torch import Tensor

from eecompile.errors import CheckpointError

LOG = logging.getLogger("eecompile.networks")
_FP8 = frozenset(
    {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}
)
# Of activations, which are computed in full precision here; and ComfyUI's mark.
_UNUSED = re.compile(r"(^|[._])(input_scale|scale_input|output_scale|scaled_fp8)\Z")
_BLOCK = 128  # rows and columns that share a scale, unless the shapes say otherwise


def dequantised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in which FP8 weights are float32; logged where there are any.

    The scale of ``weight`` is ``weight_scale``, ``weight_scale_inv`` or ``scale_weight``
    (compressed-tensors, DeepSeek, ComfyUI): a number, one a row, or one a block of rows and
    columns; what is stored is multiplied by it. FP8 without scales are the numbers themselves.

    Raises:
        CheckpointError: a scale's shape does not fit its weight.
    """
    if not any(value.dtype in _FP8 for value in state.values()):
        return dict(state)
    found = {name: value for name, value in state.items() if not _UNUSED.search(name)}
    # What repeats a smaller storage stays as it is, and is refused: it might not fit in memory.
    stored = [name for name, value in found.items() if value.dtype in _FP8 and _is_whole(value)]
    scaled = 0
    for name in stored:
        whole = found[name].float()
        outer, _, leaf = name.rpartition(".")
        beside = f"{outer}.scale_{leaf}" if outer else f"scale_{leaf}"
        for key in (f"{name}_scale", f"{name}_scale_inv", beside):
            if (scale := found.pop(key, None)) is not None:
                whole = whole * _spread(scale.float(), whole.shape, name, key)
                scaled += 1
        found[name] = whole
    LOG.warning(
        "checkpoint: %d weights in FP8, %s",
        len(stored),
        f"{scaled} of them with scales, become float32"
        if scaled
        else "without scales, taken as they are",
    )
    return found


def _is_whole(value: Tensor) -> bool:
    return value.untyped_storage().nbytes() >= value.numel()


def _spread(scale: Tensor, shape: torch.Size, name: str, key: str) -> Tensor:
    """``scale`` so that it broadcasts over a weight of ``shape``."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.numel() == shape[0] == scale.shape[0]:
        return scale.reshape(-1, *(1 for _ in shape[1:]))
    for sides in (
        tuple(_BLOCK for _ in shape),
        tuple(ceil(length / parts) for length, parts in zip(shape, scale.shape, strict=False)),
    ):
        parts = tuple(ceil(length / side) for length, side in zip(shape, sides, strict=False))
        if len(sides) == len(shape) and parts == tuple(scale.shape):
            for axis, side in enumerate(sides):
                scale = scale.repeat_interleave(side, dim=axis)
            return scale[tuple(slice(length) for length in shape)]
    raise CheckpointError(
        found=f"FP8 weights {name} {list(shape)} with scales {key} {list(scale.shape)}",
        expected=f"one scale, {shape[0]} (one a row), or one a block of rows and columns",
        remedy="dequantise the checkpoint with the library that wrote it, and save that",
    )
