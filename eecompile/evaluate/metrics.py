"""Distances between two sets of features, and how far they can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from eecompile.arrays import Array, Floats

if TYPE_CHECKING:
    from torch import Tensor


Features = Array
NEIGHBOURS = 3
GROUPS = 10
_ROWS = 1000  # of distances at a time


class Frechet(NamedTuple):
    """A Frechet distance.

    Attributes:
        distance: between the Gaussians fitted to the two sets.
        without: the distance without each group of samples, float64 [GROUPS].
    """

    distance: float
    without: Floats

    @property
    def error(self) -> float:
        """Its standard error from which samples were drawn; the reference is fixed."""
        return _error(self.without)

    def beyond(self, other: Frechet) -> tuple[float, float]:
        """By how much it exceeds another, and the standard error of that.

        For as many samples from the same seeds: what both share cancels.
        """
        return self.distance - other.distance, _error(self.without - other.without)


class Manifolds(NamedTuple):
    """Overlap of two sets, each as large balls as reach the third nearest neighbour.

    Attributes:
        precision: share of the samples that lie in the reference's balls.
        recall: share of the reference that lies in the samples' balls.
    """

    precision: float
    recall: float


def frechet_distance(samples: Features, reference: Features, *, in_turns: bool = False) -> Frechet:
    """Frechet distance (Heusel et al., arXiv 1706.08500, equation 6), by torchmetrics.

    Its standard error is the jackknife's (Efron and Stein, Annals of Statistics 9(3), 1981)
    over :data:`GROUPS` groups, each left out once:
    ``sqrt((g - 1) / g * sum((d_i - mean)^2))``.

    Args:
        samples: float32 [N, D].
        reference: float32 [M, D].
        in_turns: samples are in an order in which every tenth is like the whole, such as
            classes in turns. Groups are then those tenths, and the error is that of samples
            with these very shares of classes; else groups are random, and so are the shares.
    """
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    given = torch.nn.Identity()
    given.num_features = samples.shape[1]
    # Any features, not only Inception's: the class computes the distance of what it is given.
    metric = FrechetInceptionDistance(feature=given, reset_real_features=False)
    metric.update(torch.from_numpy(reference).double(), real=True)

    def distance(rows: Features) -> float:
        metric.reset()
        metric.update(torch.from_numpy(rows).double(), real=False)
        return max(0.0, float(metric.compute()))

    order = np.arange(len(samples))
    group = order * GROUPS // len(samples)
    if not in_turns:  # tenths of samples that go class by class would leave whole classes out
        group = np.random.default_rng(0).permutation(group)
    without = np.array([distance(samples[group != index]) for index in range(GROUPS)])
    return Frechet(distance(samples), without)


def manifolds(samples: Features, reference: Features) -> Manifolds:
    """Precision and recall (Kynkaanniemi et al., arXiv 1904.06991, equations 1 and 2).

    A set's manifold is the union of balls around its members, each reaching its
    :data:`NEIGHBOURS`-th nearest other member.

    Args:
        samples: float32 [N, D], N above :data:`NEIGHBOURS`.
        reference: float32 [M, D], M above :data:`NEIGHBOURS`.
    """
    import torch

    made, real = torch.from_numpy(samples), torch.from_numpy(reference)
    return Manifolds(_share_within(made, real), _share_within(real, made))


def _error(without: Floats) -> float:
    scale = (GROUPS - 1) / GROUPS
    return float(np.sqrt(scale * np.square(without - without.mean()).sum()))


def _share_within(points: Tensor, members: Tensor) -> float:
    """Share of ``points`` that lie in the manifold of ``members``."""
    import torch

    # The nearest member of a member is itself.
    reach = torch.cat(
        [
            torch.cdist(part, members).kthvalue(NEIGHBOURS + 1).values
            for part in torch.split(members, _ROWS)
        ]
    )
    inside = [(torch.cdist(part, members) <= reach).any(1) for part in torch.split(points, _ROWS)]
    return float(torch.cat(inside).double().mean())
