"""Feature networks, decoders, and what is kept of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from eecompile.errors import BackendError, UsageError
from eecompile.evaluate.data import ArraySource, Space
from eecompile.evaluate.features import (
    Decoder,
    FeatureNetwork,
    FeatureStore,
    default_features,
    onnx_features,
)
from eecompile.evaluate.metrics import frechet_distance
from tests.evaluate.pictures import feature_network, function, garments, noise, quiet

Array = NDArray[np.float32]
GREY = Space((1, 28, 28), (-1.0, 1.0))


def test_an_onnx_networks_output_is_averaged_over_the_picture(tmp_path: Path) -> None:
    path, given = feature_network(tmp_path / "net.onnx"), garments(5, 0)
    (raw,) = onnxruntime.InferenceSession(path).run(None, {"x": given})
    assert raw.shape == (5, 12, 4, 4)
    found = onnx_features(path, GREY).compute(given)
    np.testing.assert_allclose(found, raw.mean((2, 3)), rtol=1e-6)


def test_pictures_are_scaled_resized_and_given_three_channels(tmp_path: Path) -> None:
    path = function(tmp_path / "net.onnx", "Identity", ("n", 3, 14, 14))
    given = (garments(4, 0) + 1) * 50  # over 0 to 100
    session = onnx_features(path, Space((1, 28, 28), (0.0, 100.0)))
    found = session.compute(given)
    assert found.shape == (4, 3)
    expected = garments(4, 0).mean((1, 2, 3))
    np.testing.assert_allclose(found, expected[:, None].repeat(3, 1), atol=0.02)


def test_anything_else_is_given_as_it_is(tmp_path: Path) -> None:
    path = function(tmp_path / "net.onnx", "Identity", ("n", 2, "length"))
    given = np.random.default_rng(0).normal(scale=9, size=(4, 2, 30)).astype(np.float32)
    found = onnx_features(path, Space((2, 30), None)).compute(given)
    np.testing.assert_allclose(found, given.mean(2), rtol=1e-5)


def test_networks_that_take_something_else_are_refused(tmp_path: Path) -> None:
    wrong = function(tmp_path / "wrong.onnx", "Identity", ("n", 5, 9))
    with pytest.raises(UsageError, match=r"for samples of \[1, 28, 28\]"):
        onnx_features(wrong, GREY)
    fixed = function(tmp_path / "fixed.onnx", "Identity", (1, 1, 28, 28))
    with pytest.raises(UsageError, match="free first axis"):
        onnx_features(fixed, GREY)
    scalar = function(tmp_path / "scalar.onnx", "ReduceMean", ("n", 1, 28, 28), keepdims=0)
    with pytest.raises(UsageError, match=r"shape \[\].*first output"):
        onnx_features(scalar, GREY).compute(garments(3, 0))
    (tmp_path / "broken.onnx").write_text("nothing")
    with pytest.raises(BackendError, match="ONNX Runtime refuses"):
        onnx_features(tmp_path / "broken.onnx", GREY)


def test_latents_have_no_default_features() -> None:
    with pytest.raises(UsageError, match=r"\[4, 32, 32\] without a range.*--decoder.*--features"):
        default_features(Space((4, 32, 32), None))


def test_a_decoder_makes_pictures(tmp_path: Path) -> None:
    latents = Space((4, 3, 3), None)
    path = function(tmp_path / "decoder.onnx", "DepthToSpace", ("n", 4, 3, 3), blocksize=2)
    decoder = Decoder(path, latents)
    assert decoder.space == Space((1, 6, 6), (-1.0, 1.0))
    given = np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(decoder(given)[:, 0, ::2, ::2], given[:, 0])
    with pytest.raises(UsageError, match=r"expected one from \['N', 4, 9, 9\]"):
        Decoder(path, Space((4, 9, 9), None))
    with pytest.raises(UsageError, match="1 or 3, H, W"):
        Decoder(function(tmp_path / "same.onnx", "Identity", ("n", 4, 3, 3)), latents)


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute(samples: Array) -> Array:
        calls.append(len(samples))
        return samples.mean((2, 3))

    def store(digest: str) -> FeatureStore:
        return FeatureStore(tmp_path / "kept", FeatureNetwork("net", digest, compute), quiet)

    given = garments(1100, 0)
    first = store("a").features(ArraySource("garments", given, GREY))
    np.testing.assert_array_equal(first, given.mean((2, 3)))
    assert sum(calls) == 1100
    again = store("a").features(ArraySource("the same", given.copy(), GREY))
    np.testing.assert_array_equal(again, first)
    assert sum(calls) == 1100
    given[700] = 0  # in the second of three portions
    store("a").features(ArraySource("changed", given, GREY))
    assert sum(calls) == 1600
    store("b").features(ArraySource("another network's", given, GREY))
    assert sum(calls) == 2700
    for path in (tmp_path / "kept").iterdir():
        np.save(path, np.zeros((500, 1), np.float32))
    anew = store("b").features(ArraySource("the same", given, GREY))
    assert sum(calls) == 3800, "what was kept is damaged"
    np.testing.assert_array_equal(anew, given.mean((2, 3)))


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = FeatureNetwork("net", "a", lambda samples: np.log(samples.mean((2, 3)) * 0 - 1))
    store = FeatureStore(tmp_path, network, quiet)
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(UsageError, match="features of garments"),
    ):
        store.features(ArraySource("garments", garments(20, 0), GREY))


@pytest.mark.slow
def test_the_default_network_tells_garments_from_noise() -> None:
    network = default_features(GREY)
    one, other, wrong = (
        network.compute(v) for v in (garments(24, 0), garments(24, 1), noise(24, 2))
    )
    assert one.shape == (24, 1280)
    assert frechet_distance(wrong, one).distance > 4 * frechet_distance(other, one).distance


def test_the_default_network_sees_the_same_in_every_range() -> None:
    grey = garments(2, 0)
    expected = default_features(GREY).compute(grey)
    colour = default_features(Space((3, 28, 28), (0.0, 255.0)))
    found = colour.compute(((grey + 1) * 127.5).repeat(3, 1))
    np.testing.assert_allclose(found, expected, atol=1e-3)
