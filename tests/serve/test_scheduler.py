"""Requests that join while others run get what they would have got alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from eecompile import Sampler, SampleRequest
from eecompile.errors import (
    BackendError,
    DeadlineError,
    NonFiniteError,
    QueueFullError,
    StoppedError,
    UsageError,
)
from eecompile.programs.interface import Interface, Resizable, State
from eecompile.programs.schedule import ExitSchedule
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.runtime.sampling import StepMetrics
from eecompile.serve import BatchMetrics, Progress, Scheduler, joining, rows_that_pay
from tests.runtime.test_requests import REQUEST, calls, fake, predict

QUICK: dict[str, Any] = {"steps": 4, "schedule": [12, 3]}
ALONE = fake()  # samples for one caller at a time
WAYS: tuple[dict[str, Any], ...] = (
    {"solver": "ddpm", "steps": 4, "schedule": [12, 3]},
    {"solver": "ddim", "steps": 7, "schedule": ExitSchedule.parse("forecast1,12,again,12")},
    {"solver": "dpmpp-2m", "steps": 5, "schedule": "full"},
)


class Held:
    """Holds a sampler's evaluations until it is told to let them go."""

    def __init__(self, max_batch: int = 64) -> None:
        self.sampler = fake(max_batch)
        self.begun, self.go = threading.Event(), threading.Event()
        self.sampler.engine = FakeEngine((3, 12), self._predict, max_batch)

    def _predict(self, depth: int, x: Any, t: Any, given: Any) -> Any:
        self.begun.set()
        assert self.go.wait(30)
        return predict(depth, x, t, given)


@contextmanager
def held(**options: Any) -> Iterator[tuple[Held, Scheduler]]:
    """A scheduler whose first evaluation, for a request of one sample, is being held."""
    held = Held(options.pop("engine_batch", 64))
    with Scheduler(held.sampler, **options) as scheduler:
        scheduler.submit(SampleRequest(seed=99), **QUICK)
        assert held.begun.wait(30)
        try:
            yield held, scheduler
        finally:
            held.go.set()


@settings(deadline=None, max_examples=15)
@given(
    requests=st.lists(st.tuples(REQUEST, st.sampled_from(WAYS)), min_size=1, max_size=6),
    largest=st.integers(1, 9),
    joining=st.booleans(),
)
def test_whoever_joins_gets_what_it_gets_alone(
    requests: list[tuple[SampleRequest, dict[str, Any]]], largest: int, joining: bool
) -> None:
    together = fake(largest)
    with Scheduler(together, joining=joining) as scheduler:
        futures = [scheduler.submit(request, **way) for request, way in requests]
        found = [future.result(30) for future in futures]
    assert max(rows for _, rows in calls(together)) <= largest
    for (request, way), samples in zip(requests, found, strict=True):
        (alone,) = ALONE.sample_requests([request], **way)
        np.testing.assert_allclose(samples, alone, rtol=1e-5, atol=1e-5)


def test_a_request_joins_at_the_next_evaluation_whatever_its_timestep() -> None:
    told: list[BatchMetrics] = []
    with held(on_batch=told.append) as (held_, scheduler):
        joined = scheduler.submit(SampleRequest(n=2, guidance=2.0), **QUICK)
        longer = scheduler.submit(SampleRequest(n=1), steps=6, schedule=[12, 3])
        held_.go.set()
        joined.result(30)
        longer.result(30)
    (first, *_) = told
    assert (first.requests, first.rows) == (1, 1)
    assert max((each.requests, each.rows) for each in told) == (3, 6)
    assert len(told) < 4 + 4 + 6


def test_the_oldest_goes_first_and_a_head_start_makes_one_older() -> None:
    ended: list[str] = []
    with held(max_batch=1, max_active=1) as (held_, scheduler):
        for name, priority in (("first", 0.0), ("second", 0.0), ("urgent", 60.0)):
            future = scheduler.submit(SampleRequest(), priority=priority, **QUICK)
            future.add_done_callback(lambda _, name=name: ended.append(name))
        held_.go.set()
    assert ended == ["urgent", "first", "second"]


def test_a_choice_that_fills_the_batch_goes_before_the_oldest_eight_times_at_most() -> None:
    with held() as (held_, scheduler):
        oldest = scheduler.submit(SampleRequest(), steps=2, schedule=3)
        many = [
            scheduler.submit(SampleRequest(seed=seed), steps=20, schedule="full")
            for seed in range(5)
        ]
        held_.go.set()
        for future in (oldest, *many):
            future.result(30)
    shallow = [place for place, (depth, _) in enumerate(calls(held_.sampler)) if depth == 3]
    assert shallow[1] - shallow[0] == 9


@pytest.mark.parametrize(("a_row", "a_batch", "rows"), [(5e-3, 0.0, (1, 2)), (0.0, 4e-3, (16,))])
def test_rows_that_pay_are_measured(a_row: float, a_batch: float, rows: tuple[int, ...]) -> None:
    def evaluated(depth: int, x: Any, t: Any, given: Any) -> Any:
        time.sleep(a_row * len(x) + a_batch)
        return x

    sampler = fake(16)
    sampler.engine = FakeEngine((3, 12), evaluated, 16)
    assert rows_that_pay(sampler) in rows


def test_a_large_request_lets_others_pass_between_its_batches() -> None:
    ended: list[str] = []
    with held(engine_batch=4, max_active=4) as (held_, scheduler):
        for name, n in (("large", 40), ("small", 1)):
            future = scheduler.submit(SampleRequest(n=n), **QUICK)
            future.add_done_callback(lambda _, name=name: ended.append(name))
        held_.go.set()
    assert ended == ["small", "large"]


def test_a_full_queue_refuses_and_a_cancelled_request_makes_room() -> None:
    with held(max_active=1, max_waiting=4) as (_, scheduler):
        waiting = scheduler.submit(SampleRequest(n=3), **QUICK)
        with pytest.raises(QueueFullError, match="3 samples waiting, and 2 more"):
            scheduler.submit(SampleRequest(n=2), **QUICK)
        assert scheduler.load().waiting == 3
        assert waiting.cancel()
        assert scheduler.load().waiting == 0
        scheduler.submit(SampleRequest(n=2), **QUICK)


def test_a_cancelled_request_leaves_before_the_next_evaluation() -> None:
    with held() as (held_, scheduler):
        gone = scheduler.submit(SampleRequest(n=5), steps=50, schedule="full")
        stays = scheduler.submit(SampleRequest(n=1, seed=1), **QUICK)
        assert gone.cancel()
        held_.go.set()
        stays.result(30)
        assert scheduler.load().active == 0
    assert calls(held_.sampler)[-1][1] == 1
    assert sum(rows for _, rows in calls(held_.sampler)) == 4 + 4


def test_a_deadline_ends_what_waits_and_what_runs() -> None:
    with held(max_active=1) as (held_, scheduler):
        late = scheduler.submit(SampleRequest(), deadline=0.01, **QUICK)
        time.sleep(0.02)
        held_.go.set()
        with pytest.raises(DeadlineError):
            late.result(30)
    slow = Held()
    slow.go.set()
    with Scheduler(slow.sampler) as scheduler:
        running = scheduler.submit(SampleRequest(), steps=1000, schedule="full", deadline=0.05)
        with pytest.raises(DeadlineError):
            running.result(30)
        assert scheduler.submit(SampleRequest(), **QUICK).result(30).shape == (1, 4, 4)


def failing(depth: int, x: Any, t: Any, given: Any) -> Any:
    """As ``predict``, but label 7 fails, and label 8 gives NaN."""
    if (given["label"] == 7).any():
        raise MemoryError("no room")
    made = predict(depth, x, t, given)
    made[given["label"] == 8] = np.nan
    return made


@pytest.mark.parametrize("joining", [True, False])
def test_one_that_fails_does_not_spoil_the_others(joining: bool) -> None:
    sampler = fake()
    expected = ALONE.sample(2, label=3, **QUICK)
    sampler.engine = FakeEngine((3, 12), failing)
    with Scheduler(sampler, joining=joining) as scheduler:
        labels = (3, 7, 3, 8, 3)
        futures = [
            scheduler.submit(SampleRequest(n=2, conditions={"label": each}), **QUICK)
            for each in labels
        ]
        for label, future in zip(labels, futures, strict=True):
            if label == 3:
                np.testing.assert_allclose(future.result(30), expected, rtol=1e-5, atol=1e-5)
            else:
                kind = BackendError if label == 7 else NonFiniteError
                with pytest.raises(kind):
                    future.result(30)
        assert scheduler.alive


def test_wrong_requests_are_refused_at_once() -> None:
    with Scheduler(fake()) as scheduler, pytest.raises(UsageError, match="label"):
        scheduler.submit(SampleRequest(conditions={"label": 11}), **QUICK)
    with pytest.raises(UsageError, match="max_waiting 0"):
        Scheduler(fake(), max_waiting=0)


def test_closing_finishes_what_was_taken_and_takes_no_more() -> None:
    scheduler = Scheduler(fake())
    futures = [scheduler.submit(SampleRequest(seed=seed), **QUICK) for seed in range(9)]
    scheduler.close()
    assert all(future.result(0).shape == (1, 4, 4) for future in futures)
    with pytest.raises(StoppedError):
        scheduler.submit(SampleRequest(), **QUICK)


def test_closing_in_a_hurry_fails_what_is_left() -> None:
    with held(max_active=1) as (held_, scheduler):
        waiting = scheduler.submit(SampleRequest(), **QUICK)
        threading.Timer(0.2, held_.go.set).start()
        scheduler.close(timeout=0.05)
        with pytest.raises(StoppedError):
            waiting.result(0)


def test_steps_are_told_to_who_watches_and_to_the_samplers_hook() -> None:
    sampler, steps = fake(), list[StepMetrics]()
    sampler.on_step = steps.append
    seen: list[Progress] = []
    with Scheduler(sampler) as scheduler:
        made = scheduler.submit(SampleRequest(n=2), watch=seen.append, **QUICK).result(30)
    assert [each.index for each in seen] == [0, 1, 2, 3]
    assert [each.choice.text for each in steps] == [each.choice.text for each in seen]
    np.testing.assert_array_equal(seen[-1].state, made)
    assert all(each.seconds > 0 for each in steps)


def test_awaiting_streaming_and_leaving() -> None:
    async def run(scheduler: Scheduler) -> list[Any]:
        array = await scheduler.sample(SampleRequest(seed=3), **QUICK)
        events = [each async for each in scheduler.stream(SampleRequest(seed=3), **QUICK)]
        assert all(isinstance(each, Progress) for each in events[:-1])
        np.testing.assert_array_equal(events[-1], array)
        task = asyncio.ensure_future(scheduler.sample(SampleRequest(), steps=1000, schedule="full"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return events

    with Scheduler(fake()) as scheduler:
        asyncio.run(run(scheduler))
        started = time.monotonic()
    assert time.monotonic() - started < 5


def test_clients_that_come_and_go_get_their_own_samples() -> None:
    with Scheduler(fake(16), max_waiting=4096) as scheduler:
        found: dict[int, Future[Any]] = {}
        for seed in range(150):
            request = SampleRequest(n=1 + seed % 3, seed=seed)
            found[seed] = scheduler.submit(request, **WAYS[seed % 3])
            if seed % 5 == 0:
                found[seed].cancel()
        for seed, future in found.items():
            try:
                made = future.result(60)
            except CancelledError:
                assert seed % 5 == 0
                continue
            request = SampleRequest(n=1 + seed % 3, seed=seed)
            (alone,) = ALONE.sample_requests([request], **WAYS[seed % 3])
            np.testing.assert_allclose(made, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["per_exit", "chained"])
def test_real_engines_give_what_they_give_alone(small_sets: dict[str, Path], layout: str) -> None:
    ways: tuple[dict[str, Any], ...] = (
        {"solver": "ddpm", "steps": 5},
        {"solver": "ddim", "steps": 6, "schedule": [4, 2, 1]},
    )
    with Sampler.open(small_sets[layout]) as sampler, Scheduler(sampler) as scheduler:
        requests = [
            SampleRequest(n=1 + i % 3, seed=i, guidance=[1.0, 2.0][i % 2]) for i in range(8)
        ]
        futures = [scheduler.submit(r, **ways[i % 2]) for i, r in enumerate(requests)]
        found = [future.result(60) for future in futures]
        for i, (request, samples) in enumerate(zip(requests, found, strict=True)):
            (alone,) = sampler.sample_requests([request], **ways[i % 2])
            np.testing.assert_allclose(samples, alone, atol=2e-5)


def test_spans_take_part_without_sharing(small_sets: dict[str, Path]) -> None:
    with Sampler.open(small_sets["chained"]) as sampler, Scheduler(sampler) as scheduler:
        cuts = sampler.interface.cuts
        span = f"4/{cuts[0]}-{cuts[-1]}:0"
        schedule = ExitSchedule.parse(f"{span},4,{span},4")
        way: dict[str, Any] = {"solver": "ddim", "steps": 8, "schedule": schedule}
        futures = [scheduler.submit(SampleRequest(n=2, seed=s), **way) for s in range(3)]
        for seed, future in enumerate(futures):
            expected = sampler.sample(2, seed=seed, **way)
            np.testing.assert_array_equal(future.result(60), expected)


def test_memory_is_bounded_where_samples_have_many_shapes() -> None:
    free = Resizable(axes=(0,), min=1, max=20)
    interface = Interface(name="any", exits=(3,), state=State(shape=(4,), resizable=free))
    begun, go = threading.Event(), threading.Event()

    def evaluated(depth: int, x: Any, t: Any, given: Any) -> Any:
        begun.set()
        assert go.wait(30)
        return 0.1 * x

    engine = FakeEngine((3,), evaluated, 64)
    sampler = Sampler(engine, interface)
    batches: list[BatchMetrics] = []
    with Scheduler(sampler, on_batch=batches.append) as scheduler:
        first = scheduler.submit(SampleRequest(shape=(4,)), steps=2, schedule=3)
        assert begun.wait(30)
        asked = [
            SampleRequest(seed=seed, shape=(size,)) for size in range(1, 21) for seed in (1, 2)
        ]
        futures = [scheduler.submit(request, steps=2, schedule=3) for request in asked]
        go.set()
        found = [future.result(30) for future in futures]
        first.result(30)
        rooms = [each for each in gc.get_objects() if type(each) is joining._Room]
        assert 0 < sum(room._engine is engine for room in rooms) <= 8
    assert any(each.requests == 2 for each in batches)
    alone = Sampler(FakeEngine((3,), evaluated, 64), interface)
    for request, samples in zip(asked, found, strict=True):
        (expected,) = alone.sample_requests([request], steps=2, schedule=3)
        assert np.array_equal(samples, expected)
