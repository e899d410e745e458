"""Probing, influence and prediction, on networks for which they are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eecompile.compiler.progress import silent
from eecompile.programs.choice import Exit, Forecast
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.choices import Slots, choices_of, schedule_from_picks, slots_of
from eecompile.tune.influence import local_errors, measured_influence, movement
from eecompile.tune.model import Costs, Model
from eecompile.tune.optimise import objective
from eecompile.tune.probe import Experiment, Outputs, Prober
from eecompile.tune.search import Trials, improved, neighbours
from eecompile.tune.work import Work
from tests.tune.planted import planted, sampler_of

SAMPLES = SampleRequest(n=3, seed=5)


def modelled(
    sampler: Sampler, solver: str = "ddim", steps: int = 8, *, reuse: bool = False, **given: Any
) -> tuple[Model, Slots, Any]:
    """The model of a network, and the real distance of picks."""
    program = sampler.program(solver, steps, sampler.interface.exits[-1])
    choices = choices_of(sampler.interface.exits, sampler.engines)
    slots = slots_of(program, 1000)
    samples = SampleRequest(n=3, seed=5, **given)
    experiment = Experiment(
        sampler, Prober(sampler), program, choices, samples, reuse, Work(None), silent
    )
    errors = local_errors(experiment)
    influence = measured_influence(experiment, errors)
    depths = [choice.depth for choice in choices]
    share = np.array(depths) / depths[0] / len(program.steps)
    count = len(program.steps)
    costs = Costs(0.0, np.tile(share, (count, 1)), np.zeros(count))
    model = Model(slots, costs, errors, influence, depths, reuse=reuse)
    (full,) = sampler.sample_requests([samples], solver=program)

    def real(picks: tuple[int, ...]) -> float:
        schedule = schedule_from_picks(picks, (*choices, Forecast()), slots)
        (made,) = sampler.sample_requests([samples], solver=solver, steps=steps, schedule=schedule)
        return float(np.sqrt(np.square(made - full).mean()))

    return model, slots, real


def error(depth: int, t: float) -> float:
    return {4: 0.0, 2: 0.01 + t / 2e4, 1: 0.03 + t / 1e4}[depth]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "ddpm"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_linear_network_s_distance_is_predicted_exactly(solver: str, guidance: float) -> None:
    sampler = sampler_of(planted(error))
    model, slots, real = modelled(sampler, solver, guidance=guidance)
    rng = np.random.default_rng(0)
    for _ in range(5):
        picks = tuple(rng.integers(0, 3, len(slots.steps)).tolist())
        assert model.distance(picks) == pytest.approx(real(picks), rel=2e-2)
    assert model.distance((0,) * len(slots.steps)) == 0
    # Errors in one direction add up: the optimiser's sum is the distance.
    assert objective(model.table, picks)[1] == pytest.approx(model.distance(picks), rel=1e-3)


def test_a_former_output_is_predicted_with_what_it_had_lost() -> None:
    sampler = sampler_of(planted(error))
    model, _slots, real = modelled(sampler, "ddim", 20, reuse=True)
    for place in (3, 10, 17):
        picks = [0] * 20
        picks[place], picks[place - 1] = model.table.again, 2
        assert model.distance(picks) == pytest.approx(real(tuple(picks)), rel=0.15)
    assert model.cost(picks) == pytest.approx((18 + 0.25) / 20)


def test_errors_that_oppose_each_other_cancel() -> None:
    sampler = sampler_of(planted(lambda depth, t: 0.0 if depth == 4 else 0.05 * (-1) ** depth))
    model, _slots, real = modelled(sampler, "ddim", 8)
    picks = (0, 0, 0, 1, 2, 0, 0, 0)  # depth 2, then depth 1
    assert model.distance(picks) == pytest.approx(real(picks), rel=0.05)
    assert model.distance(picks) < 0.5 * objective(model.table, picks)[1]


def test_a_prober_replays_without_evaluating() -> None:
    engine = planted(error)
    sampler = sampler_of(engine)
    prober, record = Prober(sampler), {}
    program = sampler.program("dpmpp-2m", 6, 4)
    expected = sampler.sample(3, solver=program, seed=5)
    first: dict[int, Outputs] = record
    np.testing.assert_array_equal(prober.run(program, SAMPLES, record=first), expected)
    engine.calls.clear()
    changed = sampler.program("dpmpp-2m", 6, [2, 4, 4])  # the last two steps
    shared = {step: outputs for step, outputs in first.items() if step < 4}
    found = prober.run(changed, SAMPLES, replay=shared)
    assert len(engine.calls) == 2
    np.testing.assert_array_equal(found, sampler.sample(3, solver=changed, seed=5))


def test_a_prober_divides_what_engines_do_not_take() -> None:
    engine = planted(error)
    engine.max_batch = 2
    sampler = sampler_of(engine)
    program = sampler.program("ddim", 3, 4)
    samples = SampleRequest(n=5, guidance=2.0)
    found = Prober(sampler).run(program, samples)
    np.testing.assert_allclose(found, sampler.sample(5, solver=program, guidance=2.0), atol=1e-6)
    assert max(batch for _, batch in engine.calls) == 2


def test_movement_is_what_a_unit_of_the_output_does_to_the_next_state() -> None:
    class Shifted:
        """Gives 1 more in one step."""

        def __init__(self, step: int) -> None:
            self.step, self.count = step, 0

        def __call__(self, depth: int, x: NDArray[Any], t: Any, given: Any) -> Any:
            self.count += 1
            return 0.2 * x + (self.count == self.step + 1)

    from eecompile.runtime.engines.fake import FakeEngine
    from tests.tune.planted import interface

    made = [Sampler(FakeEngine((4,), Shifted(at)), interface((4,))) for at in (2, 99)]
    program = made[0].program("dpmpp-2m", 6, 4)
    states = [[r.state for r in s.steps(1, solver=program)] for s in made]
    moved = np.abs(states[0][2] - states[1][2])
    np.testing.assert_allclose(moved, movement(program.steps[2]), rtol=1e-4)


def test_trials_share_what_they_have_in_common() -> None:
    engine = planted(error)
    sampler = sampler_of(engine)
    _model, slots, real = modelled(sampler)
    choices = choices_of((1, 2, 4), ())

    def programs(picks: tuple[int, ...]) -> Any:
        return sampler.program("ddim", 8, schedule_from_picks(picks, choices, slots))

    program = sampler.program("ddim", 8, 4)
    experiment = Experiment(
        sampler, Prober(sampler), program, choices, SAMPLES, False, Work(None), silent
    )
    trials = Trials(experiment, programs, slots.steps)
    picks = (0, 0, 0, 0, 0, 1, 0, 2)
    assert trials.distance(picks) == pytest.approx(real(picks), rel=1e-6)
    engine.calls.clear()
    assert trials.distance(picks) == pytest.approx(real(picks), rel=1e-6)  # 2 samplings of ours
    assert len(engine.calls) == 8
    engine.calls.clear()
    other = (*picks[:-1], 1)
    trials.distance(other)
    assert engine.calls == [(2, 3)]


def test_small_changes_stay_within_the_budget_and_end_at_a_minimum() -> None:
    model, _slots, _ = modelled(sampler_of(planted(error)))
    start, budget = (0, 1, 2, 1, 0, 2, 1, 1), 0.6
    assert model.cost(start) <= budget
    best = improved(start, model, budget)
    assert model.cost(best) <= budget
    assert model.distance(best) < model.distance(start)
    around = list(neighbours(best, model, budget))
    assert around
    assert min(distance for distance, _ in around) >= model.distance(best) * (1 - 1e-9)
    model.table = model.table._replace(monotone=True)
    for _, picks in neighbours((2, 2, 1, 1, 1, 0, 0, 0), model, 1.0):
        depths = [model.table.depths[pick] for pick in picks]
        assert depths == sorted(depths)


def test_choices_of_a_second_engine_set_are_asked_of_it() -> None:
    exact, off = planted(lambda depth, t: 0.0), planted(lambda depth, t: 0.5)
    sampler = sampler_of(exact, off)
    prober = Prober(sampler)
    x, t = np.zeros((2, 6), np.float32), np.zeros(2, np.float32)
    given = {"label": np.zeros(2, np.int64)}
    assert np.abs(prober.ask(Exit(4), x, t, given)[0]).max() == 0
    assert np.abs(prober.ask(Exit(4, "second"), x, t, given)[0]).max() == 0.5
