"""Prompts and decoders behind HTTP and in the scheduler, against the sampler's own."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image

from eecompile import Sampler, SampleRequest
from eecompile.arrays import Array
from eecompile.errors import DeadlineError, NonFiniteError, QueueFullError, StoppedError, UsageError
from eecompile.runtime.companions import Companions
from eecompile.serve import Load, Scheduler
from tests.compare.chromium import chromium
from tests.compiler.test_companions import folder
from tests.serve.test_page import opened, sampled, text
from tests.serve.test_server import EVENTS, NPZ, arrays, events, served

__all__ = ["folder"]
PROMPTS = ["a cat", "a dog in snow", "the red sky"]
SMALL = SampleRequest(n=1)


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator[Sampler]:
    with Sampler.open(folder / "cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(sampler: Sampler) -> Iterator[Any]:
    with served(sampler) as client:
        yield client


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], threading.Event]:
    """Makes companions wait, in a method of theirs, until the event is set."""

    def hold(method: str) -> threading.Event:
        go, genuine = threading.Event(), getattr(Companions, method)

        def waiting(self: Companions, *given: Any, **more: Any) -> Any:
            assert go.wait(60)
            return genuine(self, *given, **more)

        monkeypatch.setattr(Companions, method, waiting)
        return go

    return hold


def near(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def eventually(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it does not happen")


def test_prompts_become_decoded_arrays_and_pictures(client: Any, sampler: Sampler) -> None:
    body = {"prompt": PROMPTS, "negative": "blue", "seed": 3}
    expected = sampler.sample(prompt=PROMPTS, negative="blue", seed=3, decode=True)
    made = arrays(client.post("/samples", json=body))
    assert made.shape == (3, 3, 16, 16)
    near(made, expected)
    near(
        arrays(client.post("/samples", json=body | {"latents": True})),
        sampler.sample(prompt=PROMPTS, negative="blue", seed=3),
    )
    one = {"prompt": "a cat", "seed": 1}
    answer = client.post("/samples", json=one, headers={"accept": "image/png"})
    assert answer.status_code == 200, answer.text
    (right,) = sampler.sample(prompt="a cat", seed=1, decode=True)
    pixels = np.asarray(Image.open(io.BytesIO(answer.content))).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels, np.clip((right + 1) / 2 * 255, 0, 255), atol=0.51)


def test_callers_at_once_get_their_own_prompts(client: Any, sampler: Sampler) -> None:
    def ask(seed: int) -> Any:
        body = {"n": 1 + seed % 2, "prompt": PROMPTS[seed % 3], "seed": seed}
        return arrays(client.post("/samples", json=body | {"guidance": 1 + seed % 4}))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(24)))
    for seed, made in enumerate(found):
        options: dict[str, Any] = {"prompt": PROMPTS[seed % 3], "guidance": 1 + seed % 4}
        near(made, sampler.sample(1 + seed % 2, seed=seed, decode=True, **options))


def test_the_last_event_is_decoded(client: Any, sampler: Sampler) -> None:
    body = {"prompt": "a cat", "seed": 4}
    with client.stream("POST", "/samples", json=body, headers={"accept": EVENTS}) as answer:
        *steps, (last, told) = events(answer)
    assert {name for name, _ in steps} == {"step"}
    assert last == "samples"
    made = np.load(io.BytesIO(base64.b64decode(told["npz"])))["samples"]
    near(made, sampler.sample(prompt="a cat", seed=4, decode=True))
    assert Image.open(io.BytesIO(base64.b64decode(told["png"]))).size == (16, 16)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "found no prompt, and no condition 'kept'"),
        ({"prompt": []}, "found prompt = []"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": "a" * 10_001}, "at most 10000 characters"),
        ({"prompt": PROMPTS, "negative": ["a", "b"]}, "found 2 negative prompts for 3 samples"),
        ({"prompt": "a", "conditions": {"kept": [1]}}, "prompt=... beside ['kept']"),
        ({"prompt": "a", "conditions": {"colour": 1}}, "condition 'colour'"),
        ({"prompt": "a", "guidance": [1, 2]}, "guidance [1, 2]"),
    ],
    ids=str,
)
def test_what_does_not_fit_gets_a_sentence(client: Any, body: Any, told: str) -> None:
    for form in (NPZ, EVENTS):  # a stream has not begun
        answer = client.post("/samples", json=body, headers={"accept": form})
        assert answer.status_code == 422, answer.text
        assert told in answer.json()["detail"]


def test_pictures_are_no_text(client: Any, sampler: Sampler) -> None:
    with pytest.raises(UsageError, match="of tiny to read; expected a network whose decoder gives"):
        sampler.texts(np.zeros((1, 3, 16, 16), np.float32))
    answer = client.post("/samples", json={"prompt": "a"}, headers={"accept": "text/plain"})
    assert answer.status_code == 422
    assert "text/plain for samples of tiny that are no text" in answer.json()["detail"]


def test_prompts_are_described(client: Any) -> None:
    schema = client.get("/openapi.json").json()["components"]["schemas"]["SampleBody"]
    assert {"prompt", "negative", "latents"} <= set(schema["properties"])
    facts = client.get("/network").json()
    assert list(facts["encoders"]) == ["clip", "t5"]
    assert facts["decoder"]["kind"] == "image"


def test_the_server_answers_while_companions_work(
    client: Any, held: Callable[[str], threading.Event]
) -> None:
    go = held("_encode")
    with ThreadPoolExecutor(2) as threads:
        waits = threads.submit(client.post, "/samples", json={"prompt": "a blue cat"})
        eventually(lambda: client.get("/ready").json()["waiting"] == 1)
        assert client.get("/health").json() == {"alive": True}
        go.set()
        assert waits.result().status_code == 200
    assert client.get("/ready").json() == {"ready": True, "waiting": 0, "active": 0}


def test_others_are_sampled_while_companions_work(
    sampler: Sampler, held: Callable[[str], threading.Event]
) -> None:
    given = {"text": np.ones((24, 16)), "kept": np.ones(24, int)}
    plain = SampleRequest(n=2, conditions=given, guidance=1.0)
    with Scheduler(sampler) as scheduler:
        long = scheduler.submit(plain, steps=300)
        eventually(lambda: scheduler.load().active == 2)
        go = held("_encode")
        encoded = scheduler.submit(SMALL, prompt="a photo of the sky", decode=True)
        near(long.result(60), sampler.sample(2, **given, guidance=1.0, steps=300))
        assert not encoded.done()
        go.set()
        encoded.result(60)
        go = held("decoded")
        decoded = scheduler.submit(SMALL, prompt="a cat", decode=True)
        near(scheduler.submit(plain).result(60), sampler.sample(2, **given, guidance=1.0))
        near(scheduler.submit(SMALL, prompt="the sky").result(60), sampler.sample(prompt="the sky"))
        assert not decoded.done()
        go.set()
        near(decoded.result(60), sampler.sample(prompt="a cat", decode=True))


@pytest.mark.parametrize("joining", [True, False])
def test_the_scheduler_gives_what_the_sampler_does(sampler: Sampler, joining: bool) -> None:
    with Scheduler(sampler, joining=joining) as scheduler:
        futures = [
            scheduler.submit(
                SampleRequest(n=2, seed=seed), prompt=PROMPTS[:2], decode=seed % 2 == 0, steps=4
            )
            for seed in range(6)
        ]
        for seed, future in enumerate(futures):
            expected = sampler.sample(prompt=PROMPTS[:2], seed=seed, decode=seed % 2 == 0, steps=4)
            near(future.result(60), expected)


@pytest.mark.parametrize("method", ["_encode", "decoded"])
def test_a_request_may_end_while_its_prompt_or_its_samples_wait(
    sampler: Sampler, held: Callable[[str], threading.Event], method: str
) -> None:
    prompt = "the red dog" if method == "_encode" else "a cat"
    with Scheduler(sampler, max_waiting=3) as scheduler:
        go = held(method)

        def ask(n: int = 1, deadline: float | None = None) -> Future[Array]:
            request = SampleRequest(n=n)
            return scheduler.submit(request, prompt=prompt, decode=True, deadline=deadline)

        first, late, gone = ask(), ask(deadline=2), ask()
        eventually(lambda: scheduler.load() == Load(3 - (method == "decoded"), 0, ANY))
        with pytest.raises(QueueFullError):
            ask(n=2)
        assert gone.cancel()
        time.sleep(2)
        go.set()
        assert first.result(60).shape == (1, 3, 16, 16)
        with pytest.raises(DeadlineError):
            late.result(60)
        eventually(lambda: scheduler.load() == Load(0, 0, 0.0))


def test_companions_that_fail_fail_their_request_alone(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Companions.encoded

    def encoded(self: Companions, prompts: Any, **more: Any) -> Any:
        if "a dog" in prompts:
            raise NonFiniteError(found="NaN", expected="none", remedy="fix")
        return genuine(self, prompts, **more)

    monkeypatch.setattr(Companions, "encoded", encoded)
    with Scheduler(sampler) as scheduler:
        fails = scheduler.submit(SMALL, prompt="a dog")
        works = scheduler.submit(SMALL, prompt="a cat")
        with pytest.raises(NonFiniteError):
            fails.result(60)
        assert works.result(60).shape == (1, 4, 8, 8)
        with pytest.raises(UsageError, match="2 prompts for 1 samples"):
            scheduler.submit(SMALL, prompt=["a", "b"])


@pytest.mark.parametrize("method", ["_encode", "decoded"])
def test_closing_finishes_what_was_taken_or_fails_it(
    sampler: Sampler, held: Callable[[str], threading.Event], method: str
) -> None:
    prompt = f"a {method[-6:]}"
    for seconds in (None, 0.05):
        go = held(method)
        scheduler = Scheduler(sampler)
        futures = [
            scheduler.submit(SMALL, prompt=f"{prompt}{seconds is None:d}{i}", decode=True)
            for i in (1, 2)
        ]
        timer = threading.Timer(0.3, go.set)
        timer.start()
        scheduler.close(seconds)
        timer.join()
        scheduler.close()  # which may be closed twice
        if seconds is None:
            assert [each.result(0).shape for each in futures] == [(1, 3, 16, 16)] * 2
        else:
            with pytest.raises(StoppedError):
                futures[1].result(0)
            assert futures[0].done()


def test_the_page_has_a_field_for_prompts(client: Any, sampler: Sampler, tmp_path: Path) -> None:
    with chromium(tmp_path) as browser:
        opened(browser, client)
        made = sampled(browser, prompt="a cat", negative="snow", n=2, seed=5)
        near(made, sampler.sample(2, prompt="a cat", negative="snow", seed=5, decode=True))
        assert browser.wait("document.getElementById('picture').naturalWidth") == 32
        assert browser.run("return document.getElementById('condition-text')") is None
        assert text(browser, "error") == ""
        assert browser.complaints() == []
