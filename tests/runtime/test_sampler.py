from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.errors import (
    BackendError,
    BundleError,
    ConditionError,
    DigestError,
    NonFiniteError,
    ScheduleError,
    UsageError,
)
from eecompile.runtime.fake import FakeEngine
from eecompile.runtime.interface import Condition, Interface, Sampling, State
from eecompile.runtime.noise import normal_noise
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.schedule import ExitSchedule
from eecompile.runtime.solvers import ddim

LABEL = Condition(dtype="int64", range=(0, 9), default="cycle", null=10)
QUICK = {"steps": 4, "schedule": [12, 3]}


def fake(max_batch: int = 64, conditions: dict[str, Condition] | None = None) -> Sampler:
    """Predicts a mix of the state, the depth and the label."""

    def predict(depth: int, x: Any, t: Any, given: Any) -> Any:
        label = given.get("label", np.zeros(len(x))).reshape(-1, 1)
        return np.tanh(x * depth / 12 + label / 5 - t.reshape(-1, 1) / 1000)

    interface = Interface(
        name="fake",
        exits=(3, 6, 12),
        state=State(shape=(5,)),
        conditions={"label": LABEL} if conditions is None else conditions,
        schedules={"full": ExitSchedule.constant(12)},
        sampling=Sampling(steps=10),
    )
    return Sampler(FakeEngine((3, 6, 12), predict, max_batch), interface)


def test_a_sample_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    together = sampler.sample(5, solver="ddpm", seed=3, guidance=2.0, **QUICK)
    for index in range(5):
        alone = sampler.sample(1, solver="ddpm", seed=3, guidance=2.0, first=index, **QUICK)
        np.testing.assert_allclose(alone[0], together[index], atol=2e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_both_layouts_give_the_same_samples(engine_sets: dict[str, Path]) -> None:
    results = [
        Sampler.open(path).sample(4, steps=10, seed=1, label=[0, 5, 7, 9])
        for path in engine_sets.values()
    ]
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)


def test_seeds_and_labels_matter(sampler: Sampler) -> None:
    first = sampler.sample(1, seed=0, label=3, **QUICK)
    np.testing.assert_array_equal(first, sampler.sample(1, seed=0, label=3, **QUICK))
    for other in ({"seed": 1, "label": 3}, {"seed": 0, "label": 8}):
        assert np.abs(first - sampler.sample(1, **other, **QUICK)).max() > 0.05


def test_the_default_label_cycles_by_sample_index(sampler: Sampler) -> None:
    given = sampler.sample(3, first=9, label=[9, 0, 1], **QUICK)
    np.testing.assert_array_equal(sampler.sample(3, first=9, **QUICK), given)


def test_threads_share_a_sampler(sampler: Sampler) -> None:
    expected = [sampler.sample(2, seed=seed, **QUICK) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda seed: sampler.sample(2, seed=seed, **QUICK), range(6)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_steps_say_what_ran() -> None:
    sampler = fake()
    results = list(sampler.steps(2, solver="ddim", steps=4, schedule=[12, 6, 3, 3]))
    assert [r.index for r in results] == [0, 1, 2, 3]
    assert [r.timestep for r in results] == [999, 749, 499, 249]
    assert [r.depth for r in results] == [3, 3, 6, 12]
    assert [depth for depth, _ in sampler.engine.calls] == [3, 3, 6, 12]  # type: ignore[attr-defined]
    assert all(r.seconds >= 0 and r.state.shape == (2, 5) for r in results)
    expected = sampler.sample(2, solver="ddim", steps=4, schedule=[12, 6, 3, 3])
    np.testing.assert_array_equal(results[-1].state, expected)


def test_steps_may_be_stopped_early() -> None:
    sampler = fake()
    results = sampler.steps(1)
    next(results)
    assert len(sampler.engine.calls) == 1  # type: ignore[attr-defined]


def test_large_requests_are_split_into_batches() -> None:
    sampler = fake(max_batch=4)
    whole = sampler.sample(10, guidance=3.0)
    assert max(size for _, size in sampler.engine.calls) <= 4  # type: ignore[attr-defined]
    np.testing.assert_allclose(whole, fake().sample(10, guidance=3.0), rtol=1e-6)
    single = fake(max_batch=1)
    np.testing.assert_allclose(single.sample(10, guidance=3.0), whole, rtol=1e-6)


def test_guidance_extrapolates_from_the_null_condition() -> None:
    sampler = fake()
    program = sampler.program(partial(ddim, spacing="leading"), 1, 12)
    x = normal_noise(0, range(1), 0, (5,))
    t = np.zeros(1, np.float32)
    evaluate = sampler.engine.evaluate
    with_label = evaluate(12, x, t, {"label": np.array([4])})
    without = evaluate(12, x, t, {"label": np.array([10])})
    output = without + 3.5 * (with_label - without)
    alpha_bar = sampler.interface.process.alpha_bar()[0]
    expected = (x - math.sqrt(1 - alpha_bar) * output) / math.sqrt(alpha_bar)
    found = sampler.sample(1, solver=program, guidance=3.5, label=4)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_schedules_come_in_every_form() -> None:
    sampler = fake()
    forms: list[Any] = ["full", 12, [12, 12], ExitSchedule((12, 12), (0.3,)), None]
    depths = [sampler.program(steps=5, schedule=form).depths for form in forms]
    assert depths == [(12,) * 5] * 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_output_names_step_depth_and_precision(bad: float) -> None:
    def predict(depth: int, x: Any, t: Any, given: Any) -> Any:
        return np.where(t.reshape(-1, 1) < 600, bad, x)

    sampler = fake()
    sampler.engine = FakeEngine((3, 6, 12), predict)
    with pytest.raises(NonFiniteError, match=r"exit 3 at step 2 \(timestep 499, fp32\)"):
        sampler.sample(1, steps=4, schedule=[12, 3, 3])


def test_a_real_engines_nan_is_reported(engine_sets: dict[str, Path]) -> None:
    with Sampler.open(engine_sets["per_exit"]) as sampler:
        step = sampler.program("ddim", 1, 12).steps[0]
        wild = np.full((1, 1, 28, 28), np.inf, np.float32)
        inputs = {"label": np.zeros(1, np.int64)}
        with pytest.raises(NonFiniteError, match="exit 12 at step 0"):
            sampler._predict(0, step, wild, 1.0, inputs, None)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"n": 0}, UsageError, "number of samples 0"),
        ({"steps": 0}, UsageError, "0 steps"),
        ({"steps": 1001}, UsageError, "expected 1 to 1000"),
        ({"seed": -1}, UsageError, "seed -1"),
        ({"first": -1}, UsageError, "first sample -1"),
        ({"guidance": float("nan")}, UsageError, "guidance nan"),
        ({"solver": "euler"}, UsageError, r"'euler'; expected one of \['ddim', 'ddpm'\]"),
        ({"schedule": "fast"}, ScheduleError, r"'fast'; expected one of \['full'\]"),
        ({"schedule": 5}, ScheduleError, "depth 5"),
        ({"schedule": [12, 4]}, ScheduleError, "depth 4"),
        ({"label": 10}, ConditionError, "label = 10; expected a value from 0 to 9"),
        ({"label": -1}, ConditionError, "label = -1"),
        ({"label": 1.5}, ConditionError, "float64"),
        ({"label": [1, 2, 3]}, ConditionError, r"shape \[3\]"),
        ({"label": "shoe"}, ConditionError, "'label'"),
        ({"labels": 1}, ConditionError, r"'labels'; expected one of \['label'\]"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_step(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    sampler = fake()
    with pytest.raises(error, match=words):
        sampler.steps(**{"n": 2, **arguments})
    assert sampler.engine.calls == []  # type: ignore[attr-defined]


def test_a_program_comes_alone_and_fits_the_exits() -> None:
    sampler = fake()
    program = sampler.program("ddim", 3, 12)
    with pytest.raises(UsageError, match="together with steps"):
        sampler.sample(1, solver=program, steps=3)
    deeper = Sampler(FakeEngine((12, 24), lambda *_: 0), sampler.interface)
    deeper.interface = Interface(name="x", exits=(24,), state=State(shape=(5,)))
    with pytest.raises(ScheduleError, match="depth 12"):
        deeper.sample(1, solver=program)


def test_guidance_needs_a_null_condition() -> None:
    required = Condition(dtype="float32", shape=(3,))
    sampler = fake(conditions={"text": required})
    with pytest.raises(ConditionError, match="no condition 'text'"):
        sampler.steps(1)
    with pytest.raises(ConditionError, match="without a null value"):
        sampler.steps(1, guidance=2.0, text=np.zeros(3))
    with pytest.raises(ConditionError, match="without conditions"):
        fake(conditions={}).steps(1, guidance=2.0)
    assert fake(conditions={}).sample(2).shape == (2, 5)


def test_a_damaged_engine_set_is_not_opened(
    engine_sets: dict[str, Path], copied: Callable[[Path], Path]
) -> None:
    folder = copied(engine_sets["chained"])
    path = next(folder.glob("*.onnx"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DigestError, match=path.name):
        Sampler.open(folder)
    with pytest.raises(BundleError, match="no manifest"):
        Sampler.open(folder / "none")


def test_threads_are_checked(engine_sets: dict[str, Path]) -> None:
    with pytest.raises(BackendError, match="-1 threads"):
        Sampler.open(engine_sets["per_exit"], threads=-1)
    with Sampler.open(engine_sets["per_exit"], threads=1) as sampler:
        assert sampler.sample(1, steps=1).shape == (1, 1, 28, 28)
