"""Forecasts, executed: against an interpreter in float64, on the host and on a device."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from eecompile.programs.choice import HIGHEST, Choice, Exit, Forecast
from eecompile.programs.forecasts import forecasts
from eecompile.programs.interface import Condition, Interface, State
from eecompile.programs.process import Process
from eecompile.programs.program import Program
from eecompile.programs.solvers import FACTS, SOLVERS
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.trajectory.host import HostTrajectory
from eecompile.runtime.trajectory.lowering import Sum, lowered
from eecompile.runtime.trajectory.noise import normal_noise
from eecompile.runtime.trajectory.plan import Plan, Rows
from tests.programs.interpreter import states
from tests.runtime.emulated import EmulatedEngine

SHAPE = (2, 3)
LABEL = Condition(dtype="int64", range=(0, 9), default=0, null=10)
PROCESSES = {
    "diffusion": Process(prediction="v_prediction"),
    "learned": Process(variance="learned_range"),
    "flow": Process(family="flow", prediction="flow", shift=3.0),
    "edm": Process(family="edm", prediction="edm", sigma_max=20.0),
}
KINDS = [
    (name, kind)
    for name, facts in FACTS.items()
    for kind in PROCESSES
    if PROCESSES[kind].family in facts.families and (kind != "learned" or name == "ddpm")
    if (name, kind) not in (("dpm-solver-2", "flow"), ("dpm-solver-3", "flow"))  # ill-conditioned
]


def smooth(depth: int, x: Any, t: Any, given: Mapping[str, Any]) -> Any:
    """A prediction that depends on all that there is, and its slope is small."""
    ones = (-1, *(1 for _ in x.shape[1:]))
    t, label = np.reshape(t, ones), np.reshape(given["label"], ones)
    return 0.5 * np.tanh(x * 0.4 + t / 900 + depth / 7) + 0.1 * np.cos(label + x)


def interface(kind: str) -> Interface:
    return Interface(
        name=kind,
        exits=(1, 3),
        state=State(shape=SHAPE),
        conditions={"label": LABEL},
        process=PROCESSES[kind],
    )


def predict_for(kind: str) -> Any:
    def predict(depth: int, x: Any, t: Any, given: Any) -> Any:
        made = smooth(depth, x, t, given)
        return (made, np.tanh(made + x)) if kind == "learned" else made

    return predict


def with_choices(program: Program, choices: list[Choice]) -> Program:
    """The program with these choices, in turn; the first three moments are evaluated."""
    steps, seen = [], set[float]()
    for index, step in enumerate(program.steps):
        choice = Exit(3) if len(seen) < 3 else choices[index % len(choices)]
        seen.add(step.moment)
        steps.append(msgspec.structs.replace(step, choice=choice))
    return msgspec.structs.replace(program, steps=tuple(steps))


# Of few forecasts in a row: many of order 2 carry errors as far as the sample's own size.
CHOICES = st.lists(
    st.sampled_from([Exit(3), Exit(1), Exit(3), Forecast(), Forecast(1), Forecast(2)]),
    min_size=1,
    max_size=9,
).filter(lambda choices: any(choice.evaluates for choice in choices[:3]))


@pytest.mark.parametrize(("solver", "kind"), KINDS)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(choices=CHOICES, steps=st.integers(8, 14), guidance=st.sampled_from([1.0, 2.5]))
def test_programs_with_forecasts_equal_an_interpreter(
    solver: str, kind: str, choices: list[Choice], steps: int, guidance: float
) -> None:
    program = with_choices(SOLVERS[solver](PROCESSES[kind], steps, lambda t: Exit(3)), choices)

    def network(depth: int, x: Any, t: float) -> Any:
        made, *rest = (
            np.atleast_1d(each)
            for each in _parts(predict_for(kind)(depth, x, np.full(1, t), {"label": np.full(1, 4)}))
        )
        without, *_ = _parts(predict_for(kind)(depth, x, np.full(1, t), {"label": np.full(1, 10)}))
        guided = without + guidance * (made - without)
        return (guided, *rest) if rest else guided

    def noise_of(draw: int) -> Any:
        return normal_noise(7, range(2), draw, SHAPE).astype(np.float64)

    expected = states(program, network, noise_of)
    with Sampler(FakeEngine((1, 3), predict_for(kind)), interface(kind)) as sampler:
        found = list(sampler.steps(2, solver=program, seed=7, guidance=guidance, label=4))
    for result, state in zip(found, expected[1:], strict=True):
        np.testing.assert_allclose(result.state, state, atol=1e-4 * (1 + np.abs(state).max()))


def _parts(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize(("solver", "kind"), KINDS)
def test_forecasts_of_polynomials_are_evaluations(solver: str, kind: str) -> None:
    """Every step after the first three moments is forecast, yet nothing is lost."""
    process = PROCESSES[kind]
    full = SOLVERS[solver](process, 9, lambda t: Exit(3))
    points = {np.float32(s.timestep): process.at(s.moment) for s in full.steps}

    def predict(depth: int, x: Any, t: Any, given: Any, order: int = 0) -> Any:
        point = points[t[0]]
        place = point.half_log_snr if process.family == "diffusion" else point.sigma
        made = np.full_like(x, sum((0.3, 0.05, -0.02)[power] * place**power for power in orders))
        return (made, np.full_like(x, 0.25)) if kind == "learned" else made

    for order in (0, 1, 2):
        orders = range(order + 1)
        program = with_choices(full, [Forecast(order)])
        engine = FakeEngine((1, 3), predict)
        with Sampler(engine, interface(kind)) as sampler:
            expected = sampler.sample(2, solver=full, seed=1)
            engine.calls.clear()
            found = sampler.sample(2, solver=program, seed=1)
        evaluated = [step.moment for step in program.steps if step.chosen.evaluates]
        assert len(engine.calls) == len(evaluated)
        assert len(set(evaluated)) == 3
        size = 1 + np.abs(expected).max()
        weights = max(sum(abs(w) for _, w in each) for each in forecasts(program))
        np.testing.assert_allclose(found, expected, atol=3e-6 * size * weights)


def test_samples_do_not_depend_on_the_batch() -> None:
    requests = [
        SampleRequest(n=3, seed=1, guidance=1.0, conditions={"label": 2}),
        SampleRequest(n=2, seed=4, guidance=[3.0, 1.0], conditions={"label": [3, 4]}),
    ]
    choices: list[Choice] = [Exit(3), Forecast(1), Exit(1), Forecast(2), Forecast(2)]
    for kind, solver in (("diffusion", "dpmpp-2m"), ("learned", "ddpm"), ("flow", "flow-heun")):
        program = with_choices(SOLVERS[solver](PROCESSES[kind], 12, lambda t: Exit(3)), choices)
        for largest in (64, 3, 1):
            engine = FakeEngine((1, 3), predict_for(kind), largest)
            with Sampler(engine, interface(kind)) as sampler:
                together = sampler.sample_requests(requests, solver=program)
                alone = [sampler.sample_requests([each], solver=program)[0] for each in requests]
                single = sampler.sample(1, solver=program, seed=1, first=2, label=2)
            for one, other in zip(together, alone, strict=True):
                np.testing.assert_allclose(one, other, atol=2e-5)
            np.testing.assert_allclose(single[0], together[0][2], atol=2e-5)


def test_guidance_within_an_interval_is_what_is_extrapolated() -> None:
    """Predictions as they were used: without guidance before the interval, with it inside."""
    program = SOLVERS["ddim"](PROCESSES["diffusion"], 6, lambda t: Exit(3))
    choices = [Exit(3), Exit(3), Exit(3), Forecast(1), Exit(3), Forecast(1)]
    program = with_choices(program, choices)
    interval = (program.steps[3].moment, program.steps[2].moment)  # steps 2 and 3

    def flat(depth: int, x: Any, t: Any, given: Any) -> Any:
        label = np.reshape(given["label"], (-1, 1, 1))
        return np.ones_like(x) * np.where(label == 10, 1.0, 2.0)

    found = []
    for guidance in (1.0, 3.0):
        engine = FakeEngine((1, 3), flat)
        with Sampler(engine, interface("diffusion")) as sampler:
            kept = sampler.steps(
                1, solver=program, guidance=guidance, guidance_interval=interval, label=4
            )
            found.append([result.state for result in kept])
    plain, guided = found
    np.testing.assert_array_equal(plain[1], guided[1])
    # With label 4 the prediction is 2, and 4 where guidance acts; step 3 forecasts from both.
    (before, after) = (forecasts(program)[3][1][1], forecasts(program)[3][0][1])
    term = {t.buffer: t.coefficient for t in _state_update(program, 3)}
    expected = term["state"] * guided[2] + term["output"] * (4 * after + 2 * before)
    np.testing.assert_allclose(guided[3], expected, rtol=1e-5)


def _state_update(program: Program, index: int) -> Any:
    (update,) = program.steps[index].updates
    return update.terms


@settings(max_examples=60)
@given(orders=st.lists(st.sampled_from([None, None, 0, 1, 2]), max_size=16))
def test_as_many_predictions_are_kept_as_are_alive(orders: list[int | None]) -> None:
    choices = [Exit(3)] * 3 + [Exit(3) if each is None else Forecast(each) for each in orders]
    process = PROCESSES["diffusion"]
    full = SOLVERS["ddim"](process, len(choices), lambda t: Exit(3))
    steps = (msgspec.structs.replace(s, choice=c) for s, c in zip(full.steps, choices, strict=True))
    program = msgspec.structs.replace(full, steps=tuple(steps))
    plan = Plan(program=program, interface=interface("diffusion"), shape=SHAPE, size=1)
    lower = lowered(plan, FakeEngine((3,), smooth))
    kept = [name for name in lower.buffers if name.startswith("kept")]
    written = [
        {each.into for each in operations if isinstance(each, Sum)} for operations in lower.steps
    ]
    alive = []
    for now in range(len(choices)):  # made by then, and read then or later
        sources = {
            source
            for later in range(now, len(choices))
            for source, _ in forecasts(program)[later][1:]
            if source <= now
        }
        alive.append(len(sources))
    assert len(kept) == max(alive)
    assert len(kept) <= HIGHEST + 1
    assert ("forecast" in lower.buffers) == any("forecast" in each for each in written)
    assert ("forecast" in lower.buffers) == any(each.order for each in choices)


@pytest.mark.parametrize("kind", PROCESSES)
def test_host_and_device_agree(kind: str) -> None:
    rng = np.random.default_rng(3)
    names = [name for name, each in KINDS if each == kind]
    cases = itertools.product(names, (0, 2))
    for solver, guided in cases:
        choices: list[Choice] = [Forecast(int(o)) if o >= 0 else Exit(3) for o in
                                 (*rng.integers(-1, 3, 6), -1)]  # fmt: skip
        program = with_choices(SOLVERS[solver](PROCESSES[kind], 8, lambda t: Exit(3)), choices)
        plan = Plan(program=program, interface=interface(kind), shape=SHAPE, size=3, guided=guided)
        rows = Rows(
            seeds=np.full(3, 5, np.uint64),
            samples=np.arange(3, dtype=np.uint64),
            scales=np.full(guided, 2.0, np.float32),
            conditions={"label": np.array([1, 2, 3, *[10] * guided])},
        )
        engine = EmulatedEngine(plan.interface, lambda *each: _parts(predict_for(kind)(*each)))
        host = HostTrajectory(engine, plan)
        host.start(rows)
        host.run()
        with engine.trajectory(plan) as trajectory:
            for _ in range(2):  # the second time, from the graph
                trajectory.start(rows)
                trajectory.run()
                np.testing.assert_allclose(trajectory.state(), host.state(), rtol=1e-5, atol=1e-5)
        assert engine.device.graphs == 1
