"""DiT and U-ViT once more, as functions of a state_dict, to compare the networks with.

Written from the papers (arXiv 2209.12152 and 2212.09748) and from how the public code
behaves, with none of torch's modules, normalisation, attention or activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal within 1e-5, in values large enough for that to say something."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float32
    assert float((found - expected).abs().max()) <= 1e-5
    assert float(expected.abs().max()) > 0.1


def dit(
    state: State,
    x: Tensor,
    t: Tensor,
    label: Tensor,
    *,
    depth: int,
    heads: int,
    head: str = "final_layer",
) -> Tensor:
    """What a DiT of ``depth`` blocks predicts; further blocks in the state are not read."""
    width, _, patch, _ = state["x_embedder.proj.weight"].shape
    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    tokens = _patches(state, "x_embedder.proj", x) + dit_positions(rows, columns, width)
    hidden = _silu(_linear(state, "t_embedder.mlp.0", _sinusoids(t, 256)))
    condition = _linear(state, "t_embedder.mlp.2", hidden)
    condition = condition + state["y_embedder.embedding_table.weight"][label]
    for index in range(depth):
        block = f"blocks.{index}"
        parts = _linear(state, f"{block}.adaLN_modulation.1", _silu(condition))
        shift1, scale1, gate1, shift2, scale2, gate2 = parts.reshape(-1, 6, 1, width).unbind(1)
        modulated = _normalised(tokens, 1e-6) * (1 + scale1) + shift1
        tokens = tokens + gate1 * _attention(state, f"{block}.attn", modulated, heads)
        modulated = _normalised(tokens, 1e-6) * (1 + scale2) + shift2
        hidden = _gelu_tanh(_linear(state, f"{block}.mlp.fc1", modulated))
        tokens = tokens + gate2 * _linear(state, f"{block}.mlp.fc2", hidden)
    parts = _linear(state, f"{head}.adaLN_modulation.1", _silu(condition))
    shift, scale = parts.reshape(-1, 2, 1, width).unbind(1)
    modulated = _normalised(tokens, 1e-6) * (1 + scale) + shift
    return _image(_linear(state, f"{head}.linear", modulated), patch, x.shape[2:])


def dit_positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of the column, then of the row, float32 [1, rows * columns, width]."""
    omega = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    found = np.empty((rows, columns, width))
    for row in range(rows):
        for column in range(columns):
            across, down = column * omega, row * omega
            found[row, column] = np.concatenate(
                [np.sin(across), np.cos(across), np.sin(down), np.cos(down)]
            )
    return torch.from_numpy(found.reshape(1, rows * columns, width)).float()


def dit_shapes(
    *, depth: int, size: int, channels: int, patch: int, width: int, classes: int, outputs: int
) -> Shapes:
    """Names and shapes in a checkpoint of facebookresearch/DiT."""
    shapes: Shapes = {
        "pos_embed": (1, (size // patch) ** 2, width),
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
        **_linear_shapes("t_embedder.mlp.0", 256, width),
        **_linear_shapes("t_embedder.mlp.2", width, width),
        **_linear_shapes("final_layer.linear", width, patch * patch * outputs),
        **_linear_shapes("final_layer.adaLN_modulation.1", width, 2 * width),
    }
    for index in range(depth):
        block = f"blocks.{index}"
        shapes |= _linear_shapes(f"{block}.attn.qkv", width, 3 * width)
        shapes |= _linear_shapes(f"{block}.attn.proj", width, width)
        shapes |= _linear_shapes(f"{block}.mlp.fc1", width, 4 * width)
        shapes |= _linear_shapes(f"{block}.mlp.fc2", 4 * width, width)
        shapes |= _linear_shapes(f"{block}.adaLN_modulation.1", width, 6 * width)
    return shapes


def uvit(
    state: State, x: Tensor, t: Tensor, label: Tensor | None, *, depth: int, runs: int, heads: int
) -> Tensor:
    """What a U-ViT of ``depth`` blocks and a middle one predicts when ``runs`` run in full.

    A decoder block beyond the exit keeps its skip linear, and nothing else.
    """
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    time = _sinusoids(t, width)
    if "time_embed.0.weight" in state:
        time = _linear(state, "time_embed.2", _silu(_linear(state, "time_embed.0", time)))
    extras = [time] if label is None else [state["label_emb.weight"][label], time]
    image = _patches(state, "patch_embed.proj", x)
    tokens = torch.cat([torch.stack(extras, dim=1), image], dim=1) + state["pos_embed"]
    skips = []
    for index in range(depth // 2):
        tokens = _uvit_block(state, f"in_blocks.{index}", tokens, heads)
        skips.append(tokens)
    tokens = _uvit_block(state, "mid_block", tokens, heads)
    for index in range(depth // 2):
        block = f"out_blocks.{index}"
        joined = torch.cat([tokens, skips.pop()], dim=-1)
        tokens = _linear(state, f"{block}.skip_linear", joined)
        if depth // 2 + 1 + index < runs:
            tokens = _uvit_block(state, block, tokens, heads)
    patches = _linear(state, "decoder_pred", _layer_norm(state, "norm", tokens))
    pixels = _image(patches[:, len(extras) :], patch, x.shape[2:])
    if "final_layer.weight" not in state:
        return pixels
    return functional.conv2d(
        pixels, state["final_layer.weight"], state["final_layer.bias"], padding=1
    )


def uvit_shapes(
    *,
    depth: int,
    size: int,
    channels: int,
    patch: int,
    width: int,
    classes: int,
    conv: bool,
    mlp_time_embed: bool,
    qkv_bias: bool,
) -> Shapes:
    """Names and shapes in a checkpoint of baofff/U-ViT."""
    tokens = (size // patch) ** 2 + (2 if classes else 1)
    shapes: Shapes = {
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        **_linear_shapes("decoder_pred", width, patch * patch * channels),
    }
    if classes:
        shapes["label_emb.weight"] = (classes, width)
    if conv:
        shapes["final_layer.weight"] = (channels, channels, 3, 3)
        shapes["final_layer.bias"] = (channels,)
    if mlp_time_embed:
        shapes |= _linear_shapes("time_embed.0", width, 4 * width)
        shapes |= _linear_shapes("time_embed.2", 4 * width, width)
    encoder = [f"in_blocks.{index}" for index in range(depth // 2)]
    decoder = [f"out_blocks.{index}" for index in range(depth // 2)]
    for block in [*encoder, "mid_block", *decoder]:
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        shapes |= _linear_shapes(f"{block}.attn.qkv", width, 3 * width)
        if not qkv_bias:
            del shapes[f"{block}.attn.qkv.bias"]
        shapes |= _linear_shapes(f"{block}.attn.proj", width, width)
        shapes |= _linear_shapes(f"{block}.mlp.fc1", width, 4 * width)
        shapes |= _linear_shapes(f"{block}.mlp.fc2", 4 * width, width)
    for block in decoder:
        shapes |= _linear_shapes(f"{block}.skip_linear", 2 * width, width)
    return shapes


def _uvit_block(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    x = x + _attention(state, f"{name}.attn", _layer_norm(state, f"{name}.norm1", x), heads)
    hidden = _linear(state, f"{name}.mlp.fc1", _layer_norm(state, f"{name}.norm2", x))
    return x + _linear(state, f"{name}.mlp.fc2", _gelu(hidden))


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    product = torch.einsum("...i,oi->...o", x, state[f"{name}.weight"])
    bias = state.get(f"{name}.bias")
    return product if bias is None else product + bias


def _linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _normalised(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def _layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    return _normalised(x, 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _gelu_tanh(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _attention(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    batch, tokens, width = x.shape
    mixed = _linear(state, f"{name}.qkv", x).reshape(batch, tokens, 3, heads, width // heads)
    query, key, value = mixed.unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(width // heads)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    attended = torch.einsum("bhqk,bkhd->bqhd", weights, value)
    return _linear(state, f"{name}.proj", attended.reshape(batch, tokens, width))


def _sinusoids(t: Tensor, width: int) -> Tensor:
    half = width // 2  # float32, as in the public code: t is up to 1000 times the frequency
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = t.reshape(-1, 1) * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def _patches(state: State, name: str, x: Tensor) -> Tensor:
    """A token a patch, row by row."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    patch = weight.shape[-1]
    pixels = functional.unfold(x, patch, stride=patch)
    return torch.einsum("bin,oi->bno", pixels, weight.flatten(1)) + bias


def _image(tokens: Tensor, patch: int, size: torch.Size) -> Tensor:
    """The image whose patches are the tokens: pixels row by row, channels last within each."""
    batch, count, features = tokens.shape
    pixels = tokens.reshape(batch, count, patch * patch, features // patch**2)
    columns = pixels.permute(0, 3, 2, 1).reshape(batch, features, count)
    return functional.fold(columns, tuple(size), patch, stride=patch)
