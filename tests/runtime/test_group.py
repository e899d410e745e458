"""Several engine sets of one network, opened together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.errors import UsageError
from eecompile.programs.choice import Forecast
from eecompile.programs.interface import Interface, State
from eecompile.programs.program import Program
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.engines.group import EngineGroup, grouped
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.sampling import StepMetrics
from eecompile.store.target import Target

SETTINGS = {"solver": "ddim", "steps": 10, "seed": 3}


@pytest.fixture
def both(engine_sets: dict[str, Path], openvino_set: Path) -> tuple[Path, Path]:
    """Engine sets of the shipped network for ONNX Runtime and for OpenVINO."""
    return engine_sets["chained"], openvino_set


def named(sampler: Sampler, text: str) -> Program:
    return sampler.program(SETTINGS["solver"], SETTINGS["steps"], ExitSchedule.parse(text))


def test_a_schedule_chooses_the_engine_set(both: tuple[Path, Path]) -> None:
    told: list[StepMetrics] = []
    with Sampler.open(*both, on_step=told.append) as sampler:
        assert len(sampler.engines) == 2
        first, second = sampler.engines
        program = named(sampler, f"12@{second},6")
        states = [result.state for result in sampler.steps(2, solver=program, seed=3)]
        engines = [result.choice.engine for result in sampler.steps(2, solver=program, seed=3)]
        unnamed = sampler.sample(2, solver=named(sampler, "12,6"), seed=3)
    assert engines == [""] * 5 + ["vino"] * 5
    assert {metrics.engine for metrics in told} >= {
        "fashion-dit for vino",
        f"fashion-dit for {first} and vino",
    }
    # Each half is what that engine set alone makes of it.
    with Sampler.open(both[0]) as one, Sampler.open(both[1]) as two:
        np.testing.assert_array_equal(one.sample(2, solver=named(one, "12,6"), seed=3), unnamed)
        alone = [r.state for r in one.steps(2, solver=named(one, "12,6"), seed=3)]
        other = [r.state for r in two.steps(2, solver=named(two, "12,6"), seed=3)]
        assert two.sample(1, solver=named(two, "12@vino,6")).shape == (1, 1, 28, 28)
    np.testing.assert_array_equal(states[4], alone[4])
    assert np.abs(states[9] - other[9]).max() < 1e-2
    assert not np.array_equal(states[9], alone[9])


def test_the_previous_output_is_used_again(engine_sets: dict[str, Path]) -> None:
    """Against the same sampling by hand, with an engine that remembers."""
    with Sampler.open(engine_sets["chained"]) as sampler:
        program = named(sampler, "12,again,9,again,6")
        found = sampler.sample(2, solver=program, seed=3, guidance=2.0)
        kept: list[np.ndarray] = []

        def remembering(depth: int, x: np.ndarray, t: np.ndarray, given: object) -> np.ndarray:
            step = len(kept)
            choice = program.steps[step].chosen
            if choice.evaluates:
                depth = choice.blocks
                kept.append(sampler.engine.evaluate(depth, x, t, given)[0])  # type: ignore[arg-type]
            else:
                kept.append(kept[-1])
            return kept[-1]

        engine = FakeEngine(sampler.interface.exits, remembering)
        full = named(sampler, "12")
        with Sampler(engine, sampler.interface) as other:
            expected = other.sample(2, solver=full, seed=3, guidance=2.0)
    assert program.choices.count(Forecast()) == 4
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_reuse_evaluates_nothing() -> None:
    interface = Interface(name="n", exits=(2, 4), state=State(shape=(3,)))
    engine = FakeEngine(interface.exits, lambda depth, x, t, given: 0.1 * x)
    with Sampler(engine, interface) as sampler:
        sampler.sample(2, solver="ddim", steps=4, schedule=[2, "again", "again", 4])
    assert [depth for depth, _ in engine.calls] == [4, 2]


def test_programs_that_do_not_fit_are_refused(both: tuple[Path, Path]) -> None:
    with Sampler.open(*both) as sampler:
        with pytest.raises(UsageError, match="'elsewhere'"):
            sampler.sample(1, solver="ddim", steps=2, schedule=ExitSchedule.parse("12@elsewhere"))
        program = named(sampler, "12")
        steps = (msgspec.structs.replace(program.steps[0], choice=Forecast()), *program.steps[1:])
        with pytest.raises(UsageError, match="whose step 0 is 'again', after 0 evaluations"):
            msgspec.structs.replace(program, steps=steps)
        assert sampler.sample(1, solver="ddim", steps=2).shape == (1, 1, 28, 28)
    with Sampler.open(both[0]) as sampler, pytest.raises(UsageError, match="open that engine set"):
        sampler.sample(1, solver="ddim", steps=2, schedule=ExitSchedule.parse("12@vino"))


def test_engine_sets_that_do_not_belong_together_are_refused(
    both: tuple[Path, Path], other_exits: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="two engine sets for the target"):
        Sampler.open(both[0], both[0])
    target = Target(name="alone", backend="onnxruntime")
    engine_set_from_bundle(other_exits(3, 12), target, tmp_path / "alone")
    with pytest.raises(UsageError, match="another bundle"):
        Sampler.open(both[0], tmp_path / "alone")
    with pytest.raises(UsageError, match="different exits"):
        grouped(
            {
                "a": FakeEngine((2, 4), lambda depth, x, t, given: x),
                "b": FakeEngine((4,), lambda depth, x, t, given: x),
            }
        )


def test_a_group_takes_what_all_members_take() -> None:
    closed: list[str] = []

    class Member(FakeEngine):
        def close(self) -> None:
            closed.append(self.precision)

    small, large = (Member((2, 4), lambda d, x, t, given: x, max_batch=m) for m in (4, 32))
    small.precision, large.precision = "fp16", "fp32"
    group = grouped({"small": small, "large": large})
    assert isinstance(group, EngineGroup)
    assert (group.max_batch, group.precision, group.exits) == (4, "fp16 and fp32", (2, 4))
    assert group.concurrent
    group.close()
    assert closed == ["fp32", "fp16"]  # the first one last: others may use its GPU
