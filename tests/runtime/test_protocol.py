"""What an engine need not write itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eecompile.errors import BackendError
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.engines.group import EngineGroup

FLOAT = np.float32


def half(depth: int, x: Any, t: Any, given: Any) -> Any:
    return x * depth / 2 + t[:, None]


def test_an_engine_that_only_evaluates_can_be_bound() -> None:
    x, t, out = np.ones((2, 3), FLOAT), np.zeros(2, FLOAT), np.empty((2, 3), FLOAT)
    evaluate = FakeEngine((2, 4), half).bind(x, t, {}, [out])
    evaluate(4)
    np.testing.assert_array_equal(out, 2)
    x[:], t[:] = 3, 1  # it reads what the arrays hold when it is called
    evaluate(2)
    np.testing.assert_array_equal(out, 4)


def test_outputs_of_another_shape_are_refused() -> None:
    engine = FakeEngine((2,), lambda *_: np.zeros((1, 3), FLOAT))
    x = np.ones((2, 3), FLOAT)
    with pytest.raises(BackendError, match=r"outputs of shapes \[\[1, 3\]\] at exit 2"):
        engine.bind(x, np.zeros(2, FLOAT), {}, [np.empty_like(x)])(2)


def test_a_single_engine_stands_for_every_name() -> None:
    engine = FakeEngine((2,), half)
    assert engine.concurrent
    assert not engine.runs_trajectories
    assert not engine.members
    assert engine.member("any") is engine


def test_a_group_knows_its_members_and_binds_the_first() -> None:
    one, two = FakeEngine((2,), half), FakeEngine((2,), lambda d, x, t, given: -x)
    group = EngineGroup({"one": one, "two": two})
    assert group.member("two") is two
    assert group.member("") is group
    x, out = np.ones((2, 3), FLOAT), np.empty((2, 3), FLOAT)
    group.bind(x, np.zeros(2, FLOAT), {}, [out])(2)
    np.testing.assert_array_equal(out, 1)
