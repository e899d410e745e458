"""A diffusion transformer (DiT) that predicts from several depths.

The network of Peebles and Xie, "Scalable Diffusion Models with Transformers"
(arXiv 2212.09748), with the parameter names of its public code
(facebookresearch/DiT), and exits as in ASE (arXiv 2408.05927), whose code
(taehong-moon/ee-diffusion) has the same names: the final layer is shared, and
applied after each exit's last block. Checkpoints of either load unchanged.

Two additions, both absent from those: a checkpoint may hold a final layer per exit,
``final_layers.DEPTH.*`` in place of ``final_layer.*``; and ``refine_channels`` lets
the final layer emit several features a pixel, which two 3x3 convolutions turn,
together with the noisy input, into the prediction, so that large patches leave no seams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eecompile.errors import CheckpointError, RecipeError
from eecompile.networks.base import check_exits
from eecompile.networks.vit import Attention, Mlp, PatchEmbed, unpatched

# Table 1 of the paper: blocks, width, heads.
_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
_PATCHES = (2, 4, 8)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def _line(width: int, count: int) -> Tensor:
    """Sin-cos positions along one axis, float32 [count, width / 2]."""
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(count, dtype=torch.float64)[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def _rounding(stored: Tensor) -> float:
    """How far fixed values may be from ours in a checkpoint of this precision."""
    return max(1e-4, torch.finfo(stored.dtype).eps) if stored.is_floating_point() else 1e-4


def _grid(rows: Tensor, columns: Tensor) -> Tensor:
    """Two-dimensional positions, [1, R * C, width], from those along each axis.

    The first half of the features encodes the column, the second half the row,
    as in the authors' code.
    """
    shape = (rows.shape[0], columns.shape[0], -1)
    across = columns[None, :, :].expand(shape)
    down = rows[:, None, :].expand(shape)
    return torch.cat([across, down], dim=2).flatten(0, 1)[None]


class _TimestepEmbedder(nn.Module):
    """Sinusoids of the timestep, then two linear layers. t: float32 [B]."""

    frequencies: Tensor

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        half = features // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32) / half
        self.register_buffer("frequencies", exponent.exp(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies[None]
        return cast(Tensor, self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1)))


class _LabelEmbedder(nn.Module):
    """A row per class, and one more for "no class", which guidance needs."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return cast(Tensor, self.embedding_table(label))


class _Block(nn.Module):
    """A transformer block with adaptive layer norm, zero-initialised (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio), tanh=True)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, 1)
        attended = self.attn(_modulate(self.norm1(x), shift1, scale1))
        x = x + gate1.unsqueeze(1) * attended
        widened = self.mlp(_modulate(self.norm2(x), shift2, scale2))
        return cast(Tensor, x + gate2.unsqueeze(1) * widened)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return cast(Tensor, self.linear(_modulate(self.norm_final(x), shift, scale)))


class _Refine(nn.Module):
    """Two 3x3 convolutions over the unpatched features and the noisy input."""

    def __init__(self, features: int, channels: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features + channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, outputs, 3, padding=1)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(F.silu(self.conv1(torch.cat([features, x], dim=1)))))


class DiT(nn.Module):
    """A class-conditional multi-exit diffusion transformer.

    Args:
        exits: depths that predict, ascending; the last is ``depth``.
        depth: number of blocks.
        size: side of the square input, in pixels; a multiple of ``patch``.
        channels: channels of the input and of the prediction.
        patch: side of a patch, in pixels.
        width: features of a token.
        heads: attention heads; divides ``width``.
        mlp_ratio: hidden features of an MLP over ``width``.
        classes: number of classes; label ``classes`` means "no class".
        learn_sigma: whether the network also chooses the variance of DDPM's reverse
            step, which doubles the channels of the prediction.
        largest: longest side of an input, for networks that take inputs of several
            sizes; positions beyond ``size`` go on as before. None takes ``size`` only.
        refine_channels: features a pixel that the final layer hands to two 3x3
            convolutions; 0 leaves the original final layer.

    Raises:
        RecipeError: ``exits`` is empty, unsorted, out of range, or does not end at ``depth``; or
            a figure does not divide another.
    """

    line: Tensor
    positions: Tensor

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
        classes: int,
        learn_sigma: bool = False,
        largest: int | None = None,
        refine_channels: int = 0,
    ) -> None:
        super().__init__()
        self.exits = check_exits(exits, depth)
        if size % patch or width % heads or width % 4:
            raise RecipeError(
                found=f"size {size}, patch {patch}, width {width}, heads {heads}",
                expected="a size divisible by the patch, and a width divisible by the heads and 4",
                remedy="give the options that the network was trained with",
            )
        self.patch, self.classes, self.resizable = patch, classes, largest is not None
        outputs = 2 * channels if learn_sigma else channels
        self.head_channels = refine_channels or outputs
        self.x_embedder = PatchEmbed(channels, width, patch)
        self.t_embedder = _TimestepEmbedder(width)
        self.y_embedder = _LabelEmbedder(classes, width)
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_layer = _FinalLayer(width, patch * patch * self.head_channels)
        self.final_layers = nn.ModuleDict()
        self.refine = (
            _Refine(refine_channels, channels, outputs, 2 * refine_channels)
            if refine_channels
            else None
        )
        line = _line(width, max(size, largest or 0) // patch)
        side = line[: size // patch]
        self.register_buffer("line", line, persistent=False)
        self.register_buffer("positions", _grid(side, side), persistent=False)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        """Predict from every exit.

        Args:
            x: noisy input, float32 [B, channels, size, size].
            t: timestep, float32 [B], in [0, T).
            label: class, int64 [B], in [0, classes].

        Returns:
            One prediction per exit, shallowest first, each shaped as ``x``; with
            ``learn_sigma`` of twice the channels, the variance's after the prediction's.
        """
        tokens, condition = self._embed(x, t, label)
        predictions = []
        for depth, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition)
            if depth in self.exits:
                predictions.append(self._predict(depth, tokens, condition, x))
        return tuple(predictions)

    def fit_checkpoint(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a checkpoint that this network loads, which adapts to it.

        Positions are stored in public checkpoints although they are fixed; heads of
        exits that this network does not have are left out.
        """
        found = dict(state)
        stored = found.pop("pos_embed", None)
        if stored is not None and (
            stored.shape != self.positions.shape
            or not torch.allclose(stored.float(), self.positions, atol=_rounding(stored))
        ):
            raise CheckpointError(
                found=f"pos_embed of shape {list(stored.shape)}, other positions than these",
                expected=f"the sin-cos positions of {list(self.positions.shape)}",
                remedy="check size and patch in [network.options]",
            )
        heads = {name.split(".")[1] for name in found if name.startswith("final_layers.")}
        if heads:
            width, features = self.final_layer.linear.in_features, self.final_layer.features
            for depth in map(str, self.exits):
                self.final_layers[depth] = _FinalLayer(width, features)
            del self.final_layer
            unused = tuple(f"final_layers.{name}." for name in heads - set(self.final_layers))
            found = {name: value for name, value in found.items() if not name.startswith(unused)}
        return found

    def predict_at(self, depth: int, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Predict from ``depth`` alone; the deeper blocks do not run. Arguments as in forward."""
        tokens, condition = self._embed(x, t, label)
        for block in self.blocks[:depth]:
            tokens = block(tokens, condition)
        return self._predict(depth, tokens, condition, x)

    def predict_split(
        self, counts: Sequence[int], x: Tensor, t: Tensor, label: Tensor
    ) -> tuple[Tensor, ...]:
        """Predict some rows from one exit each, the rest from all; what has left does not run on.

        As a fine-tuning step needs it: each block runs for the rows that are still there.

        Args:
            counts: rows that leave at each exit: the first ``counts[0]`` at the shallowest, the
                next ``counts[1]`` at the second, ...; what is left goes through all exits.
            x: as in :meth:`forward`, rows in this order.
            t: as in :meth:`forward`, likewise.
            label: as in :meth:`forward`, likewise.

        Returns:
            One prediction per exit, shallowest first: of the rows that leave there, then of those
            that go through all.
        """
        every = len(x) - sum(counts)
        tokens, condition = self._embed(x, t, label)
        leaving, predictions = dict(zip(self.exits, counts, strict=True)), []
        for depth, block in enumerate(self.blocks, start=1):
            if len(tokens):
                tokens = block(tokens, condition)
            if depth in leaving:
                count, rest = leaving[depth], len(tokens) - every
                rows = [slice(0, count), slice(rest, rest + every)]
                chosen = (torch.cat([v[r] for r in rows]) for v in (tokens, condition, x))
                predictions.append(self._predict(depth, *chosen))
                tokens, condition, x = tokens[count:], condition[count:], x[count:]
        return tuple(predictions)

    def _embed(self, x: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        positions = self.positions
        if self.resizable:
            rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
            positions = _grid(self.line[:rows], self.line[:columns])
        return self.x_embedder(x) + positions, self.t_embedder(t) + self.y_embedder(label)

    def _predict(self, depth: int, tokens: Tensor, condition: Tensor, x: Tensor) -> Tensor:
        head = self.final_layers[str(depth)] if self.final_layers else self.final_layer
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        pixels = unpatched(head(tokens, condition), rows, columns, self.patch)
        return pixels if self.refine is None else cast(Tensor, self.refine(pixels, x))

    def _initialise(self) -> None:
        """As in the authors' code: blocks start as the identity, the prediction as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.x_embedder.proj.weight
        nn.init.xavier_uniform_(projection.view(len(projection), -1))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in self.t_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        modulated = [self.final_layer, *self.blocks]
        zeroed = [cast(nn.Sequential, layer.adaLN_modulation)[1] for layer in modulated]
        zeroed.append(self.final_layer.linear if self.refine is None else self.refine.conv2)
        for layer in zeroed:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)


def dit_from_name(
    *,
    exits: Sequence[int],
    name: str,
    size: int = 32,
    channels: int = 4,
    classes: int = 1000,
    learn_sigma: bool = True,
    largest: int | None = None,
) -> DiT:
    """A DiT of the paper's table 1, such as ``DiT-XL/2``: sizes S, B, L, XL, patches 2, 4, 8.

    Args:
        exits: depths that predict, ascending; the last is the network's depth.
        name: ``DiT-SIZE/PATCH``.
        size: side of the square input, in pixels or, as in the paper, latents.
        channels: of the input.
        classes: number of classes.
        learn_sigma: as in :class:`DiT`; the public checkpoints have it.
        largest: as in :class:`DiT`.

    Raises:
        RecipeError: there is no such network, or the exits do not fit it.
    """
    letters, _, patch = name.removeprefix("DiT-").partition("/")
    if letters not in _SIZES or patch not in map(str, _PATCHES):
        raise RecipeError(
            found=f"a network named {name!r}",
            expected=f"DiT-SIZE/PATCH with a size of {list(_SIZES)} and a patch of "
            f"{list(_PATCHES)}",
            remedy="name one of these, or use eecompile.networks.dit:DiT with its own options",
        )
    depth, width, heads = _SIZES[letters]
    return DiT(
        exits=exits,
        depth=depth,
        size=size,
        channels=channels,
        patch=int(patch),
        width=width,
        heads=heads,
        classes=classes,
        learn_sigma=learn_sigma,
        largest=largest,
    )
