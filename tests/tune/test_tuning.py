"""The whole of tuning, on networks for which the best schedule is known."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from eecompile.errors import FormatError, NonFiniteError, OutputExistsError, UsageError
from eecompile.measure.bootstrap import intervals
from eecompile.programs.choice import Exit, Forecast
from eecompile.programs.interface import Resizable, State
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.store.files import form_bytes
from eecompile.tune.baselines import ASE, baseline_schedules
from eecompile.tune.choices import choices_of
from eecompile.tune.findings import Entry, findings, warnings
from eecompile.tune.held_out import Measured, steadied
from eecompile.tune.output import check_output, identity_of, opened_work, write
from eecompile.tune.report import Front, FrontPoint, read_front
from eecompile.tune.tuning import tune
from eecompile.tune.work import Work
from tests.clock import standing_clock
from tests.tune.planted import (
    BLOCK,
    EXITS,
    SHAPE,
    interface,
    planted,
    sampler_of,
    settings,
    spending,
)


def late(depth: int, t: float) -> float:
    """Exits lose nothing near the noise, and much near the data."""
    return 0.0 if depth == 4 else (4 - depth) * (0.05 if t < 500 else 1e-6)


def point(front: Front, name: str) -> Any:
    return next(point for point in front.points if point.name == name)


def blocks(each: FrontPoint) -> list[int]:
    """Of each step; 0 where nothing is evaluated."""
    return [choice.blocks for choice in each.choices]


@pytest.fixture(scope="module", autouse=True)
def clock() -> Iterator[None]:
    with standing_clock():
        yield


@pytest.fixture(scope="module")
def tuned(clock: None) -> Front:
    sampler = sampler_of(planted(late, BLOCK))
    return tune(sampler, settings(budgets=(0.75,), minutes=0.4))


def test_it_finds_the_planted_schedule(tuned: Front) -> None:
    found = point(tuned, "budget-75")
    early = blocks(found)[:5]  # t from 999 down to 500
    assert blocks(found)[5:] == [4] * 5
    assert sum(early) / 20 <= 0.5
    assert found.distance < 1e-5
    assert ExitSchedule(found.schedule.choices, found.schedule.thresholds) == found.schedule


def test_time_is_what_was_planted(tuned: Front) -> None:
    shares = [sum(blocks(each)) / 40 for each in tuned.points]
    for name in ("predicted_share", "time_share"):
        assert [getattr(each, name) for each in tuned.points] == pytest.approx(shares, rel=0.01)
    assert [each.ideal_share for each in tuned.points] == pytest.approx(shares)
    for each in tuned.points:
        assert each.spread[0] <= each.time_share <= each.spread[1]
    medians = {each.choice.text: each.median for each in tuned.latencies}
    assert medians["4"] == pytest.approx(4 * medians["1"], rel=0.01)


def test_distances_are_those_of_samples(tuned: Front) -> None:
    sampler = sampler_of(planted(late))
    given = {"seed": 0, "first": 4, "solver": "ddim"}
    full = sampler.sample(6, steps=10, schedule=4, **given)
    assert tuned.unit == "deviation"
    scale = sampler.sample(4, steps=10, schedule=4, solver="ddim").std()
    for name, steps, schedule in (("exit 1", 10, 1), ("ASE", 10, ExitSchedule.from_slices(
        [4, 4, 4, 4, 2, 2, 2, 2, 2, 2])), ("8 steps", 8, 4)):  # fmt: skip
        made = sampler.sample(6, steps=steps, schedule=schedule, **given)
        expected = float(np.sqrt(np.square(made - full).mean())) / scale
        assert point(tuned, name).distance == pytest.approx(expected, rel=1e-4)
    low, high = point(tuned, "exit 1").interval
    assert low <= point(tuned, "exit 1").distance <= high


def test_baselines_are_in_the_same_table(tuned: Front) -> None:
    kinds = {each.kind for each in tuned.points}
    assert kinds == {"full", "found", "exit", "linear", "ase", "published", "steps", "alone"}
    every = "".join("." if isinstance(each, Forecast) else "x" for each in
                    point(tuned, "every 2nd").choices)  # fmt: skip
    assert every == "xxx.x.x.x."
    assert len(point(tuned, "8 steps").choices) == 8


def test_each_kind_of_choice_alone_is_beside_what_was_found(tuned: Front) -> None:
    exits, forecasts = point(tuned, "exits alone 0.75"), point(tuned, "forecasts alone 0.75")
    assert all(isinstance(choice, Exit) for choice in exits.choices)
    assert {choice.blocks for choice in forecasts.choices} == {0, 4}
    for each in (exits, forecasts):
        assert each.predicted_share <= 0.75 * 1.01
        assert point(tuned, "budget-75").chosen_by <= each.chosen_by
    assert exits.distance < 1e-5 < forecasts.distance  # early exits lose nothing
    (sentence,) = (s for s in findings(tuned.points, ()) if s.startswith("Within 0.75 of"))
    assert "exits alone" in sentence
    assert "forecasts alone" in sentence


def test_without_a_budget_the_whole_front() -> None:
    front = tune(sampler_of(planted(late, BLOCK)), settings(minutes=0))
    found = [each for each in front.points if each.kind == "found"]
    assert len(found) >= 5
    distances = [each.distance for each in sorted(found, key=lambda each: -each.predicted_share)]
    assert all(near <= 1.1 * far for near, far in pairwise(distances))  # other samples chose
    for each in found:
        assert each.predicted_share <= each.budget * 1.01 * (1 + 1e-6)
    assert any(each.name.startswith("as-") for each in found)
    better = {each.baseline: each for each in front.comparisons}
    assert set(better) >= {"ASE", "linear to 2", "linear to 1", "exit 2"}
    assert better["ASE"].distance_ratio < 0.5
    assert better["ASE"].interval[0] <= better["ASE"].distance_ratio <= better["ASE"].interval[1]


def test_a_former_output_is_taken_where_it_costs_nothing() -> None:
    """The network is nearly constant: a former output is as good as a new one."""
    sampler = sampler_of(planted(late, BLOCK, slope=1e-6))
    front = tune(sampler, settings(budgets=(0.45,), steps=12))
    found = point(front, "budget-45")
    assert any(isinstance(choice, Forecast) for choice in found.choices)
    assert found.choices[0].evaluates
    assert {"again", "forecast1", "forecast2"} <= set(front.error_terms)
    assert found.distance < 0.1 * point(front, "exit 1").distance


@pytest.mark.parametrize(
    ("exits", "use"), [(EXITS, ("forecasts",)), ((4,), ("exits", "forecasts"))]
)
def test_forecasts_alone_need_no_exits(exits: tuple[int, ...], use: tuple[str, ...]) -> None:
    engine = planted(late, BLOCK)
    engine.exits = exits
    front = tune(Sampler(engine, interface(exits)), settings(budgets=(0.5,), use=use, steps=12))
    found = point(front, "budget-50")
    assert {choice.blocks for choice in found.choices} == {0, 4}
    assert found.predicted_share <= 0.5 * 1.01 * (1 + 1e-6)
    assert {each.kind for each in front.points} == {"full", "found", "published", "steps"}
    fewer = next(each for each in front.points if each.kind == "steps")
    assert found.distance < 0.2 * fewer.distance


def test_a_higher_order_is_taken_where_it_is_nearer() -> None:
    """The output is linear in half the log-SNR: order 1 forecasts it exactly, order 0 does not."""
    process = interface().process

    def predict(depth: int, x: Any, t: Any, given: Any) -> Any:
        return np.full_like(x, 0.1 * process.at(float(t[0])).half_log_snr)

    engine = FakeEngine((4,), spending(predict, BLOCK))
    front = tune(Sampler(engine, interface((4,))), settings(budgets=(0.5,), steps=12))
    found = point(front, "budget-50")
    used = {choice.order for choice in found.choices if isinstance(choice, Forecast)}
    assert used
    assert 0 not in used
    assert found.distance < 1e-5


def test_every_budget_has_its_schedule_though_another_has_the_same() -> None:
    front = tune(sampler_of(planted(late, BLOCK)), settings(budgets=(0.5, 0.501)))
    one, other = point(front, "budget-50"), point(front, "budget-50.1")
    assert one.schedule == other.schedule
    assert (one.distance, one.time_share) == (other.distance, other.time_share)


def test_exits_alone_forecast_nothing() -> None:
    front = tune(sampler_of(planted(late, BLOCK)), settings(budgets=(0.6,), use=("exits",)))
    assert all(choice.evaluates for choice in point(front, "budget-60").choices)
    assert front.error_terms == ("2", "1")


def test_a_second_engine_set_is_taken_where_it_is_as_good() -> None:
    slow, fast = (
        planted(late, BLOCK),
        planted(lambda d, t: late(d, t) + 1e-7, BLOCK / 4),
    )
    front = tune(sampler_of(slow, fast), settings(budgets=(0.4,)))
    found = point(front, "budget-40")
    assert "second" in {choice.engine for choice in found.choices}
    assert found.distance < 1e-4
    assert "@second" in found.schedule.text
    assert front.engines == ("first", "second")


def test_monotone_schedules_never_fall() -> None:
    def early(depth: int, t: float) -> float:
        return 0.0 if depth == 4 else (4 - depth) * (0.05 if t > 500 else 1e-6)

    free = tune(sampler_of(planted(early, BLOCK)), settings(budgets=(0.7,)))
    bound = tune(sampler_of(planted(early, BLOCK)), settings(budgets=(0.7,), monotone=True))
    depths = [depth for depth in blocks(point(bound, "budget-70")) if depth]
    assert depths == sorted(depths)
    free_depths = [depth for depth in blocks(point(free, "budget-70")) if depth]
    assert free_depths != sorted(free_depths)


def test_guidance_is_part_of_it() -> None:
    front = tune(
        sampler_of(planted(late, BLOCK)), settings(budgets=(0.75,)), SampleRequest(guidance=2.0)
    )
    assert {each.guided for each in front.latencies} == {True, False}
    assert all(each.guided == each.choice.evaluates for each in front.latencies)
    assert point(front, "budget-75").distance < 1e-5


def test_guidance_acts_within_its_interval() -> None:
    chosen = settings(budgets=(0.75,))
    request = SampleRequest(guidance=2.0, guidance_interval=(500.0, 999.0))
    front = tune(sampler_of(planted(late, BLOCK)), chosen, request)
    costs = {each.guided: each.median for each in front.latencies if each.choice.text == "4"}
    assert set(costs) == {False, True}
    everywhere = tune(sampler_of(planted(late, BLOCK)), chosen, SampleRequest(guidance=2.0))
    assert point(front, "exit 1").distance != point(everywhere, "exit 1").distance
    assert msgspec.json.decode(form_bytes(front), type=Front).settings == front.settings
    assert (front.settings.guidance, front.settings.guidance_interval) == (2.0, (500.0, 999.0))
    assert front.settings.digest == request.digest() != everywhere.settings.digest


def test_samples_may_have_another_shape() -> None:
    free = State(shape=SHAPE, resizable=Resizable(axes=(0,), min=2, max=12, multiple=2))

    def halves(depth: int, x: Any, t: Any, given: Any) -> Any:
        assert x.shape[1:] == (12,)
        return np.float32(0.3 if depth == 4 else 0.2) * x

    sampler = Sampler(FakeEngine(EXITS, halves), msgspec.structs.replace(interface(), state=free))
    front = tune(sampler, settings(budgets=(1.0,)), SampleRequest(shape=(12,)))
    given = {"steps": 10, "seed": 0, "first": 4, "solver": "ddim", "shape": (12,)}
    samples = [sampler.sample(6, schedule=depth, **given) for depth in (4, 1)]
    scale = sampler.sample(4, schedule=4, **{**given, "first": 0}).std()
    expected = float(np.sqrt(np.square(samples[1] - samples[0]).mean())) / scale
    assert point(front, "exit 1").distance == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UsageError, match="7"):
        tune(sampler, settings(), SampleRequest(shape=(7,)))


def test_an_exit_with_nan_is_left_out_with_a_warning() -> None:
    def broken(depth: int, t: float) -> float:
        return math.nan if depth == 1 and t < 300 else late(depth, t)

    front = tune(sampler_of(planted(broken, BLOCK)), settings(budgets=(0.8,)))
    (warning,) = [text for text in front.warnings if "NaN" in text]
    assert "exit 1 gives NaN" in warning
    used = {depth for each in front.points for depth in blocks(each)}
    assert 1 not in used
    assert {each.choice.blocks for each in front.latencies if each.choice.evaluates} == {2, 4}


def test_full_depth_with_nan_is_an_error() -> None:
    engine = planted(lambda depth, t: math.nan if depth == 4 and t < 300 else 0.0)
    with pytest.raises(NonFiniteError, match="exit 4"):
        tune(sampler_of(engine), settings())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"budgets": (0.02,)}, "a budget of 0.02 of full depth's time; expected at least 0."),
        ({"budgets": (1.5,)}, "budget 1.5; expected above 0, and at most 1"),
        ({"budgets": (math.nan,)}, "budget nan"),
        ({"seeds": 1}, "--seeds"),
        ({"held_out": 0}, "--held-out"),
        ({"batch": 65}, "batch size 65; expected 1 to 64"),
        ({"minutes": -1}, "minutes"),
        ({"solver": "nonsense"}, "solver 'nonsense'"),
        ({"use": ("exits", "nonsense")}, "'nonsense' among what schedules may use"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(changed: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        tune(sampler_of(planted(late, BLOCK / 4)), settings(**changed))
    assert words in str(caught.value)


def test_full_depth_alone_is_nothing_to_choose_from() -> None:
    engine = planted(late, BLOCK)
    engine.exits = (4,)
    with pytest.raises(UsageError, match="full depth alone"):
        tune(Sampler(engine, interface((4,))), settings(use=("exits",)))


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    chosen = settings(budgets=(0.75,), minutes=0.01)

    class StoppedError(BaseException):
        pass

    def evaluations(stop: int) -> int:
        """How many there were, when the run is stopped at its ``stop``-th report."""
        engine, reports = planted(late, BLOCK / 4), 0

        def report(phase: str, done: int = 0, total: int = 0) -> None:
            nonlocal reports
            reports += 1
            if reports == stop:
                raise StoppedError

        with opened_work(tmp_path / "out", "same") as work:
            front = tune(sampler_of(engine), chosen, work=work, report=report)
            write(front, tmp_path / "out")
        return len(engine.calls)

    for stop in (5, 20, 40, 80):
        with pytest.raises(StoppedError):
            evaluations(stop)
        assert (tmp_path / "out" / ".tune.partial").exists()
    resumed = evaluations(0)
    assert read_front(tmp_path / "out" / "front.json").network == "planted"
    assert not (tmp_path / "out" / ".tune.partial").exists()
    shutil.rmtree(tmp_path / "out")
    assert resumed < 0.7 * evaluations(0)


def test_the_folder_holds_schedules_that_sampling_takes(tuned: Front, tmp_path: Path) -> None:
    paths = write(tuned, tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    assert read_front(tmp_path / "front.json") == tuned
    schedule = ExitSchedule.parse(str(tmp_path / "budget-75.json"))
    assert schedule == point(tuned, "budget-75").schedule
    about = msgspec.json.decode((tmp_path / "budget-75.json").read_bytes())["about"]
    assert about["solver"] == "ddim"
    assert about["budget"] == 0.75
    sampler_of(planted(late)).sample(1, schedule=schedule, steps=5)


def test_a_folder_is_replaced_only_when_asked_and_never_another_s(
    tuned: Front, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    check_output(out, force=False)
    out.mkdir()
    check_output(out, force=False)
    write(tuned, out)
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(out, force=False)
    check_output(out, force=True)
    renamed = [msgspec.structs.replace(p, name=f"{p.name}-new") for p in tuned.points]
    write(msgspec.structs.replace(tuned, points=tuple(renamed)), out)
    assert sorted(path.name for path in out.glob("budget*")) == ["budget-75-new.json"]
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"mine\.txt"):
        check_output(out, force=True)


def test_names_in_a_front_reach_nothing_outside_its_folder(tuned: Front, tmp_path: Path) -> None:
    out, precious = tmp_path / "in" / "out", tmp_path / "precious.json"
    precious.write_text("years")
    write(tuned, out)
    for name in ("../../precious", str(tmp_path / "precious")):
        front = (out / "front.json").read_bytes()
        (out / "front.json").write_bytes(front.replace(b'"budget-75"', f'"{name}"'.encode()))
        with pytest.raises(OutputExistsError, match=r"also holds budget-75\.json"):
            write(tuned, out)
        (out / "budget-75.json").unlink()
        write(tuned, out)
        assert precious.read_text() == "years"


def test_a_damaged_front_may_be_replaced(tuned: Front, tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = write(tuned, out)
    front = (out / "front.json").read_bytes()
    (out / "front.json").write_bytes(front.replace(b'"name": "full', b'"name": "f\xffll'))
    with pytest.raises(UsageError, match="no front"):
        read_front(out / "front.json")
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(out, force=False)
    assert write(tuned, out) == paths
    assert read_front(out / "front.json") == tuned


def test_a_front_of_another_format_is_refused(tuned: Front, tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_bytes(form_bytes(msgspec.structs.replace(tuned, format=99)))
    with pytest.raises(FormatError, match="format 99"):
        read_front(path)
    path.write_text("{}")
    with pytest.raises(UsageError, match="no front"):
        read_front(path)
    path.write_bytes(form_bytes(msgspec.structs.replace(tuned, errors=((-1.0,),))))
    with pytest.raises(UsageError, match="no front"):
        read_front(path)


def test_a_run_that_measured_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError), opened_work(tmp_path / "out", "x") as work:
        tune(sampler_of(planted(late)), settings(solver="nonsense"), work=work)
    assert not (tmp_path / "out").exists()


def test_the_authors_schedule_as_shares_of_depth() -> None:
    assert 1 - sum(ASE) / 10 == pytest.approx(0.286, abs=5e-4)
    exits = (3, 6, 9, 12)
    made = {
        b.name: b
        for b in baseline_schedules(
            exits, choices_of(exits, (), ("exits",), 10), interface(exits).schedules
        )
    }
    text = ExitSchedule.parse("12,12,9,9,9,9,6,6,6,6")
    times = np.arange(0, 1000, 10)
    found = made["ASE"].schedule
    assert [found.choice_at(t, 1000) for t in times] == [text.choice_at(t, 1000) for t in times]
    linear = made["linear to 3"].schedule
    assert [linear.choice_at(t, 1000).blocks for t in (0, 999)] == [12, 3]
    whole = interface((12, 16, 20, 24, 28))
    ase = {
        b.name: b
        for b in baseline_schedules(
            whole.exits, choices_of(whole.exits, (), ("exits",), 10), whole.schedules
        )
    }["ASE"]
    assert ase.schedule.exits == (28, 24, 20, 16, 12)


def test_the_bootstrap_covers_and_pairs() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        squares = rng.exponential(4.0, 40)
        ((low, high),) = intervals([squares], seed=trial)
        inside += low <= 2.0 <= high
    assert 170 <= inside <= 198
    wide = rng.exponential(4.0, 40)
    ((low, high),) = intervals([0.25 * wide], over=[wide])
    assert (low, high) == pytest.approx((0.5, 0.5))


def test_a_slow_round_is_not_a_slow_program() -> None:
    usual = np.array([[1.0], [0.7], [0.5]])
    slowed = usual * [1.0, 3.0, 1.2, 1.0, 1.1]
    slowed[1, 0] *= 1.3  # one sampling alone
    times = np.median(steadied(slowed), axis=1)
    assert times / times[0] == pytest.approx(usual[:, 0], rel=1e-6)
    assert isinstance(Measured(slowed[0], times[0], times[0]), tuple)


def test_a_busy_machine_is_told_of(tuned: Front) -> None:
    entry = Entry("full", "full", sampler_of(planted(late)).program("ddim", 10, 4),
                  ExitSchedule.constant(4), 10, 1.0)  # fmt: skip
    for factor, told in ((1.01, False), (1.3, True)):
        made = [
            msgspec.structs.replace(point, time_share=factor * point.predicted_share)
            for point in tuned.points
        ]
        texts = list(warnings(made, [entry], {}, (), tuned.settings))
        assert any("busy" in text for text in texts) == told


def test_it_is_loaded_only_when_asked_for_and_needs_the_runtime_alone() -> None:
    code = "import sys, eecompile; print('eecompile.tune' in sys.modules); "
    code += "import eecompile.tune.tuning, eecompile.tune.output; "
    code += "print(*{'torch', 'onnx', 'polygraphy', 'plotly', 'rich', 'filelock'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_what_was_measured_serves_other_budgets(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    given = SampleRequest(conditions={"label": [1, 2]})
    known = identity_of(settings(), [tmp_path], given, threads=1)
    assert identity_of(settings(budgets=(0.5,), minutes=9.0), [tmp_path], given, threads=1) == known
    others = [
        identity_of(settings(seeds=9), [tmp_path], given, threads=1),
        identity_of(settings(), [tmp_path], SampleRequest(seed=1), threads=1),
        identity_of(settings(), [tmp_path], given, threads=2),
    ]
    (tmp_path / "manifest.json").write_text("[]")
    others.append(identity_of(settings(), [tmp_path], given, threads=1))
    assert len({known, *others}) == 5


def test_everything_can_be_kept_in_memory() -> None:
    work = Work(None)
    work.put("x", 1)
    assert work.get("x") == 1
    work.remove()
