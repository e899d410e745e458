"""Trajectories on a GPU: their logic on an emulated device, their kernels, and the real thing."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import logging
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from eecompile.errors import BackendError, NonFiniteError, UsageError
from eecompile.measure.machine import gpus
from eecompile.programs.choice import Choice, Exit, Forecast
from eecompile.programs.interface import Condition, Interface, Sampling, State
from eecompile.programs.process import Process
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.runtime.cuda import device as cuda_device
from eecompile.runtime.cuda.device import KERNELS, open_device
from eecompile.runtime.engines.group import DeviceGroup, EngineGroup, grouped
from eecompile.runtime.trajectory import device as cuda_trajectory
from eecompile.runtime.trajectory.device import DeviceEvaluation, DeviceTrajectory
from eecompile.runtime.trajectory.host import HostTrajectory
from eecompile.runtime.trajectory.noise import normal_noise
from eecompile.runtime.trajectory.plan import Plan, Rows
from tests.conftest import ROOT
from tests.programs.interpreter import extrapolated, place_of
from tests.runtime.emulated import (
    SOURCE,
    EmulatedDevice,
    EmulatedEngine,
    compiled,
    parameters,
)

Array = NDArray[np.float32]
PTX = SOURCE.with_suffix(".ptx")
FLOAT = np.float32


def predict(depth: int, x: Array, t: Array, given: Mapping[str, NDArray[Any]]) -> list[Array]:
    """A prediction and a variance, of every input that there is."""
    ones = (-1, *(1 for _ in x.shape[1:]))
    shift = t.reshape(ones) / 500 + given["y"].reshape(ones) / 10
    shift = shift + given["c"].mean(axis=1).reshape(ones)
    return [
        np.tanh(x * FLOAT(0.7) + shift + depth / 10).astype(FLOAT),
        np.tanh(x + shift).astype(FLOAT),
    ]


def plain(depth: int, x: Array, t: Array, given: Mapping[str, NDArray[Any]]) -> list[Array]:
    return predict(depth, x, t, given)[:1]


def interface(learned: bool, shape: tuple[int, ...], channels: int | None) -> Interface:
    return Interface(
        name="n",
        exits=(2, 5),
        state=State(shape=shape),
        conditions={
            "y": Condition(dtype="int64", range=(0, 9), default=0),
            "c": Condition(dtype="float32", shape=(3,), default=0.0),
        },
        process=Process(variance="learned_range" if learned else "fixed_small"),
        sampling=Sampling(guided_channels=channels),
    )


def some_terms(draw: np.random.Generator, names: list[str], most: int) -> tuple[Term, ...]:
    chosen = draw.choice(names, int(draw.integers(1, most + 1)))
    return tuple(Term(str(name), float(draw.uniform(-0.6, 0.6))) for name in chosen)


def some_program(draw: np.random.Generator, learned: bool) -> Program:
    written, steps, time = ["state"], list[Step](), 999.0
    for _ in range(int(draw.integers(1, 9))):
        inputs = some_terms(draw, written, 3)
        updates = []
        for _ in range(int(draw.integers(1, 4))):
            into = str(draw.choice(["state", "a", "b", "data"]))
            terms = some_terms(draw, [*written, "output", "noise"], 20)
            clip = (-0.5, 0.7) if draw.random() < 0.3 else None
            updates.append(Update(into, terms, clip))
            written = [*dict.fromkeys([*written, into])]
        scaled = (-3.0, -0.5) if learned and draw.random() < 0.7 else None
        time -= float(draw.choice([0.0, 90.0, 110.0]))
        made = sum(step.chosen.evaluates for step in steps)
        orders = [Forecast(order) for order in range(min(made, 3))]
        choice: Choice = draw.choice([Exit(2), Exit(5), *orders])  # type: ignore[arg-type]
        steps.append(Step(choice, time / 4, inputs, tuple(updates), scaled, time))
    process = Process(variance="learned_range" if learned else "fixed_small")
    return Program(
        solver="any",
        initial=float(draw.uniform(0.5, 2)),
        steps=tuple(steps),
        process=process if draw.random() < 0.5 else None,
    )


def some_rows(draw: np.random.Generator, n: int, g: int) -> Rows:
    return Rows(
        seeds=draw.integers(0, 2**63, n).astype(np.uint64),
        samples=draw.integers(0, 100, n).astype(np.uint64),
        scales=draw.uniform(-1, 4, g).astype(FLOAT),
        conditions={
            "y": draw.integers(0, 10, n + g),
            "c": draw.normal(size=(n + g, 3)).astype(FLOAT),
        },
    )


def by_hand(plan: Plan, rows: Rows, row: int) -> Array:
    """One sample, all by itself: each evaluation is of a single row."""
    n, learned = plan.size, len(plan.interface.outputs) > 1
    seeds, samples = rows.seeds[row : row + 1], rows.samples[row : row + 1]
    buffers = {"state": normal_noise(seeds, samples, 0, plan.shape) * FLOAT(plan.program.initial)}

    def total(terms: tuple[Term, ...]) -> Array:
        parts = [buffers[term.buffer] * FLOAT(term.coefficient) for term in terms]
        return np.sum(parts, axis=0, dtype=np.float64).astype(FLOAT)

    def evaluated(depth: int, x: Array, t: float, at: int) -> list[Array]:
        given = {name: array[at : at + 1] for name, array in rows.conditions.items()}
        return predict(depth, x, np.array([t], FLOAT), given)

    evaluations: list[tuple[float, NDArray[np.float64]]] = []
    for index, step in enumerate(plan.program.steps):
        low, high = plan.interval or (-np.inf, np.inf)
        choice = step.chosen
        if choice.evaluates:
            x = total(step.input)
            prediction, variance = evaluated(choice.blocks, x, step.timestep, row)
        if choice.evaluates and row < plan.guided and low <= step.moment <= high:
            without = evaluated(choice.blocks, x, step.timestep, n + row)[0]
            guided = without + rows.scales[row] * (prediction - without)
            channels = plan.interface.sampling.guided_channels
            kept = [] if channels is None else prediction[0][channels:]
            count = len(guided[0]) - len(kept)
            prediction[0][:count] = guided[0][:count]
        if choice.evaluates:
            evaluations.append((place_of(plan.program, step), prediction.astype(np.float64)))
        at = place_of(plan.program, step)
        buffers["output"] = extrapolated(evaluations, at, choice.order).astype(FLOAT)
        noise = normal_noise(seeds, samples, index + 1, plan.shape)
        if step.log_variances and learned:
            small, large = step.log_variances
            share = (variance.astype(np.float64) + 1) / 2
            noise = (noise * np.exp((small + share * (large - small)) / 2)).astype(FLOAT)
        buffers["noise"] = noise
        for update in step.updates:
            value = total(update.terms)
            buffers[update.into] = value if update.clip is None else value.clip(*update.clip)
    return buffers["state"][0]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL | None:
    """kernels.cu for the host."""
    return compiled(tmp_path_factory.mktemp("kernels")) if shutil.which("g++") else None


@pytest.fixture(params=["numpy", "source"])
def device(request: pytest.FixtureRequest, native: ctypes.CDLL | None) -> EmulatedDevice:
    if request.param == "source" and native is None:
        pytest.skip("no g++")
    return EmulatedDevice(native if request.param == "source" else None)


def some_plan(seed: int, **changes: Any) -> tuple[Plan, Rows]:
    draw = np.random.default_rng(seed)
    learned = bool(seed % 2)
    shape = ((4, 3, 2), (7,))[seed % 3 == 0]
    n = int(draw.integers(1, 5))
    g = int(draw.integers(0, n + 1))
    channels = int(draw.integers(1, 6)) if draw.random() < 0.5 else None
    settings: dict[str, Any] = {
        "program": some_program(draw, learned),
        "interface": interface(learned, shape, channels),
        "shape": shape,
        "size": n,
        "guided": g,
        "interval": (200.0, 700.0) if draw.random() < 0.4 else None,
        "apart": draw.random() < 0.3,
    }
    plan = Plan(**(settings | changes))
    return plan, some_rows(draw, plan.size, plan.guided)


def engine_for(plan: Plan, device: EmulatedDevice | None = None, **more: Any) -> EmulatedEngine:
    learned = len(plan.interface.outputs) > 1
    largest = 1 if plan.apart else plan.size + plan.guided
    return EmulatedEngine(
        plan.interface, predict if learned else plain, device, max_batch=largest, **more
    )


@pytest.mark.parametrize("seed", range(40))
def test_a_trajectory_is_what_each_sample_is_by_itself(seed: int, device: EmulatedDevice) -> None:
    plan, rows = some_plan(seed)
    expected = np.stack([by_hand(plan, rows, row) for row in range(plan.size)])
    with engine_for(plan, device).trajectory(plan) as trajectory:
        trajectory.start(rows)
        trajectory.run()
        np.testing.assert_allclose(trajectory.state(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("seed", range(8))
def test_engines_of_a_group_share_a_stream_and_a_graph(seed: int) -> None:
    plan, rows = some_plan(seed, apart=False)
    steps = tuple(
        msgspec.structs.replace(step, choice=Exit(step.choice.depth, ("", "half")[index % 2]))
        if isinstance(step.choice, Exit)
        else step
        for index, step in enumerate(plan.program.steps)
    )
    program = msgspec.structs.replace(plan.program, steps=steps)
    plan = msgspec.structs.replace(plan, program=program)
    one = engine_for(plan)
    other = engine_for(plan, one.device)
    other.owns_device = False
    other.predict = lambda *given: [0.5 * each for each in one.predict(*given)]
    with grouped({"full": one, "half": other}) as group:
        assert isinstance(group, DeviceGroup)
        on_host = HostTrajectory(EngineGroup(group.members), plan)
        on_host.start(rows)
        on_host.run()
        one.calls.clear(), other.calls.clear()
        with group.trajectory(plan) as trajectory:
            for _ in range(2):
                trajectory.start(rows)
                trajectory.run()
                np.testing.assert_array_equal(trajectory.state(), on_host.state())
        expected = [s.chosen.blocks for s in steps if s.chosen.engine == "half"]
        assert [depth for depth, _ in other.calls[: len(expected)]] == expected
        assert one.device.graphs == 1  # the second time
    assert one.device.closed


@pytest.mark.parametrize("seed", range(12))
def test_graphs_steps_and_the_host_agree_to_the_bit(seed: int) -> None:
    plan, rows = some_plan(seed)
    engine = engine_for(plan)
    with engine.trajectory(plan) as trajectory, np.errstate(all="raise"):
        for _ in range(3):
            trajectory.start(rows)
            trajectory.run()
            run = trajectory.state()
        assert engine.device.graphs == 2, "the first run is queued step by step"
        trajectory.start(rows)
        for index in range(len(plan.program.steps)):
            trajectory.step(index)
        trajectory.wait()
        np.testing.assert_array_equal(trajectory.state(), run)
    host = HostTrajectory(engine, plan)
    host.start(rows)
    host.run()
    np.testing.assert_allclose(host.state(), run, rtol=1e-6, atol=1e-6)


def test_a_graph_takes_other_seeds_scales_and_conditions() -> None:
    plan, rows = some_plan(5, size=3, guided=2, apart=False)
    other = some_rows(np.random.default_rng(77), 3, 2)
    engine = engine_for(plan)
    with engine.trajectory(plan) as trajectory:
        for given in (rows, rows, other):
            trajectory.start(given)
            trajectory.run()
        expected = np.stack([by_hand(plan, other, row) for row in range(3)])
        np.testing.assert_allclose(trajectory.state(), expected, rtol=2e-5, atol=2e-5)
    assert engine.device.graphs == 2


def noisy_program(steps: int) -> Program:
    terms = (Term("state", 0.9), Term("output", -0.1), Term("noise", 0.3))
    made = [
        Step(Exit(5), 10.0 * at, (Term("state", 1.0),), (Update("state", terms),))
        for at in range(9)
    ]
    return Program(solver="s", initial=1.0, steps=tuple(made[:steps]))


@pytest.mark.parametrize(("room", "graphs"), [(1, 5), (2, 3), (4, 2), (5, 1), (100, 1)])
def test_much_noise_is_taken_in_parts(
    room: int, graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, rows = some_plan(2, program=noisy_program(5), size=2, guided=0, apart=False)
    monkeypatch.setattr(cuda_trajectory, "NOISE_BYTES", room * 4 * 2 * int(np.prod(plan.shape)))
    engine = engine_for(plan)
    expected = np.stack([by_hand(plan, rows, row) for row in range(2)])
    with engine.trajectory(plan) as trajectory:
        for _ in range(2):
            trajectory.start(rows)
            trajectory.run()
            np.testing.assert_allclose(trajectory.state(), expected, rtol=2e-5, atol=2e-5)
    assert engine.device.graphs == graphs


def test_long_sums_may_write_what_they_read(device: EmulatedDevice) -> None:
    terms = tuple(Term(("state", "output")[at % 2], 0.1 * at - 0.7) for at in range(23))
    step = Step(Exit(2), 0.0, (Term("state", 1.0),), (Update("state", terms, (-2.0, 2.0)),))
    program = Program(solver="s", initial=1.0, steps=(step, step))
    plan, rows = some_plan(4, program=program, size=2, guided=0, apart=False)
    with engine_for(plan, device).trajectory(plan) as trajectory:
        trajectory.start(rows)
        trajectory.run()
        expected = np.stack([by_hand(plan, rows, row) for row in range(2)])
        np.testing.assert_allclose(trajectory.state(), expected, rtol=2e-5, atol=2e-5)
    assert device.launched.count("combine") == 2 * 2 * (1 + 3), "two steps, run and captured"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_step_that_is_not_finite_is_named(value: float, device: EmulatedDevice) -> None:
    def broken(depth: int, x: Array, t: Array, given: Mapping[str, NDArray[Any]]) -> list[Array]:
        made = plain(depth, x, t, given)
        made[0][-1].flat[-1] = value if t[0] >= 20 else 0
        return made

    plan, rows = some_plan(2, program=noisy_program(5), size=2, guided=0, apart=False)
    engine = EmulatedEngine(plan.interface, broken, device)
    with engine.trajectory(plan) as trajectory:
        for _ in range(2):  # the second time, from the graph
            trajectory.start(rows)
            trajectory.run()
            words = r"output of exit 5 at step 2 \(timestep 20, fp32\)"
            with pytest.raises(NonFiniteError, match=words):
                trajectory.state()
            with pytest.raises(NonFiniteError, match=words):
                trajectory.state_dlpack()
        trajectory.start(rows)
        trajectory.step(0)
        assert np.isfinite(trajectory.state()).all(), "what happened before is forgotten"


def test_a_state_that_overflows_is_not_returned(device: EmulatedDevice) -> None:
    step = Step(Exit(2), 0.0, (Term("state", 0.0),), (Update("state", (Term("state", 3e38),)),))
    program = Program(solver="s", initial=9.0, steps=(step,))
    plan, rows = some_plan(4, program=program, size=2, guided=0, apart=False)
    with engine_for(plan, device).trajectory(plan) as trajectory, np.errstate(over="ignore"):
        trajectory.start(rows)
        trajectory.run()
        with pytest.raises(NonFiniteError, match="in the state after the step of exit 2 at step 0"):
            trajectory.state()


def test_a_clip_keeps_nan(device: EmulatedDevice) -> None:
    with device.using():
        at = device.allocate(64)
        device.upload(at, np.array([np.nan, -9, 0.25, 9], FLOAT))
        pairs = [each for _ in range(8) for each in (at, FLOAT(1))]
        bounds = (np.int32(1), FLOAT(-1), FLOAT(1), np.int32(1))
        device.launch("combine", 4, at, 0, np.int64(4), 0, np.int64(0), *bounds, *pairs)
        found = np.empty(4, FLOAT)
        device.download(at, found)
    np.testing.assert_array_equal(found, [np.nan, -1, 0.25, 1])


def test_what_cannot_be_captured_is_queued_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    plan, rows = some_plan(1)
    engine = engine_for(plan)
    engine.device.fails_to_capture = True
    with engine.trajectory(plan) as trajectory, caplog.at_level(logging.WARNING):
        states = []
        for _ in range(3):
            trajectory.start(rows)
            trajectory.run()
            states.append(trajectory.state())
    np.testing.assert_array_equal(states[0], states[2])
    assert engine.device.graphs == 0
    said = [record for record in caplog.records if record.name == "eecompile.runtime"]
    assert [record.levelname for record in said] == ["WARNING"]
    assert "an operation that cannot be captured" in said[0].getMessage()


def test_an_engine_that_cannot_be_captured_is_not_asked_to() -> None:
    plan, rows = some_plan(1)
    engine = engine_for(plan, captures=False)
    with engine.trajectory(plan) as trajectory:
        for _ in range(2):
            trajectory.start(rows)
            trajectory.run()
    assert engine.device.graphs == 0


def test_too_little_memory_is_a_sentence_and_the_engine_stays_usable() -> None:
    plan, rows = some_plan(1)
    engine = engine_for(plan, EmulatedDevice(limit=20_000))
    with pytest.raises(BackendError, match=r"no room for [\d.]+ MiB on the GPU, which has 0\.0"):
        engine.trajectory(some_plan(1, size=500, guided=0)[0])
    assert not engine.device.memory
    with engine.trajectory(plan) as trajectory:
        trajectory.start(rows)
        trajectory.run()
        trajectory.state()
    assert not engine.device.memory, "a closed trajectory holds nothing"


def test_a_trajectory_refuses_what_it_was_not_planned_for() -> None:
    plan, rows = some_plan(8, size=3, guided=1, apart=False)
    trajectory = engine_for(plan).trajectory(plan)
    with pytest.raises(UsageError, match=r"y of shape \[5\] .*\[4\], as planned"):
        trajectory.start(some_rows(np.random.default_rng(1), 4, 1))
    trajectory.start(rows)
    trajectory.close()
    trajectory.close()
    for use in (trajectory.run, trajectory.state, trajectory.wait):
        with pytest.raises(UsageError, match="a trajectory that is closed"):
            use()


def test_host_arrays_are_evaluated_too() -> None:
    plan, rows = some_plan(1, size=4, guided=0, apart=False)
    engine = engine_for(plan)
    x = np.random.default_rng(0).normal(size=(4, *plan.shape)).astype(FLOAT)
    t = np.array([1, 2, 3, 4], FLOAT)
    found = engine.evaluate(2, x, t, rows.conditions)
    for output, expected in zip(found, predict(2, x, t, rows.conditions), strict=True):
        np.testing.assert_array_equal(output, expected)
    assert not engine.device.memory
    with pytest.raises(BackendError, match="a batch of 5; expected at most 4"):
        engine.evaluate(2, np.zeros((5, *plan.shape), FLOAT), np.zeros(5, FLOAT), {})


# The kernels


def test_the_kernels_are_those_that_ship() -> None:
    entries = re.findall(r"\.visible \.entry (\w+)\((.*?)\)", PTX.read_text(), re.DOTALL)
    known = {int: ".u64", np.int64: ".u64", np.int32: ".u32", np.float32: ".f32"}
    found = {name: re.findall(r"\.param (\.\w+)", listed) for name, listed in entries}
    assert tuple(found) == KERNELS
    assert found == {name: [known[kind] for kind in p] for name, p in parameters().items()}


def test_the_ptx_is_compiled_from_the_source() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    kernels: Any = importlib.import_module("scripts.kernels")
    shipped = PTX.read_text()
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    assert digest in shipped, "run scripts/kernels.py"
    assert ".target sm_75\n" in shipped
    assert f".version {kernels.VERSION}\n" in shipped
    if f"NVRTC {kernels.nvrtc_version()}" in shipped:  # another one may compile otherwise
        assert kernels.ptx_from_source(SOURCE.read_text()) == shipped


# cuda.core


def test_the_names_that_are_used_of_cuda_are_there() -> None:
    core: Any = pytest.importorskip("cuda.core")
    driver = importlib.import_module("cuda.bindings.driver")
    utils = importlib.import_module("cuda.core.utils")
    text = Path(cuda_device.__file__).read_text()
    used = {
        kind: set(re.findall(rf"\b(?:self\._)?{kind}\.(\w+)", text))
        for kind in ("core", "_driver", "_utils", "stream", "builder", "device", "buffer")
    }
    assert {"Device", "LaunchConfig", "launch", "ObjectCode", "Buffer"} <= used["core"]
    places: dict[str, Any] = {
        "core": core,
        "_driver": driver,
        "_utils": utils,
        "stream": core.Stream,
        "builder": importlib.import_module("cuda.core.graph").GraphBuilder,
    }
    for kind, place in places.items():
        for name in used[kind] - {"utils"}:
            assert hasattr(place, name), f"{kind}.{name}"
    for place, names in (
        (core.Device, "name compute_capability create_stream create_event allocate set_current"),
        (core.Buffer, "handle close copy_from from_handle"),
        (core.ObjectCode, "from_ptx get_kernel"),
        (core.LegacyPinnedMemoryResource, "allocate"),
        (utils.StridedMemoryView, "from_buffer __dlpack__ __dlpack_device__"),
        (importlib.import_module("cuda.core.graph").Graph, "launch close"),
        (importlib.import_module("cuda.core").Event, "sync close"),
    ):
        assert all(hasattr(place, name) for name in names.split())


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_without_a_driver_there_is_a_sentence() -> None:
    pytest.importorskip("cuda.core")
    with pytest.raises(BackendError, match=r"a GPU or driver that CUDA cannot use .*doctor"):
        open_device()


def test_without_cuda_core_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendError, match=r"no usable package cuda-core .*eecompile\[cuda\]"):
        open_device()


# The real thing


needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")]


class OnGpu(EmulatedEngine):
    """Evaluates on the host what lies on a real GPU; so it cannot be captured."""

    def enqueue(self, evaluation: DeviceEvaluation) -> None:
        depth, batch, inputs, outputs, *_ = evaluation
        arrays = {"x": np.empty(batch, FLOAT), "t": np.empty(batch[0], FLOAT)}
        given: dict[str, NDArray[Any]] = {
            name: np.empty((batch[0], *spec.shape), spec.dtype)
            for name, spec in self.interface.conditions.items()
        }
        for name, array in (arrays | given).items():
            self.device.download(inputs[name], array)
        made = self.predict(depth, arrays["x"], arrays["t"], given)
        for at, value in zip(outputs, made, strict=True):
            self.device.upload(at, np.asarray(value, FLOAT))


@pytest.mark.parametrize("seed", [pytest.param(s, marks=needs_gpu) for s in range(12)])
def test_a_real_gpu_computes_what_the_host_does(seed: int) -> None:
    plan, rows = some_plan(seed)
    expected = np.stack([by_hand(plan, rows, row) for row in range(plan.size)])
    made: Any = open_device()
    with OnGpu(plan.interface, engine_for(plan).predict, made, captures=False) as engine:
        trajectory = DeviceTrajectory(engine, plan)
        trajectory.start(rows)
        trajectory.run()
        np.testing.assert_allclose(trajectory.state(), expected, rtol=2e-5, atol=2e-5)
        trajectory.close()


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_a_real_gpu_copies_captures_and_exports() -> None:
    with open_device() as device, device.using():
        data = np.random.default_rng(0).normal(size=5_000_000).astype(FLOAT)  # more than a stage
        at = device.allocate(data.nbytes)
        device.upload(at, data)
        found = np.empty_like(data)
        device.download(at, found)
        np.testing.assert_array_equal(found, data)
        count = np.int64(data.size)
        graph = device.capture(lambda: device.launch("fill", data.size, at, count, FLOAT(3)))
        device.download(at, found)
        np.testing.assert_array_equal(found, data, "captured work is not done")
        graph.launch()
        device.download(at, found)
        assert (found == 3).all()
        torch: Any = pytest.importorskip("torch")
        if torch.cuda.is_available():
            shared = torch.from_dlpack(device.export(at, (5, 1_000_000)))
            device.launch("fill", data.size, at, count, FLOAT(4))
            device.synchronize()
            assert shared.shape == (5, 1_000_000)
            assert shared.is_cuda
            assert (shared == 3).all().item(), "it is a copy"
        graph.close()


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_a_real_gpu_without_room_says_so() -> None:
    with open_device() as device, device.using():
        with pytest.raises(BackendError, match="no room for"):
            device.allocate(1 << 44)
        device.release(device.allocate(256))


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_a_real_gpu_is_used_from_threads() -> None:
    plan, rows = some_plan(5, size=3, guided=2, apart=False)
    made: Any = open_device()
    states: dict[int, Array] = {}
    with OnGpu(plan.interface, engine_for(plan).predict, made, captures=False) as engine:

        def sample(which: int) -> None:
            with engine.trajectory(plan) as trajectory:
                trajectory.start(rows)
                trajectory.run()
                states[which] = trajectory.state()

        threads = [threading.Thread(target=sample, args=(which,)) for which in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(states) == 8
    for state in states.values():
        np.testing.assert_array_equal(state, states[0])


def test_the_package_holds_the_kernels() -> None:
    assert ROOT in PTX.parents
    assert PTX.is_file()
