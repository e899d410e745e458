"""The server, with real clients at a real port: the command, and the application alone."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile import Sampler, SampleRequest
from eecompile.cli.serving import _listening
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.serve import Limits, app_from_sampler
from tests.runtime.test_requests import fake, predict

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

ALONE = fake()
QUICK: dict[str, Any] = {"steps": 4, "schedule": [12, 3], "solver": "ddim"}
NPZ, EVENTS = "application/x-npz", "text/event-stream"


def arrays(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content))["samples"]


def pictures(depth: int, x: Any, t: Any, given: Any) -> Any:
    """As ``predict``; labels 7 and 8 fail."""
    if (given["label"] == 7).any():
        raise RuntimeError("the engine is broken\nwith a second line")
    if (given["label"] == 8).any():
        raise MemoryError("no room")
    time.sleep(0.001)
    return predict(depth, x, t, given)


@contextmanager
def served(sampler: Sampler, **options: Any) -> Iterator[Any]:
    """A client of a server in a thread of this process."""
    app = app_from_sampler(sampler, **options)
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_config=None))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60) as client:
            client.app = app
            yield client
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    sampler = fake(16)
    sampler.engine = FakeEngine((3, 12), pictures, 16)
    limits = Limits(n=8, steps=1000, body=100_000, upload=0.5)
    with served(sampler, limits=limits, max_waiting=64) as client:
        yield client


def test_clients_at_once_get_their_own_samples(client: Any) -> None:
    def ask(seed: int) -> Any:
        body = {"n": 1 + seed % 3, "seed": seed, "conditions": {"label": seed % 7}} | QUICK
        return arrays(client.post("/samples", json=body))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(40)))
    for seed, made in enumerate(found):
        alone = ALONE.sample(1 + seed % 3, seed=seed, label=seed % 7, **QUICK)
        np.testing.assert_allclose(made, alone, rtol=1e-5, atol=1e-5)


def test_every_form_has_the_same_samples(client: Any) -> None:
    from safetensors.numpy import load

    expected = ALONE.sample(2, seed=1, **QUICK)
    body = {"n": 2, "seed": 1} | QUICK

    def ask(accept: str) -> Any:
        return client.post("/samples", json=body, headers={"accept": accept})

    np.testing.assert_allclose(arrays(ask("*/*")), expected, rtol=1e-5)
    tensors = load(ask("application/x-safetensors").content)
    np.testing.assert_allclose(tensors["samples"], expected, rtol=1e-5)
    liked = ask(f"{NPZ};q=0.1, application/*;q=0.2, text/html")
    assert liked.headers["content-type"] == NPZ
    refused = ask("text/html")
    assert (refused.status_code, "expected one of" in refused.json()["detail"]) == (406, True)
    no_picture = ask("image/png")
    assert no_picture.status_code == 422
    assert "expected pictures" in no_picture.json()["detail"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"n": 0}, "n = 0; expected greater than or equal to 1"),
        ({"n": 9}, "n 9; expected at most 8"),
        ({"n": True}, "n = True; expected a valid integer"),
        ({"seed": -1}, "seed = -1"),
        ({"steps": 1001}, "steps 1001; expected at most 1000"),
        ({"size": 3}, "a field 'size'; expected only n, seed"),
        ({"prompt": "a boot"}, "a prompt for fake, which has no encoder"),
        ({"prompt": 3}, "prompt = 3; expected a valid string"),
        ({"n": 2, "prompt": ["a", "b", "c"]}, "found 3 prompts for 2 samples"),
        ({"conditions": {"label": 12}}, "label = 12; expected a value from 0 to 9"),
        ({"conditions": {"colour": 1}}, "condition 'colour'; expected one of ['label']"),
        ({"schedule": "fastest"}, "exit schedule 'fastest'"),
        ({"schedule": "/etc/secret.json"}, "write the choices out"),
        ({"schedule": [13]}, "13"),
        ({"solver": "dmim"}, "dmim"),
        ({"shape": [4, 10**9]}, "expected at most 67108864"),
        ({"deadline": -1}, "deadline = -1"),
        ({"priority": 1e6}, "priority"),
        ([], "expected one, which may be empty"),
        (b"", "expected one, which may be empty"),
        (b"{", "no JSON"),
        (b"\xff", "a body that cannot be read"),
        (b'{"guidance": NaN}', "guidance"),
        (b'{"guidance": [1e999]}', "guidance"),
        (b'{"conditions": {"label": [NaN]}}', "label"),
    ],
    ids=str,
)
def test_a_bad_request_gets_a_sentence(client: Any, body: Any, told: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/samples", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == (400 if body == b"\xff" else 422), answer.text
    detail = answer.json()["detail"]
    assert told in detail
    assert detail.startswith("found ")
    assert detail.count("; ") >= 2


def test_a_body_that_is_too_large_or_too_slow_is_refused(client: Any) -> None:
    large = client.post("/samples", content=b'{"n": 1}' + b" " * 200_000)
    assert large.status_code == 413

    def slowly() -> Iterator[bytes]:
        yield b'{"n": '
        time.sleep(1.5)
        yield b"1}"

    slow = client.post("/samples", content=slowly(), headers={"content-type": "application/json"})
    assert slow.status_code == 408
    assert "send it faster" in slow.json()["detail"]


def test_engines_that_fail_are_told_of_and_the_server_lives(client: Any) -> None:
    for label, words in ((7, "the engine is broken"), (8, "no room")):
        answer = client.post("/samples", json={"conditions": {"label": label}} | QUICK)
        assert answer.status_code == 500
        detail = answer.json()["detail"]
        assert words in detail
        assert "Traceback" not in detail
    assert client.get("/health").json() == {"alive": True}
    assert client.post("/samples", json=QUICK).status_code == 200


def events(answer: Any) -> list[tuple[str, Any]]:
    found, name = [], ""
    for line in answer.iter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            found.append((name, json.loads(value)))
    return found


def test_steps_are_streamed_and_the_samples_follow(client: Any) -> None:
    body = {"n": 2, "seed": 4} | QUICK
    with client.stream("POST", "/samples", json=body, headers={"accept": EVENTS}) as answer:
        assert answer.headers["content-type"].startswith(EVENTS)
        *steps, (last, told) = events(answer)
    assert {name for name, _ in steps} == {"step"}
    assert [each["index"] for _, each in steps] == sorted(each["index"] for _, each in steps)
    assert last == "samples"
    made = np.load(io.BytesIO(base64.b64decode(told["npz"])))["samples"]
    np.testing.assert_allclose(made, ALONE.sample(2, seed=4, **QUICK), rtol=1e-5)
    wrong = {"conditions": {"label": 7}} | QUICK
    with client.stream("POST", "/samples", json=wrong, headers={"accept": EVENTS}) as answer:
        ((name, told),) = events(answer)
    assert name == "error"
    assert "the engine is broken" in told["detail"]


def test_a_caller_that_goes_gives_its_rows_back(client: Any) -> None:
    long = {"n": 8, "steps": 1000, "schedule": "full", "solver": "ddim", "conditions": {"label": 1}}
    for form in (NPZ, EVENTS):
        headers = {"accept": form}
        with pytest.raises(httpx.ReadTimeout):
            if form == NPZ:
                client.post("/samples", json=long, headers=headers, timeout=0.3)
            with client.stream("POST", "/samples", json=long, headers=headers) as answer:
                next(answer.iter_lines())
                raise httpx.ReadTimeout("enough seen")
        for _ in range(200):
            if client.get("/ready").json()["active"] == 0:
                break
            time.sleep(0.02)
        assert client.get("/ready").json() == {"ready": True, "waiting": 0, "active": 0}


def test_a_full_queue_says_when_to_come_again(client: Any) -> None:
    long = {"n": 8, "steps": 300, "schedule": "full", "solver": "ddim", "conditions": {"label": 1}}
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: client.post("/samples", json=long), range(16)))
    statuses = [each.status_code for each in answers]
    assert set(statuses) == {200, 503}
    refused = answers[statuses.index(503)]
    assert int(refused.headers["retry-after"]) >= 1
    assert "ask again later" in refused.json()["detail"]


def test_metrics_and_the_interface_are_described(client: Any) -> None:
    client.post("/samples", json=QUICK)
    text = client.get("/metrics").text
    assert 'eecompile_steps_total{choice="12",engine="fake"}' in text
    assert "eecompile_batch_rows_bucket" in text
    assert 'eecompile_request_seconds_count{status="200"}' in text
    assert "eecompile_waiting_samples 0.0" in text
    described = client.get("/openapi.json").json()
    operation = described["paths"]["/samples"]["post"]
    assert set(operation["responses"]) >= {"200", "422", "503"}
    assert described["components"]["schemas"]["SampleBody"]["examples"]


def test_what_the_command_accepts_does_not_wait_for_acknowledgements() -> None:
    """Else each answer on a connection that is kept takes 40 ms more."""
    with _listening("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.posix
def test_the_command_serves_until_it_is_told_to_end(small_sets: dict[str, Path]) -> None:
    engines = small_sets["per_exit"]
    command = [sys.executable, "-m", "eecompile", "serve", str(engines), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = b""
        while b"}" not in lines:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            lines += line
        told = json.loads(lines)
        assert told["process"] == process.pid
        with httpx.Client(base_url=told["url"], timeout=60) as client:
            made = arrays(client.post("/samples", json={"n": 2, "seed": 3, "steps": 4}))
            picture = client.post("/samples", json={"steps": 2}, headers={"accept": "image/png"})
            busy = threading.Thread(
                target=lambda: answers.append(client.post("/samples", json={"steps": 200}))
            )
            answers: list[Any] = []
            busy.start()
            while not client.get("/ready").json()["active"] and busy.is_alive():
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            busy.join(60)
        log = process.stderr.read()
        assert process.wait(60) == 0
    assert answers[0].status_code == 200  # what was taken is finished
    with Sampler.open(engines) as sampler:
        (expected,) = sampler.sample_requests([SampleRequest(n=2, seed=3)], steps=4)
    np.testing.assert_allclose(made, expected, atol=2e-5)
    from PIL import Image

    assert Image.open(io.BytesIO(picture.content)).size == (28, 28)
    requests = [json.loads(line) for line in log.splitlines() if b'"request"' in line]
    assert requests[0]["status"] == 200
    assert requests[0]["path"] == "/samples"
    assert b"Traceback" not in log
