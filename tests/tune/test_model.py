"""Probing, influence and prediction, on networks for which they are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from eecompile.compiler.progress import silent
from eecompile.programs.choice import Exit
from eecompile.programs.forecasts import forecasts
from eecompile.programs.program import Program
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.choices import Slots, choices_of, schedule_from_picks, slots_of
from eecompile.tune.influence import Influence, Recorded, measured_influence, movement, recorded
from eecompile.tune.model import Costs, Model, Picks
from eecompile.tune.probe import Experiment, Outputs, Prober
from eecompile.tune.search import Trials, neighbours
from eecompile.tune.work import Work
from tests.tune.planted import planted, sampler_of

SAMPLES = SampleRequest(n=3, seed=5)


class Posed(NamedTuple):
    """The model of a network, and what it is made of."""

    model: Model
    slots: Slots
    record: Recorded
    influence: Influence
    real: Callable[[Picks], float]
    programs: Callable[[Picks], Program]

    def predicted(self, picks: Picks) -> float:
        """The distance, where no movement is taken for unsure."""
        return float(np.linalg.norm(self.model.assessed([picks]).moved[0]))


def modelled(
    sampler: Sampler, solver: str = "ddim", steps: int = 8, *, most: int = 100, **given: Any
) -> Posed:
    program = sampler.program(solver, steps, sampler.interface.exits[-1])
    slots = slots_of(program, 1000, most)
    samples = SampleRequest(n=3, seed=5, **given)
    experiment = experiment_of(sampler, program, samples)
    choices = experiment.choices
    record = recorded(experiment)
    influence = measured_influence(experiment, record)
    share = np.array([choice.blocks for choice in choices]) / 4 / len(program.steps)
    costs = Costs(0.0, np.tile(share, (len(program.steps), 1)))
    model = Model(program, slots, choices, costs, record, influence)
    (full,) = sampler.sample_requests([samples], solver=program)

    def programs(picks: Picks) -> Program:
        return sampler.program(solver, steps, schedule_from_picks(picks, choices, slots))

    def real(picks: Picks) -> float:
        (made,) = sampler.sample_requests([samples], solver=programs(picks))
        return float(np.sqrt(np.square(made - full).mean()))

    return Posed(model, slots, record, influence, real, programs)


def experiment_of(sampler: Sampler, program: Program, samples: SampleRequest) -> Experiment:
    use, exits, count = ("exits", "forecasts"), sampler.interface.exits, len(program.steps)
    choices = choices_of(exits, sampler.engines, use, count)
    return Experiment(sampler, Prober(sampler), program, choices, samples, Work(None), silent)


def drawn(posed: Posed, rng: np.random.Generator, count: int) -> list[Picks]:
    """Picks at random that the model allows."""
    shape = (count, len(posed.slots.steps))
    made = rng.integers(0, len(posed.model.choices), shape)
    made[:, :3] = rng.integers(0, 3, (count, 3))  # exits, from which forecasts may be made
    return [tuple(row) for row in posed.model.assessed(map(tuple, made.tolist())).picks.tolist()]


def sums(posed: Posed, picks: Picks) -> float:
    """The distance if every movement had one direction; of exits."""
    alone = [(*[0] * place, pick, *[0] * (len(picks) - place - 1))
             for place, pick in enumerate(picks)]  # fmt: skip
    return sum(posed.predicted(each) for each in alone)


def error(depth: int, t: float) -> float:
    return {4: 0.0, 2: 0.01 + t / 2e4, 1: 0.03 + t / 1e4}[depth]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "ddpm"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_linear_network_s_distance_is_predicted_exactly(solver: str, guidance: float) -> None:
    posed = modelled(sampler_of(planted(error)), solver, guidance=guidance)
    rng = np.random.default_rng(0)
    for _ in range(5):
        picks = tuple(rng.integers(0, 3, len(posed.slots.steps)).tolist())
        assert posed.predicted(picks) == pytest.approx(posed.real(picks), rel=2e-2)
    assert posed.model.distance((0,) * len(picks)) == 0
    # Errors in one direction add up; what is unsure of each makes the distance a little larger.
    assert sums(posed, picks) == pytest.approx(posed.predicted(picks), rel=1e-3)
    assert posed.predicted(picks) < posed.model.distance(picks) < 1.1 * posed.predicted(picks)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_forecast_is_predicted_with_what_its_sources_had_lost(order: int) -> None:
    posed = modelled(sampler_of(planted(error)), "ddim", 20)
    for place in (3, 10, 17):
        picks = [0] * 20
        picks[place], picks[place - 1] = 3 + order, 2
        assert posed.predicted(tuple(picks)) == pytest.approx(posed.real(tuple(picks)), rel=0.2)
    assert posed.model.cost(tuple(picks)) == pytest.approx((18 + 0.25) / 20)


@pytest.mark.parametrize(
    ("solver", "most"), [("ddim", 100), ("dpmpp-2m", 100), ("heun", 100), ("pndm", 100),
                         ("dpm-solver-2", 100), ("ddim", 7)],
)  # fmt: skip
def test_steps_move_the_samples_by_what_their_forecasts_are_made_of(solver: str, most: int) -> None:
    """Sources and weights are those of the program that runs."""
    posed = modelled(sampler_of(planted(error)), solver, 12, most=most)
    ratios, record = posed.influence.ratios, posed.record
    schedules = drawn(posed, np.random.default_rng(0), 60)
    assert len(schedules) > 20
    for picks in schedules:
        program = posed.programs(picks)
        pick_of = {step: pick for pick, steps in zip(picks, posed.slots.steps, strict=True)
                   for step in steps}  # fmt: skip
        moved = np.zeros(record.predictions.shape[1])
        for step, made_of in enumerate(forecasts(program)):
            pick = pick_of[step]
            if not made_of:
                moved += ratios[step, pick] * record.errors[step, pick]
                continue
            moved -= ratios[step, pick] * record.predictions[step]
            for source, weight in made_of:
                own = pick_of[source]
                moved += weight * ratios[step, pick] * record.predictions[source]
                moved += weight * ratios[step, own] * record.errors[source, own]
        np.testing.assert_allclose(posed.model.assessed([picks]).moved[0], moved, atol=1e-9)


def test_what_may_not_be_made_is_left_out() -> None:
    model = modelled(sampler_of(planted(error))).model
    again, first, full = 3, 4, 0
    wanted = [
        (again, *[full] * 7),  # before any evaluation
        (full, first, *[full] * 6),  # after one
        (full, again, first, *[full] * 5),  # still after one
        (full, full, first, *[full] * 5),
        (full, again, *[full] * 6),
    ]
    kept = [tuple(row) for row in model.assessed(wanted).picks.tolist()]
    assert kept == wanted[3:]
    assert model.distance(wanted[0]) == np.inf


def test_errors_that_oppose_each_other_cancel() -> None:
    network = planted(lambda depth, t: 0.0 if depth == 4 else 0.05 * (-1) ** depth)
    posed = modelled(sampler_of(network), "ddim", 8)
    picks = (0, 0, 0, 1, 2, 0, 0, 0)  # depth 2, then depth 1
    assert posed.predicted(picks) == pytest.approx(posed.real(picks), rel=0.05)
    assert posed.predicted(picks) < 0.5 * sums(posed, picks)


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
    posed = modelled(sampler)
    experiment = experiment_of(sampler, sampler.program("ddim", 8, 4), SAMPLES)
    trials = Trials(experiment, posed.programs, posed.slots.steps)
    picks = (0, 0, 0, 0, 0, 1, 0, 2)
    assert trials.distance(picks) == pytest.approx(posed.real(picks), rel=1e-6)
    engine.calls.clear()
    assert trials.distance(picks) == pytest.approx(posed.real(picks), rel=1e-6)
    assert len(engine.calls) == 8  # ours
    engine.calls.clear()
    other = (*picks[:-1], 1)
    trials.distance(other)
    assert engine.calls == [(2, 3)]


def test_small_changes_stay_within_the_budget_the_nearest_first() -> None:
    model = modelled(sampler_of(planted(error))).model
    start, budget = (0, 1, 2, 1, 3, 2, 1, 1), 0.6
    assert model.cost(start) <= budget
    around = neighbours(start, model, budget)
    assert len(around) == len(set(around)) > 50
    assert start not in around
    distances = [model.distance(picks) for picks in around]
    assert distances == sorted(distances)
    assert max(map(model.cost, around)) <= budget
    differing = {sum(a != b for a, b in zip(start, picks, strict=True)) for picks in around}
    assert differing == {1, 2}
    assert (0, 1, 2, 3, 1, 2, 1, 1) in around  # a forecast one slot earlier


def test_choices_of_a_second_engine_set_are_asked_of_it() -> None:
    exact, off = planted(lambda depth, t: 0.0), planted(lambda depth, t: 0.5)
    sampler = sampler_of(exact, off)
    prober = Prober(sampler)
    x, t = np.zeros((2, 6), np.float32), np.zeros(2, np.float32)
    given = {"label": np.zeros(2, np.int64)}
    assert np.abs(prober.ask(Exit(4), x, t, given)[0]).max() == 0
    assert np.abs(prober.ask(Exit(4, "second"), x, t, given)[0]).max() == 0.5
