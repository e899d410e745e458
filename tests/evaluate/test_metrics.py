"""The figures against second formulas, and against what must come out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from eecompile.evaluate.metrics import frechet_distance, manifolds

Array = NDArray[np.float32]


def skewed(count: int, seed: int, *, shift: float = 0.0, features: int = 6) -> Array:
    """Correlated features whose spreads differ by three orders of magnitude."""
    mixing = np.random.default_rng(99).normal(size=(features, features))
    mixing *= np.geomspace(1e-2, 10, features)
    drawn = np.random.default_rng(seed).normal(size=(count, features))
    return (drawn @ mixing + shift).astype(np.float32)


def second_formula(one: Array, other: Array) -> float:
    """The Frechet distance by symmetric square roots."""
    first, second = (np.cov(v.astype(np.float64), rowvar=False) for v in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ second @ root)
    mean = one.mean(0, dtype=np.float64) - other.mean(0, dtype=np.float64)
    trace = np.trace(first) + np.trace(second)
    return float(mean @ mean + trace - 2 * np.sqrt(np.maximum(cross, 0)).sum())


def naive(points: Array, members: Array) -> float:
    """Share of points within the ball of a member, one distance at a time."""
    reach = [sorted(np.linalg.norm(m - other) for other in members)[3] for m in members]
    inside = [
        any(np.linalg.norm(p - m) <= r for m, r in zip(members, reach, strict=True)) for p in points
    ]
    return float(np.mean(inside))


@pytest.mark.parametrize(("shift", "count"), [(0.0, 400), (3.0, 400), (0.5, 25)])
def test_the_distance_is_that_of_a_second_formula(shift: float, count: int) -> None:
    one, other = skewed(count, 1, shift=shift), skewed(300, 2)
    assert frechet_distance(one, other).distance == pytest.approx(
        second_formula(one, other), rel=1e-6
    )


def test_the_distance_of_a_moved_set_is_the_square_of_the_move() -> None:
    one = skewed(200, 1)
    moved = one + np.float32(2)
    assert frechet_distance(moved, one).distance == pytest.approx(6 * 2**2, rel=1e-4)


def test_fewer_samples_than_features_give_a_finite_distance() -> None:
    one, other = skewed(20, 1, features=40), skewed(30, 2, features=40)
    found = frechet_distance(one, other)
    assert found.distance == pytest.approx(second_formula(one, other), rel=1e-5)
    assert found.distance > 0
    assert np.isfinite(found.error)


def test_a_set_is_no_distance_from_itself_and_overlaps_it_wholly() -> None:
    one = skewed(200, 1)
    assert frechet_distance(one, one).distance < 1e-6 * np.trace(np.cov(one, rowvar=False))
    assert manifolds(one, one) == (1.0, 1.0)


def test_the_standard_error_is_the_spread_over_fresh_samples() -> None:
    reference = skewed(2000, 0, shift=1.0)
    found = [frechet_distance(skewed(300, seed), reference) for seed in range(1, 31)]
    spread = np.std([one.distance for one in found], ddof=1)
    assert np.median([one.error for one in found]) == pytest.approx(spread, rel=0.4)


def test_a_difference_is_known_better_than_either_distance_where_seeds_are_the_same() -> None:
    reference = skewed(2000, 0, shift=1.0)
    found, errors, own = [], [], []
    for seed in range(1, 21):
        one = skewed(300, seed)
        worse = one + skewed(300, 1000 + seed) * np.float32(0.2)
        two = frechet_distance(worse, reference), frechet_distance(one, reference)
        beyond, error = two[0].beyond(two[1])
        assert beyond == pytest.approx(two[0].distance - two[1].distance)
        own.append(two[0].error)
        found.append(beyond)
        errors.append(error)
    assert np.median(errors) == pytest.approx(np.std(found, ddof=1), rel=0.5)
    assert np.median(errors) < 0.5 * np.median(own)


def test_the_standard_error_falls_with_the_number_of_samples() -> None:
    reference = skewed(2000, 0, shift=3.0)
    few, many = (
        np.mean([frechet_distance(skewed(n, seed), reference).error for seed in range(1, 9)])
        for n in (1000, 16_000)
    )
    assert many == pytest.approx(few / 4, rel=0.5)


def test_the_standard_error_knows_classes_in_turns_and_survives_classes_in_order() -> None:
    """Ten classes far apart: what is drawn within them hardly matters beside how many of each."""
    classes = np.repeat(np.arange(10, dtype=np.float32), 60)[:, None]
    reference = skewed(600, 0) / 30 + classes + 3

    def in_order(seed: int) -> Array:
        return skewed(600, seed) / 30 + classes

    def in_turns(seed: int) -> Array:
        return np.concatenate([in_order(seed)[first::60] for first in range(60)])

    known = [frechet_distance(in_turns(seed), reference, in_turns=True) for seed in range(1, 16)]
    spread = np.std([one.distance for one in known], ddof=1)
    assert np.median([one.error for one in known]) == pytest.approx(spread, rel=0.4)
    errors = [frechet_distance(rows(1), reference).error for rows in (in_order, in_turns)]
    assert min(errors) > 10 * spread  # the shares of classes are taken for chance
    assert max(errors) < 3 * min(errors)


def test_precision_and_recall_are_those_of_a_naive_count() -> None:
    one, other = skewed(60, 1, shift=0.3), skewed(45, 2)
    assert manifolds(one, other) == pytest.approx((naive(one, other), naive(other, one)))


def test_precision_is_of_the_samples_and_recall_of_the_reference() -> None:
    draws = np.random.default_rng(0)
    reference = draws.normal(size=(300, 3)).astype(np.float32)
    reference[150:] += 50  # two clusters
    one_cluster = draws.normal(size=(300, 3)).astype(np.float32)
    precision, recall = manifolds(one_cluster, reference)
    assert precision > 0.8
    assert recall < 0.5
    assert manifolds(one_cluster + 1000, reference) == (0.0, 0.0)


def test_more_rows_than_are_compared_at_a_time() -> None:
    one, other = skewed(1203, 1), skewed(1101, 2)
    whole = manifolds(one, other)
    order = np.random.default_rng(0).permutation(len(one))
    assert manifolds(one[order], other) == pytest.approx(whole, abs=2e-3)
    assert 0.5 < whole.precision < 1
