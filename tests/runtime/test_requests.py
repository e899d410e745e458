"""What a service asks of a sampler: requests batched together, warm-up, hooks, threads."""

from __future__ import annotations

import logging
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from msgspec.structs import replace

from eecompile.errors import BackendError, ConditionError, NonFiniteError, UsageError
from eecompile.programs.choice import Exit
from eecompile.programs.interface import Condition, Interface, Resizable, Sampling, State
from eecompile.programs.process import Process
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.programs.schedule import ExitSchedule
from eecompile.programs.solvers import FACTS, ddim
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.protocol import Engine
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.sampling import StepMetrics
from eecompile.runtime.trajectory.host import HostTrajectory
from eecompile.runtime.trajectory.plan import Plan, Rows
from eecompile.store.manifest import SpanTensor

LABEL = Condition(dtype="int64", range=(0, 9), default="cycle", null=10)
QUICK: dict[str, Any] = {"steps": 4, "schedule": [12, 3]}


def predict(depth: int, x: Any, t: Any, given: Mapping[str, Any]) -> Any:
    """A mix of the state, the depth, the timestep and the label."""
    rest = (1,) * (x.ndim - 1)
    label, time = given["label"].reshape(-1, *rest), t.reshape(-1, *rest)
    return np.tanh(x * depth / 12 + label / 5 - time / 1000)


def fake(max_batch: int = 64, **sampling: Any) -> Sampler:
    interface = Interface(
        name="fake",
        exits=(3, 12),
        state=State(shape=(4, 4), resizable=Resizable(axes=(1,), min=4, max=8, multiple=4)),
        conditions={"label": LABEL},
        schedules={"full": ExitSchedule.constant(12)},
        sampling=Sampling(steps=10, **sampling),
    )
    return Sampler(FakeEngine((3, 12), predict, max_batch), interface)


def calls(sampler: Sampler) -> list[tuple[int, int]]:
    assert isinstance(sampler.engine, FakeEngine)
    return sampler.engine.calls


REQUEST = st.builds(
    SampleRequest,
    n=st.integers(1, 5),
    seed=st.integers(0, 3),
    guidance=st.sampled_from([1.0, 2.0, 4.5]),
    conditions=st.sampled_from([{}, {"label": 3}]),
    shape=st.sampled_from([None, (4, 8)]),
    first=st.integers(0, 4),
)


@given(
    requests=st.lists(REQUEST, min_size=1, max_size=5),
    largest=st.integers(1, 9),
    schedule=st.sampled_from(["12,3", "forecast2,forecast1,12,again,3,12"]),
)
def test_requests_together_are_requests_alone(
    requests: list[SampleRequest], largest: int, schedule: str
) -> None:
    together = fake(largest)
    steps = 4 if schedule == "12,3" else 6
    options = {"solver": "ddpm", "steps": steps, "schedule": ExitSchedule.parse(schedule)}
    found = together.sample_requests(requests, **options)
    assert max(rows for _, rows in calls(together)) <= largest
    for request, samples in zip(requests, found, strict=True):
        (alone,) = fake().sample_requests([request], **options)
        assert samples.shape == (request.n, *(request.shape or (4, 4)))
        np.testing.assert_allclose(samples, alone, rtol=1e-5, atol=1e-5)


def test_requests_of_one_shape_share_evaluations() -> None:
    sampler = fake(max_batch=16)
    guided, plain = SampleRequest(n=3, guidance=2.0), SampleRequest(n=5, seed=1)
    sampler.sample_requests([guided, plain], **QUICK)
    assert [rows for _, rows in calls(sampler)] == [3 + 5 + 3] * 4


LISTED = SampleRequest(
    n=7,
    seed=2,
    first=10,
    guidance=[2.0, 3.0],
    guidance_interval=(300.0, 1000.0),
    conditions={"label": [4, 1, 3]},
    nulls={"label": [5, 6, 7, 8, 9]},
    shape=(4, 8),
)


def test_a_list_of_values_is_repeated_in_turn() -> None:
    sampler = fake()
    written_out = replace(
        LISTED,
        guidance=[2.0, 3.0, 2.0, 3.0, 2.0, 3.0, 2.0],
        conditions={"label": [4, 1, 3, 4, 1, 3, 4]},
        nulls={"label": [5, 6, 7, 8, 9, 5, 6]},
    )
    whole = LISTED.part(sampler.interface, 10, 7)
    made, expected = sampler.sample_requests([whole, written_out], **QUICK)
    np.testing.assert_array_equal(made, expected)
    with pytest.raises(UsageError, match="one for each"):
        sampler.check(LISTED)  # only a part is what a sampler takes


@given(first=st.integers(10, 16), n=st.integers(1, 12), whole=st.booleans())
def test_portions_of_a_request_agree(first: int, n: int, whole: bool) -> None:
    sampler = fake()
    every = LISTED.part(sampler.interface, 10, 20)
    (expected,) = sampler.sample_requests([every], **QUICK)
    part = (every if whole else LISTED).part(sampler.interface, first, n)
    (made,) = sampler.sample_requests([part], **QUICK)
    np.testing.assert_allclose(made, expected[first - 10 : first - 10 + n], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [[], [1, 2, 3], [[1, 2], [3]], [[1], [2]], "boot", 11])
def test_values_that_a_sampler_refuses_are_left_to_it(values: Any) -> None:
    sampler = fake()
    for name in ("label", "colour"):
        request = SampleRequest(n=2, conditions={name: values})
        with pytest.raises(UsageError):
            sampler.check(request.part(sampler.interface, 0, 2))


def test_the_digest_is_of_all_that_decides_a_sample() -> None:
    changes: list[dict[str, Any]] = [
        {"seed": 3},
        {"first": 11},
        {"guidance": [2.0, 4.0]},
        {"guidance": 2.0},
        {"guidance": None},
        {"guidance_interval": (300.0, 999.0)},
        {"guidance_interval": None},
        {"conditions": {"label": [4, 3, 1]}},
        {"conditions": {"label": [4.0, 1.0, 3.0]}},
        {"conditions": {"label": [[4], [1], [3]]}},
        {"conditions": {"other": [4, 1, 3]}},
        {"conditions": {}},
        {"nulls": {"label": 5}},
        {"nulls": {}},
        {"conditions": LISTED.nulls, "nulls": LISTED.conditions},
        {"shape": (8, 4)},
        {"shape": None},
    ]
    known = [LISTED, *(replace(LISTED, **change) for change in changes)]
    assert len({request.digest() for request in known}) == len(known)
    assert {name for change in changes for name in change} | {"n"} == set(LISTED.__struct_fields__)
    assert replace(LISTED, n=9).digest() == LISTED.digest()
    assert replace(LISTED, shape=[4, 8]).digest() == LISTED.digest()


def test_requests_together_have_one_guidance_interval() -> None:
    requests = [SampleRequest(guidance_interval=(0, high)) for high in (500, 600)]
    with pytest.raises(UsageError, match=r"\(0.0, 500.0\) and \(0.0, 600.0\)"):
        fake().sample_requests(requests, **QUICK)


def test_each_sample_may_have_its_own_guidance() -> None:
    sampler = fake()
    mixed = sampler.sample(3, guidance=[1.0, 3.0, 2.0], label=4, **QUICK)
    for row, scale in enumerate((1.0, 3.0, 2.0)):
        alone = sampler.sample(1, guidance=scale, label=4, first=row, **QUICK)
        np.testing.assert_allclose(mixed[row], alone[0], rtol=1e-5, atol=1e-6)
    assert {rows for _, rows in calls(sampler)} >= {5}  # the unguided one is not doubled
    with pytest.raises(UsageError, match="one for each of 3"):
        sampler.sample(3, guidance=[1.0, 2.0])


def test_guidance_may_act_in_an_interval_of_time_only() -> None:
    sampler = fake()
    options: dict[str, Any] = {"guidance": 3.0, "label": 4, **QUICK}  # t = 999, 749, 499, 249
    sampler.sample(2, guidance_interval=(400, 800), **options)
    assert [rows for _, rows in calls(sampler)] == [2, 4, 4, 2]
    everywhere = sampler.sample(2, guidance_interval=(0, 1000), **options)
    np.testing.assert_array_equal(everywhere, sampler.sample(2, **options))
    nowhere = sampler.sample(2, guidance_interval=(1, 2), **options)
    np.testing.assert_array_equal(nowhere, sampler.sample(2, label=4, **QUICK))
    by_default = fake(guidance_interval=(400.0, 800.0)).sample(2, **options)
    np.testing.assert_array_equal(
        by_default, sampler.sample(2, guidance_interval=(400, 800), **options)
    )
    for wrong in ((800, 400), (1,), "ab", (float("nan"), 3)):
        with pytest.raises(UsageError, match="guidance interval"):
            sampler.sample(1, guidance_interval=wrong, **options)  # type: ignore[arg-type]


def test_a_program_with_open_choices_takes_a_schedule() -> None:
    sampler = fake()
    chosen = sampler.program("ddim", 4, [12, 3])
    opened = chosen.with_choices(lambda time: None)
    assert sampler.program(opened, schedule=[12, 3]) == chosen
    assert set(sampler.program(opened).choices) == {Exit(12)}  # the recipe's default
    with pytest.raises(UsageError, match="together with steps or a schedule"):
        sampler.program(chosen, schedule=[12, 3])


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (Process(prediction="v_prediction"), "prediction v_prediction; expected prediction eps"),
        (Process(timesteps=500), "timesteps 500"),
        (Process(betas="cosine"), "other betas"),
        (Process(family="flow", prediction="flow"), "family flow"),
    ],
)
def test_a_program_for_another_process_is_refused(process: Process, words: str) -> None:
    other = Interface(name="x", exits=(12,), state=State(shape=(4, 4)), process=process)
    solver = "flow-euler" if process.family == "flow" else "ddim"
    program = Sampler(FakeEngine((12,), predict), other).program(solver, 3, 12)
    with pytest.raises(UsageError, match=words):
        fake().sample(1, solver=program)


def test_warm_up_evaluates_every_exit_and_changes_nothing() -> None:
    sampler = fake(max_batch=8)
    before = sampler.sample(3, guidance=2.0, **QUICK)
    calls(sampler).clear()
    sampler.warmup(3, guidance=2.0, **QUICK)
    assert {depth for depth, rows in calls(sampler) if rows == 6} == {3, 12}
    np.testing.assert_array_equal(sampler.sample(3, guidance=2.0, **QUICK), before)
    required = Interface(
        name="x",
        exits=(12,),
        state=State(shape=(4,)),
        conditions={"text": Condition(dtype="float32", shape=(3,))},
        schedules={"full": ExitSchedule.constant(12)},
    )
    with Sampler(FakeEngine((12,), lambda depth, x, t, c: x), required) as bare:
        bare.warmup(guidance=2.0)


def test_hooks_are_told_of_every_step_on_every_batch(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[StepMetrics] = []
    sampler = fake(max_batch=4)
    sampler.on_step = seen.append
    sampler.sample(3, guidance=2.0, **QUICK)
    assert [(m.index, m.choice, m.samples, m.rows) for m in seen] == [
        *((i, Exit(d), 2, 4) for i, d in enumerate((3, 3, 12, 12))),
        *((i, Exit(d), 1, 2) for i, d in enumerate((3, 3, 12, 12))),
    ]
    assert all(m.seconds > 0 and m.engine == "fake" and "ddim" in m.program for m in seen)

    def broken(metrics: StepMetrics) -> None:
        raise RuntimeError("no such gauge")

    expected = sampler.sample(1, **QUICK)
    sampler.on_step = broken
    with caplog.at_level(logging.ERROR, logger="eecompile.runtime"):
        np.testing.assert_array_equal(sampler.sample(1, **QUICK), expected)
    assert "no such gauge" in caplog.text


def test_what_is_logged_says_what_ran(
    engine_sets: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, logger="eecompile.runtime"),
        Sampler.open(engine_sets["chained"]) as sampler,
    ):
        sampler.sample(2, steps=1)
    assert "opened fashion-dit for cpu-chained" in caplog.text
    assert "2 samples" in caplog.text


def test_eight_threads_give_what_one_gives(sampler: Sampler) -> None:
    assert sampler.concurrent
    call = partial(sampler.sample, 2, solver="ddpm", guidance=2.0, **QUICK)
    expected = [call(seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: call(seed=seed), [*range(8)] * 3))
    for index, samples in enumerate(found):
        np.testing.assert_array_equal(samples, expected[index % 8])


def test_a_sampler_is_usable_after_an_error() -> None:
    sampler = fake()
    expected = sampler.sample(2, **QUICK)
    assert isinstance(sampler.engine, FakeEngine)
    sampler.engine._predict = lambda depth, x, t, c: np.full_like(x, np.nan)
    with pytest.raises(NonFiniteError, match="step 0"):
        sampler.sample(2, **QUICK)

    def fails(depth: int, x: Any, t: Any, c: Any) -> Any:
        raise MemoryError("no room")

    sampler.engine._predict = fails
    with pytest.raises(BackendError, match="no room"):
        sampler.sample(2, **QUICK)
    sampler.engine._predict = predict
    np.testing.assert_array_equal(sampler.sample(2, **QUICK), expected)


def test_a_state_that_overflows_is_reported() -> None:
    sampler = fake()
    large = Update("state", (Term("output", 1e38), Term("state", 1e38)))
    step = Step(Exit(12), 0.0, (Term("state", 1.0),), (large, large))
    with pytest.raises(NonFiniteError, match="the state after the step of exit 12 at step 0"):
        sampler.sample(1, solver=Program(solver="x", initial=1.0, steps=(step,)))


def test_samples_that_stay_on_the_device_speak_dlpack() -> None:
    import torch

    sampler = fake(max_batch=4)
    made = sampler.sample_on_device(SampleRequest(n=3, seed=2), **QUICK)
    np.testing.assert_array_equal(
        torch.from_dlpack(made).numpy(), sampler.sample(3, seed=2, **QUICK)
    )
    with pytest.raises(UsageError, match="batch of 4"):
        sampler.sample_on_device(SampleRequest(n=5), **QUICK)


def test_conditions_come_by_dlpack() -> None:
    class Exported:
        """Speaks DLPack and nothing else."""

        def __init__(self, array: Any) -> None:
            self._array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self._array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self._array.__dlpack_device__()

    labels = np.array([4, 2])
    found = fake().sample(2, label=Exported(labels), **QUICK)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, fake().sample(2, label=labels, **QUICK))


def test_conditions_may_lie_on_another_device() -> None:
    """As a GPU's tensors are: no array of NumPy's, and DLPack for the host on request only."""

    class Distant:
        def __init__(self, array: Any, *, gives: bool = True) -> None:
            self._array, self._gives = array, gives

        def __array__(self, *args: Any, **options: Any) -> Any:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, *, dl_device: Any = None, **options: Any) -> Any:
            if dl_device != (1, 0) or not self._gives:
                raise BufferError("it lies on the GPU")
            return self._array.__dlpack__(**options)

    labels = np.array([4, 2])
    found = fake().sample(2, label=Distant(labels), **QUICK)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, fake().sample(2, label=labels, **QUICK))
    with pytest.raises(ConditionError, match="it lies on the GPU"):
        fake().sample(2, label=Distant(labels, gives=False), **QUICK)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", ["ddpm", "unipc", "dpmpp-2m-sde"])
@pytest.mark.parametrize("guided", [0, 2])
@pytest.mark.parametrize(
    "schedule",
    ["12", "forecast2,12,forecast1,forecast1,12,12", "12/6-9:2,12,12/6-9:1,12/6-9:0,12,12"],
)
def test_no_array_is_allocated_for_a_step(solver: str, guided: int, schedule: str) -> None:
    class Noop(Engine):
        exits, precision, max_batch = (12,), "fp32", 8
        spans = {  # noqa: RUF012
            (6, 9): [SpanTensor(leaves="b", enters="a", shape=(96, 96), dtype="float32")]
        }

        def evaluate(self, *_: Any) -> Any:
            raise AssertionError("it is bound")

        def bind(self, x: Any, t: Any, conditions: Any, outputs: Any, tensors: Any = None) -> Any:
            for array in (outputs[0], *tensors.values()):
                array[:] = 0.5
            return lambda depth, stretch: None

    shape, size = (96, 96), 3
    interface = Interface(
        name="x", exits=(12,), state=State(shape=shape, range=(-1, 1)), cuts=(6, 9)
    )
    program = Sampler(Noop(), interface).program(solver, 20, ExitSchedule.parse(schedule))
    plan = Plan(program=program, interface=interface, shape=shape, size=size, guided=guided)
    trajectory = HostTrajectory(Noop(), plan)  # type: ignore[arg-type]
    ones, scales = np.arange(size, dtype=np.uint64), np.full(guided, 2, np.float32)
    trajectory.start(Rows(seeds=ones, samples=ones, scales=scales, conditions={}))
    trajectory.step(0)
    trajectory.step(1)
    tracemalloc.start()
    try:
        for index in range(2, 20):
            trajectory.step(index)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The bits of one sample's noise are an array of numpy's own for a moment.
    assert peak < 4 * 96 * 96 + 8192


def test_one_thread_pool_may_serve_all_sessions(engine_sets: dict[str, Path]) -> None:
    """In a process of its own: it is the whole process's pool."""
    code = f"""
import os, numpy as np, eecompile
tasks = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
plain = eecompile.Sampler.open({str(engine_sets["chained"])!r}, threads=2)
expected = plain.sample(3, steps=2)
own = tasks()
plain.close()
before = tasks()
with eecompile.Sampler.open({str(engine_sets["chained"])!r}, threads=2, shared_pool=True) as s:
    found = s.sample(3, steps=2)
    assert tasks() - before <= 1, (tasks(), before, own)
np.testing.assert_allclose(found, expected, atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_runtime_imports_no_backend_until_an_engine_set_is_opened() -> None:
    code = (
        "import sys, eecompile; eecompile.Sampler; eecompile.SampleRequest; eecompile.FakeEngine\n"
        "heavy = {'onnxruntime', 'openvino', 'torch', 'tensorrt', 'cuda', 'typer', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_solvers_are_named_with_options() -> None:
    sampler = fake()
    named = sampler.program("ddim:eta=0.5,grid=karras", 6, 12)
    assert named == sampler.program(partial(ddim, eta=0.5, grid="karras"), 6, 12)
    assert sampler.program("dpmpp-3m:halved=false", 6, 12).solver.startswith(
        "dpmpp-3m(halved=False"
    )
    for wrong, words in (
        ("ddim:speed=2", "option 'speed=2' of solver ddim"),
        ("ddim:eta", "option 'eta'"),
        ("ddim:eta=0,eta=1", "option 'eta=1'"),
        ("ddim:clip=1", "option 'clip=1'"),
        ("ddim:eta=high", "option 'eta=high'"),
        ("ddim:eta=true", "option 'eta=true'"),
        ("dpmpp-3m:halved=no", "option 'halved=no'"),
        ("unipc:order=2.5", "option 'order=2.5'"),
        (f"ddim:eta={10**400}", "makes no program"),
        ("ddim:grid=even", "time grid 'even'"),
        ("unipc:order=7", "order 7"),
    ):
        with pytest.raises(UsageError, match=words):
            sampler.program(wrong, 6, 12)


def test_samplings_under_way_end_when_the_sampler_is_closed(sampler: Sampler) -> None:
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(sampler.sample, 2, steps=1000, seed=seed) for seed in range(4)]
        while not any(call.running() for call in calls):
            pass
        sampler.close()
        for call in calls:
            with pytest.raises(UsageError, match="closed"):
                call.result(timeout=60)


def test_buffers_are_kept_for_few_batches_and_never_lost(sampler: Sampler) -> None:
    fakes = fake()
    fakes.sample(1, steps=2)
    steps = fakes.steps(1, steps=2)  # its buffers are in use meanwhile
    next(steps)
    for n in range(2, 12):
        fakes.sample(n, steps=2)
    assert sum(map(len, fakes._pool._idle.values())) <= 8
    list(steps)

    def call(kind: int) -> Any:
        return sampler.sample(1 + kind, steps=2, seed=kind, guidance=1.0 + kind % 2)

    expected = [call(kind) for kind in range(10)]
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(call, [*range(10)] * 3))
    for index, samples in enumerate(found):
        np.testing.assert_allclose(samples, expected[index % 10], atol=2e-5)


@pytest.mark.parametrize("name", [n for n, f in FACTS.items() if "diffusion" in f.families])
def test_every_solver_draws_garments(name: str, sampler: Sampler) -> None:
    """The data's range is -1 to 1, its deviation about 0.7."""
    samples = sampler.sample(4, solver=name, steps=20, schedule="full")
    assert 0.4 < samples.std() < 0.9
    assert np.abs(samples).max() < 1.2


def test_edm_programs_are_for_one_sigma_data() -> None:
    def one(sigma_data: float) -> Sampler:
        process = Process(family="edm", prediction="edm", sigma_data=sigma_data)
        interface = Interface(name="x", exits=(12,), state=State(shape=(4,)), process=process)
        return Sampler(FakeEngine((12,), lambda depth, x, t, c: x), interface)

    program = one(0.5).program("heun", 4, 12)
    assert one(0.5).sample(1, solver=program).shape == (1, 4)
    with pytest.raises(UsageError, match="other betas, sigmas"):
        one(1.0).sample(1, solver=program)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guidance": "2.0"}, "guidance '2.0'"),
        ({"guidance": 10**400}, "a finite scale"),
        ({"guidance": 1e300}, "a finite scale"),
        ({"guidance_interval": "12"}, "guidance interval '12'"),
        ({"guidance_interval": (0, 10**400)}, "guidance interval"),
        ({"guidance_interval": (-5, 10)}, "within \\[0, T\\]"),
        ({"shape": "abc"}, "shape 'abc'"),
        ({"shape": (1.5, 4)}, "shape \\(1.5, 4\\)"),
        ({"shape": 5}, "shape 5"),
        ({"nulls": 5}, "nulls 5"),
        ({"nulls": 0}, "nulls 0"),
        ({"nulls": np.zeros(2)}, r"nulls array\(\[0., 0.\]\)"),
        ({"nulls": [["label", 3]]}, "nulls \\[\\["),
        ({"nulls": {"label": -5}, "guidance": 2.0}, "label = -5"),
        ({"label": 2**63}, "label = 9223372036854775808"),
        ({"n": 2**32}, "1 to 1000000"),
        ({"solver": lambda *a, **k: None}, "it returned NoneType"),
        ({"solver": lambda *a, **k: 1 / 0}, "division by zero"),
    ],
)
def test_odd_arguments_are_refused_in_a_sentence(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fake().sample(**{"n": 2, **arguments})


def test_figures_beyond_a_dtype_are_refused() -> None:
    conditions = {
        "a": Condition(dtype="float32", default=0.0),
        "k": Condition(dtype="int64", default=0),
    }
    interface = Interface(
        name="x",
        exits=(12,),
        state=State(shape=(4,)),
        conditions=conditions,
        schedules={"full": ExitSchedule.constant(12)},
    )
    sampler = Sampler(FakeEngine((12,), lambda depth, x, t, c: x), interface)
    for wrong in ({"a": 1e300}, {"k": 2**63}, {"k": np.uint64(2**64 - 1)}, {"a": float("nan")}):
        with pytest.raises(UsageError, match="beyond"):
            sampler.sample(1, steps=1, **wrong)


def test_requests_come_in_any_iterable_and_are_requests() -> None:
    sampler = fake()
    (found,) = sampler.sample_requests((r for r in [SampleRequest(n=2)]), **QUICK)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, sampler.sample(2, **QUICK))
    for wrong in (None, {}, {"n": 2}):
        with pytest.raises(UsageError, match="a request of type"):
            sampler.sample_requests([wrong], **QUICK)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="conditions None"):
        SampleRequest(conditions=None)  # type: ignore[arg-type]
