"""What the gate lets through, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from eecompile.compare.candidates import Opened
from eecompile.compare.gate import fraction, regressions, unjudged
from eecompile.compare.measure import latencies, latency
from eecompile.compare.report import (
    Candidate,
    Comparison,
    ComparisonSettings,
    ExitFigures,
    OutputError,
    TrajectoryFigures,
)
from eecompile.errors import UsageError
from eecompile.programs.choice import Exit
from eecompile.programs.interface import Interface, State
from eecompile.runtime.engines.fake import FakeEngine
from tests.clock import spend, standing_clock

FACE = Interface(name="fake", exits=(4,), state=State(shape=(2,)))


def fake(seconds: float) -> FakeEngine:
    """Takes a given time on the standing clock."""

    def predict(depth: int, x: Any, *_: Any) -> Any:
        spend(seconds)
        return x

    return FakeEngine((4,), predict)


def measured(**seconds: float) -> Comparison:
    """A report of fakes that were timed; the first is the reference."""
    candidates = {name: Opened(name, FACE, fake(each)) for name, each in seconds.items()}
    with standing_clock():
        timings = latencies(candidates, FACE, 4, 1, rounds=9)
    return made({name: 1e3 * latency(1, t).median / 1e3 for name, t in timings.seconds.items()})


def made(medians: dict[str, float], **settings: Any) -> Comparison:
    found = tuple(
        Candidate(
            name=name,
            kind="engines" if index else "torch",
            backend="fake",
            precision="fp32",
            versions={"fake": "1"},
            exits=(
                ExitFigures(
                    depth=4,
                    latencies=(latency(1, [median / 1e3]),),
                    errors=(point(1e-6),) if index else (),
                ),
            ),
        )
        for index, (name, median) in enumerate(medians.items())
    )
    return Comparison(
        eecompile="0",
        network="fake",
        bundle_digest="",
        machine={"cpu": "one", "cores": "2"},
        reference=next(iter(medians)),
        settings=ComparisonSettings(
            batches=(1,),
            rounds=0,
            solver="ddim",
            steps=2,
            seed=0,
            timesteps=(0.0,),
            absolute=1e-4,
            relative=1e-3,
        ),
        candidates=found,
        **settings,
    )


def point(relative: float) -> OutputError:
    return OutputError(timestep=0.0, batch=1, worst=relative, mean=relative, relative=relative)


def test_a_slowed_runner_trips_the_gate_and_an_equal_one_does_not() -> None:
    baseline = measured(reference=0.004, ours=0.004)
    assert not regressions(measured(reference=0.004, ours=0.004), baseline, max_slowdown=0.25)
    found = regressions(measured(reference=0.004, ours=0.008), baseline, max_slowdown=0.25)
    assert len(found) == 1
    assert found[0].startswith("ours, exit 4, batch 1: ")
    assert "slower" in found[0]


def test_a_machine_that_is_busier_is_no_regression() -> None:
    baseline = made({"reference": 10, "ours": 5})
    assert not regressions(made({"reference": 20, "ours": 10}), baseline)
    assert regressions(made({"reference": 20, "ours": 11}), baseline)


def test_without_the_same_reference_times_are_judged_as_they_are() -> None:
    baseline = made({"reference": 10, "ours": 5})
    other = made({"another": 10, "ours": 6})
    (found,) = [text for text in regressions(other, baseline) if "slower" in text]
    assert "20.0% slower: 6 ms, which was 5" in found
    elsewhere = replace(other, machine={"cpu": "two", "cores": "2"})
    with pytest.raises(UsageError, match="make a new baseline here"):
        regressions(elsewhere, baseline)


def test_trajectories_are_judged_too() -> None:
    def report(seconds: float) -> Comparison:
        found = tuple(
            TrajectoryFigures(
                candidate=name,
                schedule="fast",
                choices=(Exit(4), Exit(4)),
                batch=1,
                seconds_per_sample=each,
                speed_up=1.0,
                ideal_speed_up=1.0,
            )
            for name, each in (("reference", 1.0), ("ours", seconds))
        )
        return made({"reference": 10, "ours": 5}, trajectories=found)

    assert not regressions(report(0.52), report(0.5))
    (found,) = regressions(report(0.6), report(0.5))
    assert found.startswith("ours, fast, ddim, 2 steps, batch 1: 20.0% slower")


def changed(report: Comparison, **fields: Any) -> Comparison:
    """With another last candidate."""
    *others, last = report.candidates
    return replace(report, candidates=(*others, replace(last, **fields)))


def exit_with(relative: float, *, passed: bool = True) -> tuple[ExitFigures, ...]:
    return (ExitFigures(depth=4, errors=(point(relative),), passed=passed),)


def test_errors_may_grow_by_so_much() -> None:
    baseline = made({"reference": 10, "ours": 5})
    assert not regressions(changed(baseline, exits=exit_with(9e-4)), baseline)
    (found,) = regressions(changed(baseline, exits=exit_with(2e-3)), baseline)
    assert found.startswith("ours, exit 4: relative error 0.002, which was 1e-06")
    (found,) = regressions(changed(baseline, exits=exit_with(5e-4, passed=False)), baseline)
    assert "no longer within the tolerance" in found
    rough = changed(baseline, exits=exit_with(1.5e-2))
    assert not regressions(rough, rough)


def broken(report: Comparison) -> Comparison:
    none = OutputError(timestep=0.0, batch=1, worst=None, mean=None, relative=None)
    return changed(report, exits=(ExitFigures(depth=4, errors=(none,), passed=False),))


def test_outputs_that_are_no_longer_finite_are_a_regression() -> None:
    baseline = made({"reference": 10, "ours": 5})
    (found,) = regressions(broken(baseline), baseline, max_error=1e9)
    assert found.startswith("ours, exit 4: outputs are no longer finite")
    assert not regressions(broken(baseline), broken(baseline))
    assert not regressions(baseline, broken(baseline))


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -1e-3])
def test_limits_that_nothing_exceeds_are_refused(limit: float) -> None:
    baseline = made({"reference": 10, "ours": 5})
    with pytest.raises(UsageError, match="from 0 up"):
        regressions(baseline, baseline, max_error=limit)
    with pytest.raises(UsageError, match="from 0 up"):
        regressions(baseline, baseline, max_slowdown=limit)


def test_a_baseline_of_other_batch_sizes_is_refused() -> None:
    baseline = made({"reference": 10, "ours": 5})
    moved = replace(
        baseline,
        candidates=tuple(
            replace(each, exits=(replace(each.exits[0], latencies=(latency(2, [1.0]),)),))
            for each in baseline.candidates
        ),
    )
    with pytest.raises(UsageError, match="no time in common"):
        regressions(moved, baseline)
    assert unjudged(moved, baseline) == 1
    assert unjudged(baseline, baseline) == 0


def test_what_was_there_must_still_be_there() -> None:
    baseline = made({"reference": 10, "ours": 5})
    (found,) = regressions(made({"reference": 10}), baseline)
    assert found == "ours was compared in the baseline, and now was not."
    (found,) = regressions(changed(baseline, skipped="exit 4: no memory", exits=()), baseline)
    assert "now failed (exit 4: no memory)" in found
    (found,) = regressions(changed(baseline, exits=()), baseline)
    assert "no longer has exit 4" in found
    more = made({"reference": 10, "ours": 5, "new": 1})
    assert not regressions(more, baseline)


def test_other_networks_and_nothing_in_common_are_refused() -> None:
    baseline = made({"reference": 10, "ours": 5})
    with pytest.raises(UsageError, match="network other"):
        regressions(baseline, replace(baseline, network="other"))
    with pytest.raises(UsageError, match="no figure in common"):
        regressions(made({"a": 1}), made({"b": 1}))


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.1", 0.1), ("12.5 %", None)])
def test_shares_are_read(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(UsageError, match="--max-slowdown"):
            fraction(text)
    else:
        assert fraction(text) == pytest.approx(value)
