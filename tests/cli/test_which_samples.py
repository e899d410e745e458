"""The same options give the same samples, whichever command makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import eecompile
from eecompile import Condition, FakeEngine, Interface, Program, Sampler, SampleRequest, State
from eecompile.cli.values import request_of
from eecompile.compare.arguments import schedules_of, settings_of
from eecompile.compare.candidates import Opened
from eecompile.compare.trajectories import trajectories
from eecompile.evaluate.samples import SampleSource
from eecompile.tune.report import TuningSettings
from eecompile.tune.tuning import tune
from tests.cli.conftest import Run

LABEL = Condition(dtype="int64", range=(0, 5), default="cycle", null=9)
INTERFACE = Interface(
    name="fake", exits=(1, 2), state=State(shape=(3, 4)), conditions={"label": LABEL}
)
GIVEN = {
    "--seed": "5",
    "--guidance": "2",
    "--guidance-interval": "100,800",
    "--set": "label=[3,1,4]",
    "--null": "label=[7,8]",
    "--shape": "3,4",
}
COUNT = 7
Array = NDArray[np.float32]


def predict(depth: int, x: Any, t: Any, given: Any) -> Any:
    label = given["label"].reshape(-1, 1, 1).astype(np.float32)
    return np.float32(0.1 * depth) * x + np.float32(0.05) * label


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(FakeEngine((1, 2), predict), INTERFACE)


@pytest.fixture
def request_() -> SampleRequest:
    """What the commands read from their options."""
    return request_of(
        5, 2.0, GIVEN["--guidance-interval"], [GIVEN["--set"]], [GIVEN["--null"]], "3,4", n=COUNT
    )


@pytest.fixture
def expected(sampler: Sampler) -> Array:
    """Each sample alone."""
    rows = [
        sampler.sample(
            1, solver="ddim", steps=4, schedule=2, first=index, seed=5, guidance=2.0,
            guidance_interval=(100, 800), label=[3, 1, 4][index % 3],
            nulls={"label": [7, 8][index % 2]},
        )
        for index in range(COUNT)
    ]  # fmt: skip
    return np.concatenate(rows)


def test_sample(run: Run, expected: Array, tmp_path: Path, monkeypatch: Any) -> None:
    opened = Sampler(FakeEngine((1, 2), predict), INTERFACE)
    monkeypatch.setattr(eecompile.Sampler, "open", lambda *_, **__: opened)
    options = [word for pair in GIVEN.items() for word in pair]
    more = ("-n", COUNT, "--solver", "ddim", "--steps", 4, "--schedule", 2)
    assert run("sample", "engines", *options, *more, "-o", tmp_path / "out.npy")[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


def test_evaluate(
    sampler: Sampler, request_: SampleRequest, expected: Array, tmp_path: Path
) -> None:
    program = sampler.program("ddim", 4, 2)
    source = SampleSource(sampler, [], program, request_, batch=3, name="full", work=tmp_path)
    source.make(print)
    np.testing.assert_allclose(source.read(0, COUNT), expected, atol=1e-5)


def test_tune(
    sampler: Sampler, request_: SampleRequest, expected: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, full = Sampler.sample_requests, sampler.program("ddim", 4, 2)
    held_out: dict[int, Array] = {}

    def watched(self: Sampler, requests: list[SampleRequest], **options: Any) -> list[Array]:
        made = sample(self, requests, **options)
        program: Program = options["solver"]
        if program.steps == full.steps:
            first = requests[0].first
            held_out.update({first + index: row for index, row in enumerate(made[0])})
        return made

    monkeypatch.setattr(Sampler, "sample_requests", watched)
    settings = TuningSettings(solver="ddim", steps=4, batch=2, seeds=3, held_out=4, minutes=0)
    front = tune(sampler, settings, request_)
    assert sorted(held_out) == list(range(COUNT))
    for index, row in held_out.items():
        np.testing.assert_allclose(row, expected[index], atol=1e-5)
    assert front.settings.digest == request_.digest()


def test_compare(sampler: Sampler, request_: SampleRequest, expected: Array) -> None:
    chosen = schedules_of(INTERFACE, ["1"])
    settings, whole = settings_of(
        INTERFACE, chosen, batches=[1, COUNT], rounds=1, solver="ddim", steps=4, samples=request_
    )
    candidates = {"fake": Opened(INTERFACE, {}, sampler.engine)}
    found = trajectories(
        candidates, INTERFACE, chosen, settings, whole, seconds=0, report=lambda *_: None
    )
    np.testing.assert_allclose(found.states["fake", "full"], expected, atol=1e-5)
    assert settings.digest == request_.digest()
