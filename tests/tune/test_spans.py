"""Spans among the choices: what they are off by, what they cost, and schedules that have them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.compiler.progress import silent
from eecompile.errors import UsageError
from eecompile.programs.choice import Exit, Forecast
from eecompile.programs.forecasts import forecasts
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.sampling import StepResult
from eecompile.tune.choices import choices_of, schedule_from_picks, slots_of, spans_to_try
from eecompile.tune.influence import Influence, Recorded, measured_influence, movement, recorded
from eecompile.tune.latency import measured_costs
from eecompile.tune.model import Costs, Model, Picks
from eecompile.tune.optimise import found
from eecompile.tune.probe import Experiment, Prober
from eecompile.tune.problem import spans_of
from eecompile.tune.report import Front, FrontPoint
from eecompile.tune.search import improved
from eecompile.tune.tuning import tune
from eecompile.tune.work import Work
from tests.clock import standing_clock
from tests.runtime.emulated import EmulatedDevice, HostedEngine
from tests.tune.planted import BLOCK, PATTERN, BlockEngine, interface, settings, skipping_sampler
from tests.tune.test_optimise import BUDGETS, least, smooth

USES = ("exits", "forecasts", "spans")
PROCESS = interface().process


def place(t: float) -> float:
    return PROCESS.at(t).half_log_snr


def adds(block: int, t: float, hidden: Any) -> Any:
    """The first two blocks turn with time; what the others add is linear in half the log-SNR."""
    if block <= 2:
        return 0.2 * np.sin(t / 7) * np.broadcast_to(PATTERN, hidden.shape)
    return np.broadcast_to(0.05 * block * (1 + 0.1 * place(t)) * PATTERN[::-1], hidden.shape)


def curved(block: int, t: float, hidden: Any) -> Any:
    """Smooth, and not linear: every order is off."""
    return np.broadcast_to(0.1 * block * np.sin(place(t) / 2) * PATTERN**block, hidden.shape)


def experiment_of(
    sampler: Sampler, solver: str, steps: int, n: int = 3, use: tuple[str, ...] = USES, **given: Any
) -> Experiment:
    program = sampler.program(solver, steps, sampler.interface.exits[-1])
    exits = sampler.interface.exits
    choices = choices_of(exits, sampler.engines, use, len(program.steps), spans_of(sampler, steps))
    samples = SampleRequest(n=n, seed=5, **given)
    return Experiment(sampler, Prober(sampler), program, choices, samples, Work(None), silent)


def modelled(experiment: Experiment) -> tuple[Model, Recorded, Influence]:
    record = recorded(experiment)
    influence = measured_influence(experiment, record)
    program, full = experiment.program, experiment.choices[0].blocks
    share = np.array([choice.blocks / full for choice in experiment.choices])
    costs = Costs(0.0, np.tile((share + 0.01) / len(program.steps), (len(program.steps), 1)))
    slots = slots_of(program, 1000)
    return Model(program, slots, experiment.choices, costs, record, influence), record, influence


def real(experiment: Experiment, picks: Picks) -> float:
    program, sampler = experiment.program, experiment.sampler
    schedule = schedule_from_picks(picks, experiment.choices, slots_of(program, 1000))
    full, made = (
        sampler.sample_requests([experiment.samples], solver=each)[0]
        for each in (program, program.with_schedule(schedule, 1000))
    )
    return float(np.sqrt(np.square(made - full).mean()))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "ddpm", "heun"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_a_span_is_off_by_is_that_on_full_depth_s_states(solver: str, guidance: float) -> None:
    """What the blocks add depends on the time alone: it can be worked out by hand."""
    sampler = skipping_sampler(BlockEngine(curved))
    experiment = experiment_of(sampler, solver, 8, guidance=guidance)
    record, program = recorded(experiment), experiment.program
    assert not record.broken
    times = [step.moment for step in program.steps]
    for kind, choice in enumerate(experiment.choices):
        if not choice.cuts:
            continue
        added = [
            sum(curved(block, t, np.zeros((3, 6))) for block in range(choice.cuts[0] + 1, 5))
            for t in times
        ]
        for step, t in enumerate(times):
            before = sorted({t_ for t_ in times[:step] if t_ != t})[: choice.order + 1]
            if len(before) <= choice.order:
                continue
            powers = np.vander([place(t_) for t_ in before], choice.order + 1)
            rows = np.array([added[times.index(t_)][0] for t_ in before])
            polynomial = np.linalg.solve(powers, rows)
            here = np.vander([place(t)], choice.order + 1) @ polynomial
            off = np.sqrt(np.square(here - added[step]).mean())
            assert np.linalg.norm(record.errors[step, kind]) == pytest.approx(off, rel=2e-3)


def test_states_are_full_depth_s_where_what_blocks_add_depends_on_them() -> None:
    """One step moves the next state by its error."""
    sampler = skipping_sampler(
        BlockEngine(lambda block, t, hidden: 0.2 * np.sin(place(t) + block) * hidden)
    )
    experiment = experiment_of(sampler, "ddim", 8)
    record, full = recorded(experiment), [r.state for r in _states(experiment, experiment.program)]
    for step, kind in itertools.product((3, 5, 7), range(len(experiment.choices))):
        choice = experiment.choices[kind]
        if choice.cuts:
            each = iter([choice if index == step else Exit(4) for index in range(8)])
            changed = experiment.program.with_choices(lambda time, each=each: next(each))
            made = [r.state for r in _states(experiment, changed)]
            moved = np.sqrt(np.square(made[step] - full[step]).mean())
            off = np.linalg.norm(record.errors[step, kind]) * movement(changed.steps[step])
            assert moved == pytest.approx(off, rel=1e-2)


def _states(experiment: Experiment, program: Program) -> Iterator[StepResult]:
    return experiment.sampler.steps(experiment.samples.n, solver=program, seed=5)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_a_span_from_the_steps_before_is_predicted(solver: str) -> None:
    """And what is forecast from it, too."""
    experiment = experiment_of(skipping_sampler(BlockEngine(curved)), solver, 12)
    model, _, _ = modelled(experiment)
    for kind, choice in enumerate(experiment.choices):
        if choice.cuts:
            for at, after in itertools.product((4, 8), (0, 3)):
                picks = [0] * 12
                picks[at], picks[at + 1] = kind, after
                predicted = np.linalg.norm(model.assessed([tuple(picks)]).moved[0])
                assert predicted == pytest.approx(real(experiment, tuple(picks)), rel=0.3)


def test_farther_sources_are_worse_as_far_as_they_are_for_predictions() -> None:
    """Movements, worked out again from the program that runs."""
    experiment = experiment_of(skipping_sampler(BlockEngine(curved)), "dpmpp-2m", 10)
    model, record, influence = modelled(experiment)
    slots, rng, seen = slots_of(experiment.program, 1000), np.random.default_rng(0), 0
    draws = rng.integers(0, len(experiment.choices), (400, 10))
    draws[:, :3] = 0
    for picks in map(tuple, model.assessed(map(tuple, draws.tolist())).picks.tolist()[:60]):
        schedule = schedule_from_picks(picks, experiment.choices, slots)
        program = experiment.program.with_schedule(schedule, 1000)
        off: list[Any] = []
        moved = np.zeros(record.predictions.shape[1])
        for step, made_of in enumerate(forecasts(program)):
            choice, ratio = program.steps[step].chosen, influence.ratios[step, picks[step]]
            own = record.errors[step, picks[step]]
            if choice.cuts:
                before = sampler_weights(experiment, step, choice.order)
                longer = np.linalg.norm(record.forecast_error(made_of, step))
                own = own * longer / np.linalg.norm(record.forecast_error(before, step))
                seen += len(made_of) and made_of != before
            elif made_of:
                own = record.forecast_error(made_of, step)
                for source, weight in made_of:
                    share = weight * influence.ratios[step, picks[source]]
                    moved += share * off[source]
            moved += ratio * own
            off.append(own)
        np.testing.assert_allclose(model.assessed([picks]).moved[0], moved, atol=1e-9)
    assert seen > 20


def sampler_weights(experiment: Experiment, step: int, order: int) -> Any:
    """Of the steps just before, by the program in which this step alone forecasts."""
    each = iter([Forecast(order) if index == step else Exit(4) for index in range(10)])
    return forecasts(experiment.program.with_choices(lambda time: next(each)))[step]


def budget_picks(model: Model, budget: float) -> float:
    return model.distance(found(model).best(budget)[0])


@pytest.fixture(scope="module")
def chained(small_sets: dict[str, Path]) -> Iterator[Sampler]:
    with Sampler.open(small_sets["chained"]) as sampler:
        yield sampler


def test_with_spans_nothing_is_predicted_to_be_farther(chained: Sampler) -> None:
    with_, without = (
        modelled(experiment_of(chained, "ddim", 12, 2, use))[0] for use in (USES, USES[:2])
    )
    ratios = []
    for budget in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        near = found(with_).best(budget)[0]
        assert with_.cost(near) <= budget * (1 + 1e-9)
        ratios.append(with_.distance(near) / budget_picks(without, budget))
    assert max(ratios) < 1 + 1e-3
    assert min(ratios) < 0.9


def test_on_a_device_it_is_the_same(chained: Sampler) -> None:
    """Spans run there, where nothing of an evaluation can be replayed."""
    with Sampler(
        HostedEngine(chained.engine, chained.interface, EmulatedDevice()), chained.interface
    ) as device:
        experiments = [experiment_of(each, "dpmpp-2m", 6, 2) for each in (chained, device)]
        models = [modelled(experiment)[0] for experiment in experiments]
    span = next(
        i for i, choice in enumerate(experiments[0].choices) if choice.order and choice.cuts
    )
    for picks in ((0, 0, span, 0, span, 0), (0, 0, 0, span, span, 1)):
        near = [model.distance(picks) for model in models]
        assert near[1] == pytest.approx(near[0], rel=1e-3)
        assert near[0] > 0


def test_latencies_of_spans_are_what_their_blocks_take() -> None:
    with standing_clock():
        sampler = skipping_sampler(BlockEngine(adds, BLOCK))
        interval = {"guidance": 2.0, "guidance_interval": (300.0, 999.0)}
        for guided, acting in (({"guidance": 1.0}, {False}), (interval, {False, True})):
            experiment = experiment_of(sampler, "ddim", 12, 2, **guided)
            costs, latencies = measured_costs(experiment, seconds=0)
            assert {each.guided for each in latencies if each.choice.cuts} == acting
            for each in latencies:
                if not each.choice.memory:
                    blocks = each.choice.blocks * (4 if each.guided else 2)
                    assert each.median == pytest.approx(1e3 * BLOCK * blocks, rel=0.01)
            shares = np.array([choice.blocks for choice in experiment.choices]) / 4
            expected = costs.steps[:, :1] * shares
            np.testing.assert_allclose(costs.steps, expected, atol=1e-3)


@pytest.fixture(scope="module")
def planted_front() -> Front:
    with standing_clock():
        sampler = skipping_sampler(BlockEngine(adds, BLOCK))
        return tune(sampler, settings(budgets=(0.7,), steps=12, minutes=0.2))


def point(front: Front, name: str) -> FrontPoint:
    return next(point for point in front.points if point.name == name)


def test_a_span_is_found_where_it_is_the_best(planted_front: Front) -> None:
    """Exits and forecasts are far off; what blocks 3 and 4 add is extrapolated exactly."""
    best = point(planted_front, "budget-70")
    spans = {choice for choice in best.choices if choice.cuts}
    assert spans
    assert all(choice.cuts == (2, 4) and choice.order for choice in spans)
    assert best.time_share <= 0.71
    assert best.distance < 1e-4
    with standing_clock():
        sampler = skipping_sampler(BlockEngine(adds, BLOCK))
        chosen = settings(budgets=(0.7,), steps=12, minutes=0.2, use=("exits", "forecasts"))
        without = point(tune(sampler, chosen), "budget-70")
    assert without.distance > 100 * best.distance
    assert not any(choice.cuts for choice in without.choices)


def test_the_front_says_what_was_used_and_the_schedule_is_one(planted_front: Front) -> None:
    assert planted_front.settings.use == USES
    assert "4/2-4:1" in planted_front.error_terms
    best = point(planted_front, "budget-70")
    assert ExitSchedule.parse(best.schedule.text).choices == best.schedule.choices


def test_spans_alone_need_no_exits_and_forecasts() -> None:
    with standing_clock():
        sampler = skipping_sampler(BlockEngine(adds, BLOCK))
        front = tune(sampler, settings(budgets=(0.65,), minutes=0.0, use=("spans",)))
    best = point(front, "budget-65")
    assert {choice.cuts for choice in best.choices} <= {(), (2, 4), (1, 4), (0, 4)}
    assert sum(bool(choice.cuts) for choice in best.choices) >= 5
    assert all(choice.exits == (4,) for choice in best.choices)


def test_engine_sets_without_spans_have_none(small_sets: dict[str, Path]) -> None:
    with Sampler.open(small_sets["per_exit"]) as whole:
        assert spans_of(whole, 4) == ()
        few = settings(steps=4, budgets=(0.8,), minutes=0.0, seeds=2, held_out=2)
        front = tune(whole, few)
        assert front.settings.use == ("exits", "forecasts")
        assert not any(choice.cuts for each in front.points for choice in each.choices)
        with pytest.raises(UsageError, match=r"may use spans, of which no .* layout = 'chained'"):
            tune(whole, settings(steps=4, use=USES))
    with Sampler.open(small_sets["chained"], small_sets["per_exit"]) as both:
        assert spans_of(both, 4) == ()
        with pytest.raises(UsageError, match="not every engine set has any"):
            tune(both, settings(steps=4, use=("spans",)))


def test_many_steps_have_no_spans() -> None:
    sampler = skipping_sampler(BlockEngine(adds))
    assert spans_of(sampler, 250)
    assert not spans_of(sampler, 251)
    with pytest.raises(UsageError, match="251 steps; expected at most 250"):
        tune(sampler, settings(steps=251, use=USES))


def test_few_spans_are_tried_those_that_stop_last() -> None:
    def tried(*cuts: int) -> tuple[tuple[int, int], ...]:
        return spans_to_try(itertools.combinations(cuts, 2), cuts[-1])

    assert tried(0, 3, 6, 9, 12) == ((9, 12), (6, 12), (3, 12))
    assert tried(0, 1, 2, 3, 4, 5, 6, 7, 8) == ((6, 8), (4, 8), (2, 8))
    assert tried(0, 28) == ((0, 28),)
    assert tried(3) == spans_to_try((), 12) == ()
    texts = [c.text for c in choices_of((6, 12), ("a", "b"), ("spans",), 3, ((9, 12),))]
    assert texts == ["12", "12@b", "12/9-12:0", "12/9-12:1"]


def test_a_span_with_nan_is_left_out() -> None:
    """Block 3 gives NaN unless block 2 has added just what it adds at this time."""
    entered: list[Any] = []

    def fragile(block: int, t: float, hidden: Any) -> Any:
        second = np.broadcast_to(np.sin(5 * place(t)) * PATTERN, hidden.shape)
        if block == 1:
            entered[:] = [hidden]
        if block == 3 and not np.allclose(hidden, entered[0] + second, atol=1e-2):
            return np.full_like(hidden, np.nan)
        return second if block == 2 else np.zeros_like(hidden)

    cuts = (0, 1, 2)
    with standing_clock():
        sampler = skipping_sampler(BlockEngine(fragile, BLOCK, cuts), cuts)
        front = tune(sampler, settings(budgets=(0.8,), minutes=0.0))
    assert sum("4/1-2:" in text and "NaN" in text for text in front.warnings) == 3
    assert not any("4/1-2:" in each.choice.text for each in front.latencies)
    assert not any(choice.cuts == (1, 2) for each in front.points for choice in each.choices)


def instance(seed: int, steps: int = 6) -> Model:
    """A problem at random with one exit, forecasts and a span of every order."""
    rng, directions = np.random.default_rng(seed), 4
    program = skipping_sampler(BlockEngine(adds)).program("ddim", steps, 4)
    choices = choices_of((4,), (), ("forecasts", "spans"), steps, ((2, 4),))
    errors = np.zeros((steps, len(choices), directions))
    for index, choice in enumerate(choices):
        if choice.cuts:
            errors[:, index] = 0.1 / (1 + choice.order) * smooth(rng, steps, directions)
    ratios = rng.uniform(0.3, 1, (steps, 1)) * rng.uniform(0.8, 1.25, (steps, len(choices)))
    record = Recorded(smooth(rng, steps, directions), errors, {})
    shares = np.array([0.02 + choice.blocks / 4 for choice in choices]) * rng.uniform(
        0.95, 1.05, len(choices)
    )
    costs = Costs(0.01, np.tile(shares / shares[0] / steps, (steps, 1)))
    influence = Influence(np.zeros_like(ratios), ratios, ())
    return Model(program, slots_of(program, 1000), choices, costs, record, influence)


def test_it_is_near_the_least_of_all_schedules_with_spans() -> None:
    gaps = []
    for seed in range(3):
        model = instance(seed)
        front, known = found(model), least(model)
        used = set()
        for budget in BUDGETS:
            (picks,) = front.best(budget)
            assert model.cost(picks) <= budget * (1 + 1e-9)
            best = improved(picks, model, budget)
            used |= {pick for pick in best if model.choices[pick].cuts}
            gaps.append(model.distance(best) / known(budget) - 1)
        assert used
    assert min(gaps) > -1e-9
    assert np.mean(np.array(gaps) < 1e-9) > 0.8
    assert max(gaps) < 0.1
