from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
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
from eecompile.programs.choice import Exit, Forecast
from eecompile.programs.interface import Condition, Interface, Resizable, Sampling, State
from eecompile.programs.process import Process
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.programs.schedule import ExitSchedule
from eecompile.programs.solvers import ddim
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.trajectory.noise import normal_noise

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


def test_a_default_schedule_that_forecasts_is_for_the_recipes_solver_and_steps() -> None:
    schedules = {"full": ExitSchedule.constant(12)}
    schedules |= {
        "half": ExitSchedule.parse("12,forecast1,12,12"),
        "shallow": ExitSchedule.parse("3"),
    }
    made = fake()
    interface = msgspec.structs.replace(
        made.interface, schedules=schedules, sampling=Sampling(steps=10, schedule="half")
    )
    with Sampler(made.engine, interface) as sampler:
        assert Forecast(1) in sampler.program().choices
        assert sampler.program() == sampler.program("ddim", 10)
        for solver, steps in (("ddim", 9), ("ddpm", None), (None, 20)):
            assert set(sampler.program(solver, steps).choices) == {Exit(12)}
            assert Forecast(1) in sampler.program(solver, steps, "half").choices, "it is asked for"
    shallow = msgspec.structs.replace(interface, sampling=Sampling(steps=10, schedule="shallow"))
    with Sampler(made.engine, shallow) as sampler:
        assert set(sampler.program("ddim", 9).choices) == {Exit(3)}, "exits go with any steps"


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
    assert [r.choice.blocks for r in results] == [3, 3, 6, 12]
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
    program = sampler.program(partial(ddim, grid="leading"), 1, 12)
    x = normal_noise(0, range(1), 0, (5,))
    t = np.zeros(1, np.float32)
    evaluate = sampler.engine.evaluate
    (with_label,) = evaluate(12, x, t, {"label": np.array([4])})
    (without,) = evaluate(12, x, t, {"label": np.array([10])})
    output = without + 3.5 * (with_label - without)
    alpha_bar = sampler.interface.process.alpha_bar()[0]
    expected = (x - math.sqrt(1 - alpha_bar) * output) / math.sqrt(alpha_bar)
    found = sampler.sample(1, solver=program, guidance=3.5, label=4)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_clipping_is_the_networks_choice() -> None:
    limits = []
    for clip in (True, False):
        interface = msgspec.structs.replace(
            fake().interface,
            state=State(shape=(5,), range=(-0.1, 0.1)),
            sampling=Sampling(steps=10, clip=clip),
        )
        engine = FakeEngine((3, 6, 12), lambda depth, x, t, given: np.zeros_like(x), 64)
        limits.append(np.abs(Sampler(engine, interface).sample(3)).max())
    assert limits[0] <= 0.1 + 1e-6 < 1 < limits[1]


def test_schedules_come_in_every_form() -> None:
    sampler = fake()
    forms: list[Any] = ["full", 12, [12, 12], ExitSchedule((12, 12), (0.3,)), None]
    forms += [np.int64(12), np.array([12, 12])]
    forms += [[Exit(12)], (Exit(12), "12")]
    choices = [sampler.program(steps=5, schedule=form).choices for form in forms]
    assert choices == [(Exit(12),) * 5] * len(forms)


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
        program = sampler.program("ddim", 1, 12)
        wild = msgspec.structs.replace(program, initial=3e38)
        with pytest.raises(NonFiniteError, match="exit 12 at step 0"):
            sampler.sample(1, solver=wild)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"n": 0}, UsageError, "number of samples 0"),
        ({"steps": 0}, UsageError, "0 steps"),
        ({"steps": 1001}, UsageError, "expected 1 to 1000"),
        ({"seed": -1}, UsageError, "seed -1"),
        ({"first": -1}, UsageError, "first sample -1"),
        ({"guidance": float("nan")}, UsageError, "guidance nan"),
        ({"solver": "eulers"}, UsageError, r"'eulers'; expected one of \['ddim', 'ddpm'"),
        ({"schedule": "fast"}, ScheduleError, r"'fast'; expected one of \['full'\]"),
        ({"schedule": 5}, ScheduleError, "depth 5"),
        ({"schedule": [12, 4]}, ScheduleError, "depth 4"),
        ({"label": 10}, ConditionError, "label = 10; expected a value from 0 to 9"),
        ({"label": -1}, ConditionError, "label = -1"),
        ({"label": 1.5}, ConditionError, "float64"),
        ({"label": [1, 2, 3]}, ConditionError, r"shape \[3\]"),
        ({"label": "shoe"}, ConditionError, "'label'"),
        ({"label": [[1, 2], [3]]}, ConditionError, "unequal lengths"),
        ({"label": float("nan")}, ConditionError, "float64"),
        ({"nulls": {"labels": 1}}, ConditionError, "a null value for condition 'labels'"),
        ({"nulls": {"label": [1, 2, 3]}}, ConditionError, r"shape \[3\]"),
        ({"seed": 1.5}, UsageError, "seed 1.5; expected a whole number"),
        ({"n": 1.5}, UsageError, "number of samples 1.5"),
        ({"steps": 2.5}, UsageError, "steps 2.5"),
        ({"schedule": [3.5, 6]}, ScheduleError, "depth 3.5"),
        ({"solver": partial(ddim, eta=2)}, UsageError, "eta 2"),
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
    deeper = Sampler(
        FakeEngine((12, 24), lambda *_: 0),
        Interface(name="x", exits=(24,), state=State(shape=(5,))),
    )
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


def learned(channels: int | None = None) -> Sampler:
    """Three channels; the variance is told by the label, the prediction by the state."""

    def predict(depth: int, x: Any, t: Any, given: Any) -> Any:
        label = given["label"].reshape(-1, 1, 1)
        return x * 0.1 + label / 10, np.tanh(x + label - 5)

    interface = Interface(
        name="learned",
        exits=(12,),
        state=State(shape=(3, 4)),
        conditions={"label": LABEL},
        process=Process(variance="learned_range"),
        sampling=Sampling(guided_channels=channels),
    )
    return Sampler(FakeEngine((12,), predict), interface)


def test_a_learned_variance_scales_the_noise_as_in_diffusers() -> None:
    import torch
    from diffusers import DDPMScheduler

    sampler = learned()
    scheduler = DDPMScheduler(
        beta_schedule="linear",
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)
    state = normal_noise(3, range(2), 0, (3, 4))
    label = np.array([2, 7])
    for index, timestep in enumerate(scheduler.timesteps[:-1]):
        t = np.full(2, float(timestep), np.float32)
        outputs = sampler.engine.evaluate(12, state, t, {"label": label})
        # What diffusers draws from torch comes from our stream instead.
        noise = torch.from_numpy(normal_noise(3, range(2), index + 1, (3, 4)))
        with patched_noise(noise):
            state = scheduler.step(
                torch.from_numpy(np.concatenate(outputs, axis=1)),
                int(timestep),
                torch.from_numpy(state),
            ).prev_sample.numpy()
    results = list(sampler.steps(2, solver="ddpm", steps=10, seed=3, label=label, schedule=12))
    np.testing.assert_allclose(results[-2].state, state, rtol=1e-5, atol=1e-5)


@contextmanager
def patched_noise(noise: Any) -> Iterator[None]:
    """diffusers' DDPM step draws ``noise``."""
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    with mock.patch(module, return_value=noise):
        yield


def test_guidance_may_act_on_some_channels_only() -> None:
    plain = learned().sample(2, steps=1, schedule=12, label=4)
    every = learned().sample(2, steps=1, schedule=12, label=4, guidance=3.0)
    some = learned(channels=2).sample(2, steps=1, schedule=12, label=4, guidance=3.0)
    np.testing.assert_array_equal(some[:, :2], every[:, :2])
    np.testing.assert_array_equal(some[:, 2:], plain[:, 2:])
    assert np.abs(every[:, 2:] - plain[:, 2:]).max() > 0.1


def test_the_variance_is_the_one_with_the_condition() -> None:
    sampler = learned()

    def predict(depth: int, x: Any, t: Any, given: Any) -> Any:
        return x * 0.1, np.tanh(x + given["label"].reshape(-1, 1, 1) - 5)

    sampler.engine = FakeEngine((12,), predict)  # only the variance depends on the label
    call = partial(sampler.sample, 2, solver="ddpm", steps=5, schedule=12)
    np.testing.assert_allclose(call(label=4, guidance=3.0), call(label=4), rtol=1e-5)
    assert np.abs(call(label=4) - call(label=7)).max() > 0.01


def test_a_learned_variance_needs_a_network_that_gives_it() -> None:
    program = learned().program("ddpm", 3, 12)
    with pytest.raises(UsageError, match="learned variance"):
        fake().sample(1, solver=program)


def test_nulls_may_be_given_by_the_caller() -> None:
    text = Condition(dtype="float32", shape=(5,))

    def predict(depth: int, x: Any, t: Any, given: Any) -> Any:
        return given["text"]

    interface = Interface(
        name="text", exits=(12,), state=State(shape=(5,)), conditions={"text": text}
    )
    sampler = Sampler(FakeEngine((12,), predict), interface)
    given = np.arange(5.0)
    program = Program(
        solver="output", initial=1.0, steps=(Step(Exit(12), 0, (Term("state", 1.0),), (OUTPUT,)),)
    )
    call = partial(sampler.sample, 1, solver=program, text=given, guidance=3.0)
    found = call(nulls={"text": given / 2})
    np.testing.assert_allclose(found[0], given / 2 + 3 * given / 2)
    with pytest.raises(ConditionError, match="without a null value"):
        call()
    with pytest.raises(ConditionError, match="'txt'"):
        call(nulls={"txt": 0})
    with pytest.raises(ConditionError, match=r"shape \[4\]"):
        call(nulls={"text": np.zeros(4)})


OUTPUT = Update("state", (Term("output", 1.0),))


def test_samples_may_have_another_shape_where_the_state_is_resizable() -> None:
    def predict(depth: int, x: Any, t: Any, given: Any) -> Any:
        return x

    state = State(shape=(2, 8, 8), resizable=Resizable(axes=(1, 2), min=4, max=16, multiple=4))
    interface = Interface(name="free", exits=(12,), state=state)
    sampler = Sampler(FakeEngine((12,), predict), interface)
    assert sampler.sample(3, steps=2, schedule=12, shape=(2, 4, 16)).shape == (3, 2, 4, 16)
    assert sampler.sample(3, steps=2, schedule=12).shape == (3, 2, 8, 8)
    for wrong in ((2, 4, 20), (2, 4, 6), (3, 8, 8), (2, 8), ()):
        with pytest.raises(UsageError, match="axes"):
            sampler.steps(1, schedule=12, shape=wrong)
    with pytest.raises(UsageError, match=r"shape \[6\]; expected \[5\]"):
        fake().steps(1, shape=(6,))


@pytest.mark.parametrize("shape", [(1,), (5, 1), (2, 5)])
def test_outputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    sampler = fake()
    sampler.engine = FakeEngine((3, 6, 12), lambda *_: np.zeros(shape, np.float32))
    with pytest.raises(BackendError, match="expected the state's shape"):
        sampler.sample(1, steps=2)


def test_what_a_backend_raises_is_a_sentence(engine_sets: dict[str, Path]) -> None:
    with Sampler.open(engine_sets["per_exit"]) as sampler:
        label = sampler.interface.conditions["label"]
        anything = msgspec.structs.replace(label, range=None, names=(), default=0)
        sampler.interface = msgspec.structs.replace(
            sampler.interface, conditions={"label": anything}
        )
        with pytest.raises(BackendError, match="exit 12 failing at timestep 999") as caught:
            sampler.sample(1, steps=2, label=99)
        assert "\n" not in str(caught.value)


def test_a_closed_sampler_says_so(engine_sets: dict[str, Path]) -> None:
    with Sampler.open(engine_sets["per_exit"]) as sampler:
        steps = sampler.steps(1, steps=2)
        next(steps)
    with pytest.raises(UsageError, match="closed"):
        sampler.sample(1)
    with pytest.raises(UsageError, match="closed"):
        next(steps)


def test_threads_beyond_the_processors_are_not_made(engine_sets: dict[str, Path]) -> None:
    tasks = Path("/proc/self/task")  # the threads of this process, on Linux
    with Sampler.open(engine_sets["per_exit"], threads=5000) as sampler:
        assert sampler.sample(1, steps=1).shape == (1, 1, 28, 28)
        assert not tasks.is_dir() or len(list(tasks.iterdir())) < 1000


def test_progress_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    sampler = fake(max_batch=2)
    told: list[tuple[int, int]] = []
    watched = sampler.sample(3, steps=4, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(1, 9)]  # two batches of four steps
    np.testing.assert_array_equal(watched, sampler.sample(3, steps=4))
    assert not capsys.readouterr().err
    sampler.sample(2, steps=2, progress=True)
    assert capsys.readouterr().err == "\rstep 1 of 2\rstep 2 of 2\n"


def test_a_hook_is_told_beside_progress() -> None:
    sampler = fake()
    seen: list[int] = []
    sampler.on_step = lambda metrics: seen.append(metrics.index)
    sampler.sample(1, steps=3, progress=lambda done, total: None)
    assert seen == [0, 1, 2]


def test_a_sampler_is_not_pickled_but_opened_where_it_is_needed() -> None:
    with pytest.raises(UsageError, match=r"call Sampler\.open\(path\) in the process that samples"):
        pickle.dumps(fake())
