"""Whole evaluations of ready samples: real against real, and noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from eecompile.errors import UsageError
from eecompile.evaluate.evaluation import Options, evaluate
from eecompile.evaluate.report import Evaluation
from eecompile.runtime.request import SampleRequest
from eecompile.store.files import form_bytes
from tests.evaluate.pictures import feature_network, function, garments, noise, quiet

Array = NDArray[np.float32]
Evaluate = Callable[..., Evaluation]


@pytest.fixture
def evaluated(tmp_path: Path) -> Evaluate:
    """Evaluates arrays against 400 garments on the small network's features."""
    network = feature_network(tmp_path / "net.onnx")

    def call(*sets: Array, reference: Array | None = None, **more: Any) -> Evaluation:
        real = garments(400, 0) if reference is None else reference
        np.save(tmp_path / "real.npy", real)
        for index, samples in enumerate(sets):
            np.save(tmp_path / f"samples-{index}.npy", samples)
        options = Options(
            **{
                "reference": tmp_path / "real.npy",
                "request": SampleRequest(n=20),
                "work": tmp_path / "work",
                "features": network,
                "samples": tuple(tmp_path / f"samples-{index}.npy" for index in range(len(sets))),
                **more,
            }
        )
        return evaluate([], [], options, quiet)

    return call


def test_real_is_near_real_and_noise_is_far(evaluated: Evaluate) -> None:
    found = evaluated(garments(400, 1), noise(400, 2), garments(400, 0))
    near, far, same = found.rows
    assert far.frechet_distance > 20 * near.frechet_distance
    assert (far.precision, far.recall) == (0, 0)
    assert near.precision > 0.6
    assert near.recall > 0.6
    assert same.frechet_distance < 1e-4 * near.frechet_distance
    assert (same.precision, same.recall) == (1, 1)
    assert near.name == "samples-0.npy"
    assert found.floor.frechet_distance < 5 * near.frechet_distance


def test_the_floor_is_of_halves_unless_there_is_more(evaluated: Evaluate, tmp_path: Path) -> None:
    halves = evaluated(garments(400, 1))
    assert halves.floor_kind == "halves"
    assert halves.floor.samples == 200
    assert any("--floor" in warning for warning in halves.warnings)
    np.save(tmp_path / "more.npy", garments(900, 7))
    more = evaluated(garments(400, 1), floor=tmp_path / "more.npy")
    assert more.floor_kind == "data"
    assert more.floor.samples == 400  # as many as the reference
    assert more.floor.name == "more.npy"
    assert not more.warnings
    assert more.rows == halves.rows
    other = evaluated(garments(400, 7))  # the floor is a row like any other
    assert more.floor.frechet_distance > 0
    assert other.rows[0].samples == 400


def test_too_few_samples_are_refused(evaluated: Evaluate) -> None:
    found = evaluated(garments(20, 1), reference=garments(40, 0))
    assert found.dimensions == 12
    assert not any("features need" in warning for warning in found.warnings)
    with pytest.raises(UsageError, match=r"19 samples in .*samples-0.npy.*20 or more"):
        evaluated(garments(19, 1))
    with pytest.raises(UsageError, match=r"19 samples in .*real.npy"):
        evaluated(garments(20, 1), reference=garments(19, 0))
    with pytest.raises(UsageError, match="no engine set and no --samples"):
        evaluated()


def test_a_rank_deficient_covariance_is_warned_of(evaluated: Evaluate, tmp_path: Path) -> None:
    function(tmp_path / "wide.onnx", "Flatten", ("n", 1, 14, 14))  # 196 features
    sets = {"reference": garments(150, 0), "features": tmp_path / "wide.onnx"}
    found = evaluated(garments(150, 1), **sets)
    assert found.dimensions == 196
    for name in ("the reference has 150", "samples-0.npy has 150"):
        assert any(name in warning and "(197)" in warning for warning in found.warnings)
    assert np.isfinite(found.rows[0].frechet_distance)


def test_latents_are_decoded_before_they_are_compared(evaluated: Evaluate, tmp_path: Path) -> None:
    decoder = function(tmp_path / "decoder.onnx", "DepthToSpace", ("n", 4, 14, 14), blocksize=2)

    def latents(pictures: Array) -> Array:
        """What the decoder makes these pictures of, out of any range."""
        blocks = pictures[:, 0].reshape(-1, 14, 2, 14, 2)
        return np.ascontiguousarray(blocks.transpose(0, 2, 4, 1, 3).reshape(-1, 4, 14, 14))

    plain = evaluated(garments(60, 1))
    decoded = evaluated(latents(garments(60, 1)), decoder=decoder)
    assert decoded.rows[0] == plain.rows[0]


def test_what_is_written_can_be_read_again(evaluated: Evaluate) -> None:
    found = evaluated(garments(30, 1))
    written = form_bytes(found)
    assert msgspec.json.decode(written, type=Evaluation) == found
    raw = msgspec.json.decode(written)
    assert raw["format"] == 2
    assert set(raw["rows"][0]) == {
        "name", "samples", "frechet_distance", "error", "precision", "recall",
    }  # fmt: skip


def test_nan_among_samples_is_refused(evaluated: Evaluate) -> None:
    broken = garments(40, 1)
    broken[33] = np.nan
    with pytest.raises(UsageError, match=r"NaN or infinity in .*samples-0.npy"):
        evaluated(broken)


def test_a_trial_looks_at_some_of_the_reference(evaluated: Evaluate) -> None:
    trial = evaluated(garments(40, 1), reference_n=50)
    assert trial.reference_samples == 50
    assert trial.floor.samples == 25
    assert evaluated(garments(40, 1), reference_n=1000).reference_samples == 400
    with pytest.raises(UsageError, match="--reference-n 5"):
        evaluated(garments(40, 1), reference_n=5)
